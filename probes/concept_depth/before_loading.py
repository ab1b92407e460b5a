"""What is known to be wrong before the weights are read: sets and texts that do not go with tokenizer and context."""

from __future__ import annotations

from probes.concept_depth.config import Config
from probes.concept_depth.fed_sets import conditions_of, sets_of, write
from probes.concept_depth.written_texts import check_answers
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.unloaded_model import UnloadedModel


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for texts that are too long, empty or lack the token, for sets that cannot be split, and for
    answers that nobody could read."""
    if config.precision:
        check_engine(context)
    sets, _ = sets_of(model, config, context)
    for condition, noise, precision in conditions_of(config):
        for concept in sets if precision is None else ():
            context.check()
            written = write(model, concept, noise, config, context)
            asked = concept.classes and concept.answers is not None and context.engine == "hf"
            if condition == "clean" and config.causal != "off" and asked:
                check_answers(model, written)


def check_engine(context: Context) -> None:
    """Raise InputError for an engine whose weights cannot be rounded."""
    if context.engine != "hf":
        raise InputError("Other precisions need the weights on this machine; run with --engine hf.")
