"""What a run will take, before it starts: prompts, tokens and stored bytes from its config and data, seconds from the
last run.

A plan is the probe's own (`estimate`) and counts what the config asks for, without the model: token counts are of a
sample of the texts, answers are taken to be as long as they may be. Where a run of the probe is there, its own plan is
held against what it really took, and scales the new one. Nothing here imports torch or fetches anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench import organisms
from workbench.core import registry
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.json_text import read_json_object
from workbench.runs.folder import Run

SAMPLE = 200  # texts that are counted in full; the rest are taken to be like them
CHARACTERS = 4  # to a token, where there is no tokenizer to ask


@dataclass(frozen=True)
class Plan:
    """``prompts`` and ``tokens`` that are fed or generated; ``stored``: bytes of activations that are kept in the
    store; ``scored``: multiply-adds of scores over the vocabulary that come on top of the passes, and ``without``: the
    setting that leaves them out."""

    prompts: int
    tokens: int
    stored: int = 0
    scored: int = 0
    without: str = ""


@dataclass(frozen=True)
class CostEstimate:
    """``tokens``, ``stored`` (bytes) and, where a run like it was timed on this model and device, ``seconds``."""

    tokens: int
    stored: int
    seconds: float | None


@dataclass(frozen=True)
class Facts:
    """What a plan needs of a model: read from its config.json."""

    folder: Path | None
    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int = 0

    def tokens(self, texts: Sequence[str]) -> int:
        """Tokens of these texts together, by the model's own tokenizer where it is here."""
        some = list(texts[:: max(1, len(texts) // SAMPLE)])
        if not some:
            return 0
        tokenizer = None if self.folder is None else _tokenizer(self.folder / "tokenizer.json")
        lengths = (
            [len(text) / CHARACTERS for text in some]
            if tokenizer is None
            else [len(e.ids) for e in tokenizer.encode_batch(some)]
        )
        return round(sum(lengths) / len(some) * len(texts))


def facts(model: str) -> Facts | None:
    """The shape of a model that is on this machine; None for one that would have to be fetched first."""
    folder = _folder(model)
    try:
        config = None if folder is None else read_json_object(folder / "config.json", what="config.json")
    except InputError:
        return None
    if config is None:
        return None
    inner = config.get("text_config")
    config = config | (inner if isinstance(inner, dict) else {})

    def number(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    return Facts(
        folder,
        number("num_hidden_layers", "n_layer"),
        number("hidden_size", "n_embd"),
        number("num_attention_heads", "n_head"),
        number("max_position_embeddings", "n_positions") or 2048,
        number("vocab_size"),
    )


def _folder(model: str) -> Path | None:
    try:
        if model in organisms.names():
            return organisms.folder(model)
    except WorkbenchError:
        return None
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path)) if path.is_file() else None


def plan(probe: str, config: Any, data: Path | None, model: str) -> Plan | None:
    """What a run will feed and keep, as its probe says; None for a probe that does not, and for a model that is not
    here yet."""
    said, about = registry.get(probe).estimate, facts(model)
    return None if said is None or about is None else said(config, data, about)


def estimate(
    now: Plan, *, then: Plan | None = None, run: Run | None = None, same_machine: bool = False
) -> CostEstimate:
    """``run``: a complete run of the probe, ``then`` its own plan. Its tokens scale the plan; its seconds count where
    it was made on this model and device."""
    if run is None or then is None or not then.tokens:
        return CostEstimate(now.tokens, now.stored, None)
    share = now.tokens / then.tokens
    real = (run.info.get("counters") or {}).get("tokens") or then.tokens
    seconds = (run.info.get("seconds") or {}).get("compute") if same_machine else None
    return CostEstimate(round(share * real), now.stored, None if seconds is None else share * seconds)
