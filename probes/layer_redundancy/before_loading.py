"""What is known to be wrong before the weights are read: texts and numbers of modules that do not go with the model."""

from __future__ import annotations

from probes.layer_redundancy.config import Config
from probes.layer_redundancy.drop_orders import check_sizes
from probes.layer_redundancy.halves import read_halves
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.evaluation import encode_choices
from workbench.models.unloaded_model import UnloadedModel


def check_engine(context: Context) -> None:
    """Raise InputError for an engine in which modules cannot be left out."""
    if context.engine != "hf":
        raise InputError(
            "layer-redundancy leaves modules out of passes, which only the engine 'hf' can; run it with --engine hf."
        )


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for texts too few or too short, and for numbers that leave no module."""
    check_engine(context)
    if model.n_layers:
        check_sizes(config, model.n_layers, context.warn)
    read_halves(model, config, context)
    if config.choices:
        encode_choices(model, config.choices)
