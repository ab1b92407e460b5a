"""What is known to be wrong before the weights are read: an autoencoder, samples and targets that do not go with the
model."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from probes.data_selection.config import COVERAGE, Config, read_pool, read_target
from probes.data_selection.samples import labels_of, target_files, tokenize
from probes.data_selection.selection import eligible
from workbench import organisms
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.prompt_style import check_style, style_of
from workbench.models.sites import Site
from workbench.models.unloaded_model import UnloadedModel
from workbench.sae.before_loading import check_recorded


def check_possible(config: Config, context: Context) -> None:
    """Raise InputError for an engine that shows no tokens while they are computed, and for edits that training would
    leave out."""
    if context.engine != "hf":
        raise InputError(
            "data-selection encodes tokens while they are computed, which only the engine 'hf' allows; run it "
            "with --engine hf."
        )
    if config.finetune and context.edits:
        raise InputError("finetune=true trains the model as it is, without edits; leave out the edit, or finetune.")


def check(model: UnloadedModel, config: Config, context: Context) -> None:
    """Raise InputError for an autoencoder of another model, texts that are too long, targets of which no token counts,
    and a pool that is too small."""
    check_possible(config, context)
    check_style(model, style_of(config))
    source = autoencoder_of(model.name, config)
    if source is not None:
        check_recorded(source, model, site=None if config.site == "auto" else config.site)
    elif config.site != "auto":
        model.check_site(Site.parse(config.site))
    check_methods(config, model.name, has_features=source is not None)
    pool = read_pool(config, context.data, context.read_as)
    targets = {
        name: read_target(config, name, path, context.read_as)
        for name, path in target_files(config.target, model.name).items()
    }
    labels_of(pool, targets, config.label)
    if config.finetune:
        from probes.data_selection.held_out import split_examples

        targets, _ = split_examples(targets, config.finetune_held_out, context)
    _check_samples(model, config, pool, targets, context, fed=source is not None)


def autoencoder_of(model: str, config: Config) -> str | None:
    """The autoencoder whose features are asked for; None where there is none. Raises InputError where nothing is left
    to select by."""
    if config.sae == "none":
        return None
    if config.sae != "default":
        return config.sae
    shipped = organisms.autoencoder(model)
    if shipped is None and not config.baselines:
        raise InputError(
            f"No sparse autoencoder ships with {model}, and baselines is empty; train one with `workbench train-sae`, "
            f"give sae=FOLDER, or name a baseline."
        )
    return None if shipped is None else str(shipped)


def check_methods(config: Config, model: str, *, has_features: bool) -> None:
    """Raise InputError for what needs features where there are none."""
    if config.feature_effects and not has_features:
        raise InputError(
            "feature_effects switches features of an autoencoder off where it reads them, and there is none; give "
            "another sae, or feature_effects=0."
        )
    if config.diversity == COVERAGE and not has_features:
        raise InputError(
            f"diversity={COVERAGE} needs an autoencoder, and none ships with {model}; give sae=FOLDER, or use "
            f"diversity=near_duplicates."
        )


def _check_samples(
    model: UnloadedModel,
    config: Config,
    pool: pl.DataFrame,
    targets: dict[str, pl.DataFrame],
    context: Context,
    *,
    fed: bool,
) -> None:
    """The texts as the model reads them; `fed`: an autoencoder may have it that a BOS is left out, so that one token
    more fits."""
    limit = model.context_length
    if fed and limit is not None:
        model = replace(model, about=replace(model.about, context=limit + 1))
    options = {"tokens": config.tokens, "specials": config.specials, "style": style_of(config), "long": config.long}
    options |= {"check": context.check}
    read = {name: tokenize(model, table, what=f"target {name}", **options) for name, table in targets.items()}
    eligible(tokenize(model, pool, what="pool", **options), read, config, context)
