"""What a run will take, before it starts: prompts, tokens and stored bytes from its config and data, seconds from the
last run.

A plan counts what the config asks for, without the model: token counts are of a sample of the texts, answers are taken
to be as long as they may be. Where a run of the probe is there, its own plan is held against what it really took, and
scales the new one. Nothing here imports torch or fetches anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench import organisms
from workbench.core.errors import WorkbenchError
from workbench.core.tables import read_table
from workbench.runs.folder import Run

SAMPLE = 200  # texts that are counted in full; the rest are taken to be like them
CHARACTERS = 4  # to a token, where there is no tokenizer to ask


@dataclass(frozen=True)
class Plan:
    """``prompts`` and ``tokens`` that are fed or generated; ``stored``: bytes of activations that are kept in the
    store."""

    prompts: int
    tokens: int
    stored: int = 0


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
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder is not None else None
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    config = config | (config.get("text_config") or {})

    def number(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    return Facts(
        folder,
        number("num_hidden_layers", "n_layer"),
        number("hidden_size", "n_embd"),
        number("num_attention_heads", "n_head"),
        number("max_position_embeddings", "n_positions") or 2048,
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
    """What a run will feed and keep; None for a probe that no plan is known of, and for a model that is not here
    yet."""
    about = facts(model)
    if probe not in PLANS or about is None:
        return None
    return PLANS[probe](config, data, about)


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


# ---- the plans


def _retrieval(config: Any, data: Path | None, model: Facts) -> Plan:
    rows = read_table(data, what="needles").height if data is not None else 0
    if isinstance(config.needles, int):
        rows = min(rows, config.needles) or config.needles
    longest = min(50_000, model.context)
    lengths = (
        config.lengths
        if config.lengths != "auto"
        else [longest - i * (longest - min(1000, longest // 5)) // 19 for i in range(20)]
    )
    trials = rows * len(config.depths) * len(lengths)
    sets = [k for k in set(config.mask_k) if 0 < k <= model.layers * model.heads // 2]
    passes = (1 + len(sets) * (1 + config.random_draws)) if sets else 0
    masked = min(config.mask_trials, trials) * passes
    return Plan(trials, rows * len(config.depths) * sum(lengths) + (trials + masked) * config.max_new_tokens)


def _depth(config: Any, data: Path | None, model: Facts) -> Plan:
    paths = [Path(name) for name in config.sets if Path(name).is_file()]
    if data is not None and not paths:
        paths = sorted(p for p in data.iterdir() if p.is_file()) if data.is_dir() else [data]
        paths = [p for p in paths if not config.sets or p.stem in config.sets or p.name in config.sets]
    if not paths:
        return None  # sets by a name that only the probe knows
    texts = [
        text
        for path in paths
        for text in read_table(path, required=("text",), what="concept")["text"].to_list()[: 2 * config.limit or None]
    ]
    conditions = 1 + bool(config.noise) + len(config.precision)
    rows = len(texts) * conditions
    size = 2 if config.store_dtype == "float16" else 4
    return Plan(rows, model.tokens(texts) * conditions, rows * model.layers * model.width * size)


def _conflict(config: Any, data: Path | None, model: Facts) -> Plan:
    names = dict(pair.split(":", 1) for pair in config.columns if ":" in pair)
    frame = read_table(data, required=("clean_prompt", "conflict_prompt"), columns=names, what="conflicts")
    items = min(config.limit or frame.height, frame.height)
    clean, conflict = (
        model.tokens(frame[name].to_list()) / frame.height for name in ("clean_prompt", "conflict_prompt")
    )
    tested = items * (1 - config.find_share)
    sets = 1 + 2 * len(config.prune_k) * (1 + config.random_draws)
    prompts = items + 3 * items * config.find_share + 2 * tested * sets + min(config.flow_items, items) * model.layers
    return Plan(round(prompts), round(prompts * (clean + conflict) / 2 + items * config.max_new_tokens))


def _selection(config: Any, data: Path | None, model: Facts) -> Plan:
    texts = _texts(data)
    for name in config.target:
        if Path(name).is_file():
            texts += _texts(Path(name))
    return Plan(len(texts), model.tokens(texts))


def _texts(path: Path | None) -> list[str]:
    frame = read_table(path, what="pool")
    columns = [name for name in ("text", "prompt", "response") if name in frame.columns]
    return [" ".join(str(part or "") for part in row) for row in frame.select(columns).iter_rows()]


def _branching(config: Any, data: Path | None, model: Facts) -> Plan:
    prompts = read_table(data, required=("prompt",), what="prompts")["prompt"].to_list()
    prompts = prompts[: config.max_prompts] if config.max_prompts else prompts
    times = {
        "pair": 2,
        "nudging": 3,
        "complexity": len(config.levels) * (1 + bool(config.compare)),
        "decoding": len(config.settings),
        "resampling": len({0, *config.cuts}) * config.originals,
    }.get(config.study, 1)
    rows = len(prompts) * times
    return Plan(rows, model.tokens(prompts) * times + rows * config.samples * min(config.max_new_tokens, model.context))


def _geometry(config: Any, data: Path | None, model: Facts) -> Plan:
    texts = read_table(data, required=("text",), what="text")["text"].to_list()[: config.limit]
    steps = [name for name in organisms.names() if "@step-" in name]
    times = sum(len(steps) if entry.endswith("@*") else 1 for entry in config.checkpoints) or 1
    length = min(config.max_length, model.context)
    tokens = min(model.tokens(texts), len(texts) * length)
    extra = min(config.loss_rows, len(texts)) * length * (1 + 2 * len(config.ablate)) if config.loss_rows else 0
    sites = model.layers if config.layers == "all" else 1
    return Plan(len(texts) * times, tokens * times + extra, len(texts) * times * sites * model.width * 4)


PLANS: dict[str, Callable[[Any, Path | None, Facts], Plan | None]] = {
    "retrieval-heads": _retrieval,
    "concept-depth": _depth,
    "knowledge-conflict": _conflict,
    "data-selection": _selection,
    "branching-factor": _branching,
    "representation-geometry": _geometry,
}
