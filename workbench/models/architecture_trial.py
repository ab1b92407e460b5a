"""What an architecture allows, tried out on a small model made from its config alone: no weight is read.

What follows from how the modules are put together (whether there is attention, whether heads stay apart until the
output projection, whether attention can be edited) is the same in a model of two layers with random weights. What a
small model cannot be made of, or what needs code of the model's own, is not known, and nothing is refused for it."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.models.facts import ModelFacts

LAYERS = 2
SMALL = 512  # of what may have any size: vocabulary, MLP
MOST = 100_000_000  # parameters of a trial; beyond them nothing is tried
SIZES = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size")
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Tried:
    """What was found: why the architecture cannot be read at all (`refusal`, a sentence), else what holds of it."""

    name: str
    refusal: str | None = None
    facts: ModelFacts | None = None
    attention_interface: bool = True

    def why_not(self, needs: Iterable[str]) -> str | None:
        """Why what needs these `ModelFacts` cannot be done, in a sentence; None where it can."""
        if self.refusal is not None or self.facts is None:
            return self.refusal
        reason = next((said for need in needs if (said := self.facts.why_not(need))), None)
        return reason and f"The architecture {self.name} does not allow this: {reason}."


def try_out(folder: Path) -> Tried | None:
    """What the architecture of a model folder allows; None where that cannot be known from its config."""
    try:
        return _try_out(folder, (folder / "config.json").read_bytes())
    except OSError:
        return None


@lru_cache(maxsize=32)
def _try_out(folder: Path, _content: bytes) -> Tried | None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging as library

    verbosity = library.get_verbosity()
    library.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if getattr(config, "auto_map", None):
            return None
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            kind = f"{type(config).__name__.removesuffix('Config')}"
            return Tried(kind, refusal=f"The model '{folder.name}' is a {kind}, which is no causal language model.")
        return _tried(config)
    except Exception as error:  # configs and modelling code raise whatever they like: then it is not known
        logging.getLogger(__name__).debug("no trial of %s: %s", folder, one_line(error))
        return None
    finally:
        library.set_verbosity(verbosity)


def _made_small(config: Any, *, narrow: bool) -> Any:
    """The same config with two layers, few words and small MLPs; `narrow`: with fewer heads, of the same size."""
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        layers = next((getattr(part, name) for name in DEPTHS if isinstance(getattr(part, name, None), int)), None)
        fewer = min(layers or LAYERS, LAYERS)
        for name, value in list(vars(part).items()):
            if isinstance(value, list) and layers and len(value) == layers:
                setattr(part, name, value[:fewer])
        for name in DEPTHS:
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, fewer)
        if narrow:
            _make_narrow(part)
        for name in ("vocab_size", *SIZES):
            if isinstance(value := getattr(part, name, None), int) and value > SMALL:
                setattr(part, name, SMALL)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(part, name, None) is not None:
                setattr(part, name, 0)
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def _make_narrow(part: Any) -> None:
    """Two key/value heads with their query heads, where the config speaks of heads in the usual words."""
    heads, width = getattr(part, "num_attention_heads", None), getattr(part, "hidden_size", None)
    groups = getattr(part, "num_key_value_heads", None) or heads
    if not (isinstance(heads, int) and isinstance(width, int) and isinstance(groups, int)):
        return
    if groups <= 2 or heads % groups or width % heads:
        return
    fewer = 2 * heads // groups
    part.hidden_size, part.num_attention_heads = width // heads * fewer, fewer
    if getattr(part, "num_key_value_heads", None):
        part.num_key_value_heads = 2


def _tried(config: Any) -> Tried | None:
    """Whether it can be mapped, by modules without weights; then what holds of it, by a narrow model where one can be
    made, else by one as wide as it is, unless that is too large."""
    import torch
    from transformers import AutoModelForCausalLM

    from workbench.models.architecture import find_anatomy

    wide = _made_small(copy.deepcopy(config), narrow=False)
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(wide)
    name = type(bare).__name__
    try:
        find_anatomy(bare)
    except InputError as error:
        return Tried(name, refusal=str(error))
    with contextlib.suppress(Exception):  # not every architecture can be made narrow
        return _observed(_made_small(copy.deepcopy(config), narrow=True), name)
    return _observed(wide, name)


def _observed(config: Any, name: str) -> Tried | None:
    """What holds of a model of random weights; None for one that is too large to be made. Raises what wrapping it
    raises."""
    import torch
    from transformers import AutoModelForCausalLM

    from workbench.models.loading import wrap

    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    if sum(parameter.numel() for parameter in bare.parameters()) > MOST:
        return None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model = wrap(AutoModelForCausalLM.from_config(config, dtype=torch.float32), name=name)
    return Tried(name, facts=model.facts, attention_interface=model.attention_interface)
