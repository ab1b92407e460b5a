"""What is known to be wrong before the weights are read: prompts that do not go with tokenizer and context, and a
second model that is not there."""

from __future__ import annotations

import polars as pl

from probes.branching_factor.conditions import Lab
from probes.branching_factor.config import Config, read_prompts
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.before_loading import check_presence
from workbench.models.unloaded_model import UnloadedModel, open_unloaded


def check_engine(config: Config, context: Context) -> None:
    """Raise InputError for an engine that does not sample here, and for edits that the sampler cannot make."""
    if context.engine != "hf":
        raise InputError(f"branching-factor samples with the engine hf only, not {context.engine}.")
    if context.edits and config.sampler == "vllm":
        raise InputError("Edits are hooks on the Hugging Face model; with them, use sampler=hf.")


def prompts_of(config: Config, context: Context) -> pl.DataFrame:
    """The rows of the data file that are used."""
    prompts = read_prompts(config, context.data, tell=context.read_as)
    return prompts.head(config.max_prompts) if config.max_prompts else prompts


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for prompts that a model cannot be given, and for a second model that is not there."""
    check_engine(config, context)
    other = None
    if config.compare:
        check_presence(config.compare)
        other = open_unloaded(config.compare)
    lab = Lab(model, config, context, prompts_of(config, context), other)
    for each in lab.models:
        context.check()
        written = lab.condition(lab.label(each), each).ids
        for row, tokens in zip(lab.numbers, written):
            if each.too_long(len(tokens)):
                raise InputError(
                    f"{context.data}, row {row + 1}: the prompt has {len(tokens):,} tokens, more than the context of "
                    f"{each.name} ({each.context_length}); shorten it, or leave such rows out with long=skip."
                )
