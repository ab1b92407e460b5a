"""What is known to be wrong before the weights are read: words that the tokenizer cannot write, prompts that are too
long, texts that cannot be read."""

from __future__ import annotations

from probes.latent_language.config import Config
from probes.latent_language.fitted_lenses import translator_ids
from probes.latent_language.prepared import prepare
from workbench.core.context import Context
from workbench.models.unloaded_model import UnloadedModel


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for what tokenizer and context say against the run."""
    ready = prepare(model, config, context)
    if "tuned" in config.lenses:
        translator_ids(model, ready, config, context)
