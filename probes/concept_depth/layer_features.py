"""What the probes read: the activations of every layer at one site and token of every text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import Config
from probes.concept_depth.written_texts import WrittenTexts, text_spans
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.sinks import note_watched, warn_of_lone_tokens
from workbench.engine.capture import capture
from workbench.models.model import Model
from workbench.models.sinks import parted, positions_for
from workbench.models.sites import Site


def layer_features(
    model: Model,
    concept: ConceptSet,
    written: WrittenTexts,
    config: Config,
    context: Context,
    *,
    again: bool = False,
) -> list[torch.Tensor]:
    """Features of every layer, [L][n, d] float32. Raises InputError for activations that are not finite; warns of
    layers that are the same for every text. `again`: they were read before, and warned of."""
    what = f"texts of {concept.name}"
    features = read_features(model, written.ids, config, context, what=what, written=written, again=again)
    if again:
        return features
    halved = config.store_dtype == "float16" and model.dtype != torch.float16
    for layer, x in enumerate(features):
        if halved and bool(x.isinf().any()) and not bool(x.isnan().any()):
            raise InputError(
                f"The activations at {config.site}.{layer} for the set '{concept.name}' are too large for "
                f"float16; set store_dtype=float32."
            )
        if not bool(x.isfinite().all()):
            raise InputError(
                f"The activations at {config.site}.{layer} are NaN or infinite for the set '{concept.name}'; "
                f"load the model in float32 or bfloat16."
            )
        if bool((x == x[0]).all()) and config.site != "resid_pre":
            context.warn(
                f"The features of {concept.name} at {config.site}.{layer} are the same for every text; the "
                f"probe can only guess."
            )
    return features


def read_features(
    model: Model,
    ids: Sequence[Sequence[int]],
    config: Config,
    context: Context,
    *,
    what: str = "texts",
    written: WrittenTexts | None = None,
    again: bool = False,
) -> list[torch.Tensor]:
    """Features of every layer, [L][n, d] float32, through the store: one pass, shared with any other run of the same
    texts. Sinks of these texts (`what`) are counted and warned of, unless they are read `again`. `written`: how they
    were written, where that is not as they are."""
    spans = text_spans(model, written) if written is not None and config.token in ("text", "mean") else None
    if config.token == "text":
        positions = "last" if spans is None else [[end - 1] for _, end in spans]
    else:
        positions = positions_for(config.token, watched=config.sinks == "leave_out", spans=spans)
    acts = capture(
        model,
        ids,
        layer_sites(model, config.site),
        positions=positions,
        dtype=config.store_dtype,
        edits=context.edits,
        store=context.store,
        context=context,
        engine=context.engine,
        max_tokens=model.tokens_at_once(config.max_tokens),
    )
    found = [parted(acts[Site(config.site, layer)], positions) for layer in range(model.n_layers)]
    if again:
        return [x.float() for x, _ in found]
    sinks = [said.numpy() for _, said in found if said is not None]
    if config.sinks == "leave_out" or config.token == "last":  # which reads the same with and without sinks
        warn_of_lone_tokens(context, sum(len(own) == 1 for own in ids), len(ids), what=what)
    note_watched(context, sinks, token=config.token, what=what)
    return [x.float() for x, _ in found]


def layer_sites(model: Model, kind: str) -> list[Site]:
    """The sites of one capture: every layer, and with resid_post the final norm too, as representation-geometry asks
    for them."""
    sites = [Site(kind, layer) for layer in range(model.n_layers)]
    return [*sites, Site("final_norm")] if kind == "resid_post" else sites
