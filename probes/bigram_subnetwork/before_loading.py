"""What is known to be wrong before the weights are read: another engine, too few texts, a mask file that is
none."""

from __future__ import annotations

from probes.bigram_subnetwork.config import Config
from probes.bigram_subnetwork.stretches import texts_of
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.paths import user_path
from workbench.engine.weight_masks import read_masks
from workbench.models.unloaded_model import UnloadedModel


def check_engine(context: Context) -> None:
    """Raise InputError for an engine that cannot compute with other weights."""
    if context.engine != "hf":
        raise InputError(
            f"The bigram subnetwork masks weights, which the engine '{context.engine}' does not; run it with "
            f"--engine hf."
        )


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for another engine, texts without next tokens to judge, and a mask file that is none."""
    check_engine(context)
    texts_of(model, config, context)
    if config.mask:
        read_masks(user_path(config.mask))
