"""What is known to be wrong before the weights are read: prompts, answers and texts that do not go with the
tokenizer and the context."""

from __future__ import annotations

from probes.knowledge_conflict.asking import asking
from probes.knowledge_conflict.baselines import instructed
from probes.knowledge_conflict.chosen_items import chosen_items, split_items
from probes.knowledge_conflict.config import ESSAYS, Config
from probes.knowledge_conflict.neutral_text import neutral_texts
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.unloaded_model import UnloadedModel


def check_engine(context: Context) -> None:
    """Raise InputError for an engine that edits no pass."""
    if context.engine != "hf":
        raise InputError(
            "knowledge-conflict edits the forward pass, which only the engine 'hf' does; run it with --engine hf."
        )


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for a file of which no item can be measured, prompts that are too long, and a neutral text
    without tokens."""
    check_engine(context)
    how = asking(model, config)
    items, _ = chosen_items(model, config, context, how)
    neutral_texts(model, config.neutral, essays=ESSAYS, otherwise=[item.clean for item in items])
    if config.keep == "all":  # else the model says which items are left
        instructed(config, context, how, split_items(items, config, context)["test"])
