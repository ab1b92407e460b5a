"""The settings of a short run on a model, from what is known of it before it is loaded."""

from __future__ import annotations

from workbench.core.errors import InputError
from workbench.models.model_outline import Facts

LONGEST = 96  # tokens of the describing prompt with what follows it, on any tokenizer but one of letters


def example(model: Facts) -> dict[str, object]:
    """A short run: few questions of each set; on a model that is no organism also those that it does not know, and
    states put into few blocks. Raises InputError where the context holds no describing prompt."""
    if model.is_organism:
        return {"limit": 240, "items": 24, "shuffles": 10}
    if model.context is not None and model.context < LONGEST:
        raise InputError(
            f"The context of {model.name} ({model.context} tokens) cannot hold the prompt that describes states."
        )
    few = {"describe_layers": "same"} if model.layers > 8 else {}
    return {"limit": 24, "items": 4, "keep": "all", "shuffles": 5, **few}
