"""What is known to be wrong before the weights are read: questions, positions and a describing prompt that do not go
with the tokenizer and the context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probes.hopping.asking import ask, describing
from probes.hopping.config import Config
from probes.hopping.shipped import describe_prompt
from workbench.core.context import Context
from workbench.core.errors import InputError

if TYPE_CHECKING:
    from workbench.models.text_side import TextSide


def check_engine(context: Context) -> None:
    """Raise InputError for an engine that edits no pass."""
    if context.engine != "hf":
        raise InputError("hopping edits the forward pass, which only the engine 'hf' does; run it with --engine hf.")


def check(model: TextSide, config: Config, context: Context) -> None:
    """Raise InputError for questions that cannot be asked, a describing prompt that does not end with a token for its
    word, and layers that the model does not have."""
    from probes.hopping.descriptions import target_layers

    check_engine(context)
    ask(model, config, context)
    if config.describe != "off":
        prompt = describing(model, describe_prompt(config, model.name))
        target_layers(model, config)
        if model.too_long(len(prompt) + config.max_new_tokens):
            raise InputError(
                f"The describing prompt has {len(prompt)} tokens, which {model.name} (context {model.context_length}) "
                f"cannot go on from by {config.max_new_tokens}; give a shorter describe_prompt, or describe=off."
            )
