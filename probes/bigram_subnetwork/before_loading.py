"""What is known to be wrong before the weights are read: too few texts, a mask file that is none."""

from __future__ import annotations

from probes.bigram_subnetwork.config import Config
from probes.bigram_subnetwork.stretches import texts_of
from workbench.core.context import Context
from workbench.core.paths import user_path
from workbench.engine.weight_masks import read_masks
from workbench.models.unloaded_model import UnloadedModel


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for texts without next tokens to judge, and for a mask file that is none."""
    texts_of(model, config, context)
    if config.mask:
        read_masks(user_path(config.mask))
