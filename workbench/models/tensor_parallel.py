"""A model spread over the processes that torchrun started: each holds a part of every large matrix, and all run one
script. The stream is whole in each of them; heads and neurons are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.models.size import empty_model

if TYPE_CHECKING:
    from workbench.models.model import Model


def check_tensor_parallel(folder: Path, name: str, plan: str, *, device: Any = None, adapter: Any = None) -> None:
    """Raise InputError for a plan that is none, a device or an adapter beside it, a script that torchrun did not start,
    and a model that cannot be spread over its processes."""
    if plan != "auto":
        raise InputError(f"'{plan}' is not a tensor-parallel plan; use tp_plan='auto', the plan of the architecture.")
    if device is not None:
        raise InputError(f"tp_plan gives every process its own device, so device={device} cannot be had; leave it out.")
    if adapter is not None:
        raise InputError("An adapter is merged into whole matrices, which no process has with tp_plan; merge it first.")
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        raise InputError(
            "tp_plan spreads a model over the processes that torchrun starts, and it did not start this one; start the "
            "script with torchrun --nproc-per-node N, or use device='auto'."
        )
    model, count = empty_model(folder), int(os.environ["WORLD_SIZE"])
    if not model.supports_tp_plan:
        raise InputError(
            f"The model '{name}' cannot be spread over processes: transformers has no tensor-parallel plan for "
            f"{type(model).__name__}; use device='auto'."
        )
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if heads % count:
        raise InputError(
            f"The {heads} key/value heads of '{name}' cannot be shared by {count} processes; start as many as divide "
            f"them."
        )


def tensor_parallel_options() -> dict[str, Any]:
    """What `from_pretrained` is called with."""
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_plan="auto")}


def processes_of(hf: Any) -> int:
    """Over how many processes a model is spread."""
    return getattr(hf, "_tp_size", None) or 1


def restrict(model: Model) -> None:
    """Write down what does not hold of a model of which this process has a part."""
    count, facts = processes_of(model.hf), model.facts
    if count == 1:
        return
    for fact, what in (
        (facts.heads_apart, "its heads"),
        (facts.heads_add_up, "its heads"),
        (facts.attention_rows, "its heads"),
        (facts.attention_edits, "its heads"),
        (facts.neurons_whole, "its neurons"),
    ):
        fact[None] = f"tp_plan spreads {what} over {count} processes"
