"""What is known to be wrong before the weights are read."""

from __future__ import annotations

from pathlib import Path

from probes.talking_heads.config import Config
from probes.talking_heads.short_run import check_model
from probes.talking_heads.tasks import read_rows, written_prompts
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.model_outline import Facts
from workbench.models.unloaded_model import UnloadedModel


def check_engine(context: Context) -> None:
    """Raise InputError for an engine without attention rows."""
    if context.engine != "hf":
        raise InputError(
            "talking-heads reads attention rows, which only the engine 'hf' gives; run it with --engine hf."
        )


def validate(config: Config, data: Path | None, facts: Facts | None = None) -> None:
    """Raise InputError for a data file that lacks a task or a column, and for a model without two layers."""
    read_rows(data, config)
    check_model(config, facts)


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for prompts that do not hold their words, or that the context does not hold."""
    check_engine(context)
    rows = read_rows(context.data, config)
    source = "the data" if context.data is None else Path(context.data).name
    written_prompts(model, config, rows, source, context)
