"""What is known to be wrong before the weights are read: needles, lengths, passages and tasks that do not go with the
tokenizer and the context."""

from __future__ import annotations

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.needle_grid import read_grid
from probes.retrieval_heads.passages import needle_tasks, passage_tasks
from probes.retrieval_heads.task_answers import read_tasks
from probes.retrieval_heads.task_masking import task_prompts
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.unloaded_model import UnloadedModel


def check_engine(context: Context) -> None:
    """Raise InputError for an engine without attention rows."""
    if context.engine != "hf":
        raise InputError(
            "retrieval-heads reads attention rows, which only the engine 'hf' gives; run it with --engine hf."
        )


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for needles without their answer, and for prompts that the model cannot hold."""
    check_engine(context)
    grid = read_grid(model, config, context) if config.generates or not config.passages else None
    if config.score == "attention":
        context.check()
        if config.passages:
            passage_tasks(model, config)
        elif grid is not None:
            needle_tasks(model, config, grid)
    if config.tasks and config.masks:
        context.check()
        task_prompts(model, config, read_tasks(config.tasks, config.task_metric))
