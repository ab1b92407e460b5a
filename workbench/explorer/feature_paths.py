"""The direct paths of a feature: what it writes into the vocabulary, what the target loses without it, and which heads
and MLPs feed it.

Writing: the decoder direction through the final norm, its scale held at what it is at the token, and the unembedding.
Feeding: the pre-activation is linear in the stream once whatever the autoencoder takes from the token itself (its
scale, its mean) is held as it is, so it is the sum of what embedding, heads, MLPs and biases put into it.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.engine.frozen_norm import frozen_norm
from workbench.engine.patching import READ_OFF
from workbench.explorer.feature_readings import FeatureReading
from workbench.explorer.opened_model import Head, Opened
from workbench.explorer.sub_blocks import SubBlocks
from workbench.explorer.targets import Target
from workbench.models.float32 import in_float32
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.sae.feature_edits import check_feature
from workbench.sae.features import STREAM_KINDS
from workbench.sae.sparse_rows import Rows
from workbench.sae.written_parts import directions_at, encoder_rows, parts

STREAM = ("resid_pre", "resid_mid", "resid_post")
AT_ONCE = 1 << 24  # numbers of (features × vocabulary) held at once


def in_stream(model: Model, site: Site, values: torch.Tensor) -> torch.Tensor:
    """What values [k, …] at a site are in the residual stream, [k, width]. Raises InputError where they are not added
    to it as they are."""
    model.require("stream_adds_up", for_what="what features write to the residual stream")
    if site.kind in STREAM_KINDS:
        return values
    if site.kind == "head_out":
        block = model.anatomy.blocks[site.layer]
        model.require("heads_apart", "heads_add_up", for_what="what features of heads write", layers=[site.layer])
        if block.attention_writer not in block.norms.values():
            weights = model.W_O(site.layer).to(values.device, values.dtype)
            return torch.einsum("khd,hdw->kw", values.reshape(len(values), *weights.shape[:2]), weights)
    raise InputError(f"What is at {site} is not added to the residual stream of {model.name} as it is.")


def split_at(
    opened: Opened, found: FeatureReading, position: int
) -> tuple[pl.Series, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(features, what each adds [k, width], what the autoencoder adds without any, its error) at one token, in the
    residual stream; float32."""
    sae, model = found.autoencoder.sae, opened.model
    at = position % len(found.ids)
    features, values = found.rows.take(at)
    order = features.argsort()
    one = Rows(torch.zeros_like(features), features[order], values[order], 1, sae.d_sae)
    x, y = found.x[at : at + 1], found.y[at : at + 1]
    each, rest = parts(sae, one, x)
    each = each.reshape(len(each), *y.shape[1:])
    if sae.site_out is not None:  # what it aims at is without the mean where its convention is
        rest = rest + (y - sae.target(y))
    rest = rest.reshape(y.shape)
    error = y - rest - each.sum(0, keepdim=True)
    written = [in_stream(model, sae.writes, part) for part in (each, rest, error)]
    return pl.Series("feature", one.feature.tolist(), pl.Int64), written[0], written[1][0], written[2][0]


@torch.no_grad()
def feature_writes(
    opened: Opened, found: FeatureReading, feature: int, position: int = -1, *, k: int = 8
) -> pl.DataFrame:
    """What a feature writes into the vocabulary at one token along the direct path: id, text (null without a
    tokenizer), per_unit (the logit for one unit of activation, less its mean over the vocabulary, before any soft-cap,
    at the scale that the final norm has there), logit (times its activation there: 0 where it is off), side ("up" for
    the k most raised, "down" for the k most lowered)."""
    model, sae = opened.model, found.autoencoder.sae
    model.require(*READ_OFF, for_what="what a feature writes into the vocabulary")
    check_feature(sae, feature)
    at = position % len(found.ids)
    with opened.lock:
        direction = directions_at(sae, torch.tensor([feature], device=found.x.device), found.x[at])
        wrote = in_stream(model, sae.writes, direction.reshape(1, *found.y.shape[1:]))[0]
        frozen = frozen_norm(model.final_norm, found.final[at])
        gain = _unembed(model, frozen.of(wrote[None]))[0]
    gain = gain - gain.mean()  # a constant over the vocabulary changes no probability
    up, down = gain.topk(min(k, len(gain))), (-gain).topk(min(k, len(gain)))
    ids = [*up.indices.tolist(), *down.indices.tolist()]
    active = float(found.activation(feature)[at])
    return pl.DataFrame(
        {
            "id": ids,
            "text": pl.Series(
                [None] * len(ids) if model.tokenizer is None else model.token_strings(ids), dtype=pl.String
            ),
            "per_unit": gain[ids].double().tolist(),
            "logit": (gain[ids].double() * active).tolist(),
            "side": ["up"] * len(up.indices) + ["down"] * len(down.indices),
        }
    )


def _unembed(model: Model, normed: torch.Tensor) -> torch.Tensor:
    """The linear part of the unembedding, [n, width] → [n, V] float32."""
    zero = torch.zeros_like(normed[:1])
    head = model.unembed
    scores = in_float32(head, normed) - in_float32(head, zero)
    return scores.float() * (model.logit_scale or 1.0)


@torch.no_grad()
def feature_effects(opened: Opened, found: FeatureReading, target: Target, position: int = -1) -> pl.DataFrame:
    """The direct effect of every active feature on a target at one token: feature, activation, share, direct_effect,
    the target's value (log p in nats, or a difference of logits) less its value without what the feature writes there,
    all else as it is; the largest first."""
    model = opened.model
    model.require(*READ_OFF, for_what="direct effects of features")
    at = position % len(found.ids)
    with opened.lock:
        features, each, _, _ = split_at(opened, found, at)
        final = found.final[at]
        base = target.value(model.logits_from(final))
        step = max(1, AT_ONCE // model.vocab_size)
        effects = [base - target.value(model.logits_from(final - block)) for block in each.split(step)]
    effect = torch.cat(effects).double().cpu() if effects else torch.empty(0)
    mine = found.table.filter(pl.col("position") == at).select("feature", "activation", "share")
    table = pl.DataFrame(
        {"feature": features, "direct_effect": effect.tolist()}, schema_overrides={"direct_effect": pl.Float64}
    )
    joined = mine.join(table, on="feature", how="inner")
    return joined.sort([pl.col("direct_effect").abs(), "feature"], descending=[True, False])


@torch.no_grad()
def feature_sources(
    opened: Opened, found: FeatureReading, blocks: SubBlocks, feature: int, position: int = -1
) -> pl.DataFrame:
    """What a feature's pre-activation at one token is made of: part, layer, head, contribution (units of its
    activation). Parts are embedding, attention, mlp, switched (what switches of features change) and bias, which sum to
    the pre-activation; head and head_bias sum to their layer's attention. `blocks`: `sub_blocks` of all positions, with
    the same switches.

    The bias is the encoder's, less what it takes off the input, and a norm's own. Raises InputError for an autoencoder
    that reads neither the stream nor what attention or heads put out."""
    model, sae = opened.model, found.autoencoder.sae
    check_feature(sae, feature)
    at, site = position % len(found.ids), sae.site
    if len(blocks.positions) != len(found.ids):
        raise InputError("What feeds a feature needs what attention and MLPs add at every token of the prompt.")
    with opened.lock:
        weights, constants = encoder_rows(sae, torch.tensor([feature], device=found.x.device), found.x[at])
        w, constant = weights[0], float(constants[0])
        rows: list[tuple] = []
        for part, layer in sum_of(site):
            if part == "attention":
                rows += _attention(model, blocks, site, layer, at, w)
            elif part == "switched":
                rows += (
                    [("switched", layer, None, float(blocks.switched[layer][at] @ w))]
                    if layer in blocks.switched
                    else []
                )
            else:
                value = blocks.embedding[at] if part == "embedding" else blocks.mlp[layer, at]
                rows.append((part, layer, None, float(value @ w)))
        rows.append(("bias", None, None, constant))
        total = float(found.x[at].flatten() @ w) + constant
    schema = {"part": pl.String, "layer": pl.Int64, "head": pl.Int64, "contribution": pl.Float64}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    whole = table.filter(~pl.col("part").is_in(["head", "head_bias"]))["contribution"]
    allowed = (1e-4 if not model.low_precision else 3e-2) * (1 + float(whole.abs().sum()))
    if not abs(float(whole.sum()) - total) <= allowed:
        raise InputError(
            f"What feeds feature {feature} sums to {float(whole.sum()):.4g} and its pre-activation is {total:.4g}: "
            f"{model.architecture} adds something to {site} that is none of its parts."
        )
    return table


def sum_of(site: Site) -> list[tuple[str, int | None]]:
    """What a site is the sum of, in the order of the pass."""
    if site.kind in ("attn_out", "head_out"):
        return [("attention", site.layer)]
    if site.kind not in STREAM:
        raise InputError(
            f"What is at {site} is no sum of what heads write: what feeds a feature is known of the residual stream, "
            f"of attention and of heads."
        )
    last = site.layer if site.kind == "resid_post" else site.layer - 1
    found: list[tuple[str, int | None]] = [("embedding", None)]
    for layer in range(last + 1):
        found += [("attention", layer), ("mlp", layer), ("switched", layer)]
    return [*found, ("attention", site.layer)] if site.kind == "resid_mid" else found


def _attention(model: Model, blocks: SubBlocks, site: Site, layer: int, at: int, w: torch.Tensor) -> list[tuple]:
    """The rows of a layer's attention and of its heads."""
    each = None if blocks.heads is None else head_parts(model, blocks.heads[layer, at], site, layer)
    if site.kind == "head_out":
        values = [] if each is None else (each @ w).tolist()
        heads = [("head", layer, head, value) for head, value in enumerate(values)]
        return [("attention", layer, None, sum(values)), *heads]
    whole = float(blocks.attention[layer, at] @ w)
    if each is None:
        return [("attention", layer, None, whole)]
    values = (each @ w).tolist()
    heads = [("head", layer, head, value) for head, value in enumerate(values)]
    return [("attention", layer, None, whole), *heads, ("head_bias", layer, None, whole - sum(values))]


def head_parts(model: Model, z: torch.Tensor, site: Site, layer: int) -> torch.Tensor | None:
    """What each head, of outputs z [H, d_head], is at a site [H, d]; None where heads are not apart."""
    if site.kind == "head_out":
        apart = torch.zeros(len(z), *z.shape, device=z.device)
        apart[range(len(z)), range(len(z))] = z
        return apart.flatten(1)
    if model.lacks("heads_add_up", layers=[layer]) is not None:
        return None
    wrote = torch.einsum("hd,hdw->hw", z, model.W_O(layer).to(z.device, z.dtype))
    block = model.anatomy.blocks[layer]
    if block.attention_writer in block.norms.values():
        raw = block.o_proj(z.flatten().to(model.dtype)[None])[0].to(z.dtype)
        wrote = frozen_norm(block.attention_writer, raw).of(wrote)
    return wrote


@torch.no_grad()
def head_features(
    opened: Opened,
    found: FeatureReading,
    blocks: SubBlocks,
    head: Head,
    position: int = -1,
    *,
    features: Sequence[int] | None = None,
) -> pl.DataFrame:
    """Which features one head feeds at one token: feature, activation, contribution (what the head's output adds to
    the feature's pre-activation); the active features, or those given, the largest contribution first.

    Raises InputError for a head that does not exist or comes after the autoencoder's site."""
    model, sae, site = opened.model, found.autoencoder.sae, found.autoencoder.sae.site
    model.check_heads([head])
    at, (layer, number) = position % len(found.ids), head
    if ("attention", layer) not in sum_of(site):
        raise InputError(f"Head {layer}.{number} is not before {site}: it feeds none of the features there.")
    chosen = found.rows.take(at)[0].sort().values.tolist() if features is None else list(features)
    for feature in chosen:
        check_feature(sae, feature)
    with opened.lock:
        each = None if blocks.heads is None else head_parts(model, blocks.heads[layer, at], site, layer)
        if each is None:
            raise InputError(f"The heads of {model.name} do not write apart from each other in layer {layer}.")
        weights, _ = encoder_rows(sae, torch.tensor(chosen, dtype=torch.int64, device=found.x.device), found.x[at])
        values = (weights @ each[number]).double().tolist()
    active = [float(found.activation(feature)[at]) for feature in chosen]
    table = pl.DataFrame(
        {"feature": chosen, "activation": active, "contribution": values},
        schema={"feature": pl.Int64, "activation": pl.Float64, "contribution": pl.Float64},
    )
    return table.sort([pl.col("contribution").abs(), "feature"], descending=[True, False])
