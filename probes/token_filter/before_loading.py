"""What is known to be wrong before the weights are read: needles, lengths, forced tokens and a run to compare with that
do not go with the tokenizer, the context or the layers."""

from __future__ import annotations

from pathlib import Path

from probes.token_filter.agreement import head_run, heads_of
from probes.token_filter.config import NEEDLES, Config
from probes.token_filter.short_run import check_model
from probes.token_filter.trials import first_rows, needle_file, needle_rows, read_trials
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.tables import read_text
from workbench.models.model_outline import Facts
from workbench.models.needle_prompts import check_answers
from workbench.models.unloaded_model import UnloadedModel


def validate(config: Config, data: Path | None, facts: Facts | None = None) -> None:
    """Raise InputError for needles that do not hold their answer, a haystack or a run that cannot be read, and lengths
    and layers that are known to be beyond the model."""
    source = needle_file(config, data)
    if source is not None:
        rows = needle_rows(config, source)
        # a model may ship with more than the project does
        if isinstance(config.needles, int) and source.resolve() != NEEDLES.resolve():
            first_rows(rows, config.needles, source)
        check_answers(rows, source)
    if config.haystack != "default":
        read_text(config.haystack, what="haystack")
    if config.retrieval not in ("answer", "none"):
        head_run(config.retrieval)
    check_model(config, facts)


def check_engine(context: Context) -> None:
    """Raise InputError for an engine without queries and keys."""
    if context.engine != "hf":
        raise InputError(
            "token-filter reads queries and keys, which only the engine 'hf' gives; run it with --engine hf."
        )


def check_layers(config: Config, layers: int) -> None:
    """Raise InputError for a filter layer that the model does not have, and a run to compare with on another model."""
    if isinstance(config.filter_layer, int) and config.filter_layer >= layers:
        raise InputError(f"filter_layer={config.filter_layer} does not exist: the model has layers 0–{layers - 1}.")
    if config.retrieval not in ("answer", "none"):
        heads_of(head_run(config.retrieval), layers, config.retrieval)


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for needles without their answer, and for prompts that the model cannot hold."""
    check_engine(context)
    check_layers(config, model.n_layers)
    read_trials(model, config, context)
