"""The settings of a short run on a model."""

from __future__ import annotations

from probes.talking_heads.config import Config
from workbench.core.errors import InputError
from workbench.models.model_outline import Facts

SHORT_CONTEXT = 200  # tokens; a shorter one may not hold every prompt that ships


def example(model: Facts) -> dict[str, object]:
    """A short run."""
    if model.is_organism:
        return {"sweep": "context", "together": 6, "random_draws": 10, "scales": (-1.0, 0.0, 0.5, 1.0, 2.0)}
    short = {"long": "skip"} if model.context is not None and model.context < SHORT_CONTEXT else {}
    return short | {
        "sequences": 12,
        "limit": 12,
        "random_draws": 5,
        "receivers_each": 1,
        "ablate": 2,
        "scales": (0.0, 1.0, 2.0),
    }


def check_model(config: Config, facts: Facts | None) -> None:
    """Raise InputError for a model that is known to have no head before another, and for receivers and offsets that it
    does not have."""
    if facts is None:
        return
    if facts.layers == 1:
        raise InputError(f"{facts.name} has one layer, so no head comes before another.")
    for layer, head in config.chosen_receivers or ():
        if (facts.layers and layer >= facts.layers) or (facts.heads and head >= facts.heads):
            raise InputError(
                f"The receiver {layer}.{head} does not exist: {facts.name} has layers 0–{facts.layers - 1} and heads "
                f"0–{facts.heads - 1}."
            )
    if facts.context is not None and max(config.offsets) >= facts.context:
        raise InputError(
            f"No two tokens of {facts.name} are {max(config.offsets)} tokens apart: its context holds {facts.context}; "
            f"give smaller 'offsets'."
        )
    if not facts.attention_interface:
        raise InputError(
            f"{facts.name} computes attention outside the interface of transformers; the weights of its heads cannot "
            f"be read."
        )
