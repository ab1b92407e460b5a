"""Where a logit comes from: the embedding, every layer's attention and MLP, every head, in parts that sum to it.

The final norm's scale is held at what it is at this position (`frozen_norm`), which makes the read-out linear: direct
logit attribution (Elhage et al. 2021; nostalgebraist 2020 for the read-out). What the norm and the unembedding add by
themselves, their biases, is a part of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.engine.frozen_norm import FrozenNorm, frozen_norm
from workbench.explorer.feature_paths import split_at, sum_of
from workbench.explorer.feature_readings import FeatureReading
from workbench.explorer.opened_model import Opened
from workbench.explorer.sub_blocks import SubBlocks, sub_blocks
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.models.architecture import weight_of
from workbench.models.model import Model
from workbench.models.sites import Site

WHOLE = (
    "embedding",
    "attention",
    "mlp",
    "feature",
    "error",
    "decoder_bias",
    "switched",
    "bias",
)  # parts that sum to the logit; "head" and "head_bias" are of attention


@dataclass(frozen=True, eq=False)
class Waterfall:
    """`parts`: one row each, part (embedding, attention, mlp, bias; head and head_bias, which sum to their layer's
    attention; with an autoencoder feature, error and decoder_bias in place of what its site is the sum of; switched:
    what switches of features change), layer (null for embedding and bias), head, feature, contribution (logits),
    share_of_norm (null but for bias: how much of it the final norm's bias makes). `total`: what all but head and
    head_bias sum to, the target's logit or difference of logits before any soft-cap. `scale`: what the final norm
    multiplies the stream by here. `capped`: the soft-cap that the model puts on its logits afterwards, or None."""

    parts: pl.DataFrame
    total: float
    scale: float
    capped: float | None


@torch.no_grad()
def waterfall(
    opened: Opened,
    ids: Sequence[int],
    target: Target,
    *,
    position: int = -1,
    switches: Switches = Switches(),
    features: FeatureReading | None = None,
) -> Waterfall:
    """The contributions to a target's logit (with `other` to the difference of two logits) at one position.

    With `features` (`read_features` of the same prompt and switches) what the autoencoder rebuilds is taken apart: the
    stream at its site is its features, its decoder's bias and its error in place of everything up to there; of an
    autoencoder of what attention or an MLP puts out, these stand in place of that part of its layer.

    Raises InputError where the stream is not the sum of what is added to it, where scores are not read off it, where
    the final norm is none that a fixed scale makes linear, and for an autoencoder that does not write to the stream."""
    model = opened.model
    model.require("final_norm_ends_stream", "logits_unembedded", for_what="the parts of a logit")
    found = sub_blocks(opened, ids, [position], switches)
    with opened.lock:
        frozen = frozen_norm(model.final_norm, found.final[0])
        reader, bias = _reader(model, target)
        of_norm = float(frozen.constant.to(reader.device, reader.dtype) @ reader)

        def read(values: torch.Tensor) -> torch.Tensor:
            """What states [..., width] are worth."""
            return (frozen.of(values).to(reader.device, reader.dtype) @ reader).double().cpu()

        rows = [] if features is None else _features(opened, features, found, position, read)
        gone = set() if features is None else replaced(features.autoencoder.sae.writes)
        embedding, attention, mlp = (read(part) for part in _whole(found))
        rows += [] if ("embedding", None) in gone else [_row("embedding", float(embedding))]
        for layer in range(model.n_layers):
            if ("attention", layer) not in gone:
                rows.append(_row("attention", float(attention[layer]), layer))
                rows += _heads(model, found, frozen, reader, layer)
            if ("mlp", layer) not in gone:
                rows.append(_row("mlp", float(mlp[layer]), layer))
            if layer in found.switched and ("switched", layer) not in gone:
                rows.append(_row("switched", float(read(found.switched[layer][0])), layer))
        rows.append(_row("bias", of_norm + bias) | {"share_of_norm": of_norm})
        total = float(model.normed(found.final[0]).to(reader.device, reader.dtype) @ reader) + bias
    parts = pl.DataFrame(rows, schema=SCHEMA)
    check_sum(parts, total, model)
    return Waterfall(parts, total, frozen.scale, model.anatomy.softcap)


SCHEMA = {
    "part": pl.String,
    "layer": pl.Int64,
    "head": pl.Int64,
    "feature": pl.Int64,
    "contribution": pl.Float64,
    "share_of_norm": pl.Float64,
}


def check_sum(parts: pl.DataFrame, total: float, model: Model) -> None:
    """Raise InputError unless the parts sum to the logit that the model itself reads off."""
    whole = parts.filter(pl.col("part").is_in(WHOLE))["contribution"]
    allowed = (1e-4 if not model.low_precision else 3e-2) * (1.0 + float(whole.abs().sum()))
    if not abs(float(whole.sum()) - total) <= allowed:
        raise InputError(
            f"The parts of the logit sum to {float(whole.sum()):.4g} and the logit is {total:.4g}: "
            f"{model.architecture} adds something to its residual stream that is none of them."
        )


def replaced(site: Site) -> set[tuple[str, int | None]]:
    """The parts in whose place the features of an autoencoder of `site` stand. Raises InputError for a site that is no
    sum of them."""
    if site.kind == "mlp_out":
        return {("mlp", site.layer)}
    return {*sum_of(site)}


def _features(
    opened: Opened,
    features: FeatureReading,
    found: SubBlocks,
    position: int,
    read: Callable[[torch.Tensor], torch.Tensor],
) -> list[dict]:
    """Rows of an autoencoder's features, what it adds without any, and its error."""
    site = features.autoencoder.sae.writes
    names, each, rest, error = split_at(opened, features, position)
    if site.kind == "head_out":  # the bias of the output projection is of no head
        rest = rest + found.attention[site.layer, 0] - (each.sum(0) + rest + error)
    rows = [_row("feature", value, site.layer) | {"feature": name} for name, value in zip(names, read(each).tolist())]
    return [*rows, _row("decoder_bias", float(read(rest)), site.layer), _row("error", float(read(error)), site.layer)]


def _row(part: str, contribution: float, layer: int | None = None, head: int | None = None) -> dict:
    found = {"part": part, "layer": layer, "head": head, "feature": None}
    return found | {"contribution": contribution, "share_of_norm": None}


def _whole(found: SubBlocks) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return found.embedding[0], found.attention[:, 0], found.mlp[:, 0]


def _reader(model: Model, target: Target) -> tuple[torch.Tensor, float]:
    """The direction [width] of the normed stream along which the target is read, and what is added to it."""
    weight, scale = weight_of(model.unembed), model.logit_scale or 1.0
    rows = weight[target.ids].float()
    bias = getattr(model.unembed, "bias", None)
    added = torch.zeros(len(rows)) if bias is None else bias[target.ids].float().cpu()
    signs = torch.tensor([1.0, -1.0])[: len(rows)]
    return (signs.to(rows.device) @ rows) * scale, float(signs @ added) * scale


def _heads(model: Model, found: SubBlocks, frozen: FrozenNorm, reader: torch.Tensor, layer: int) -> list[dict]:
    """Rows of the heads of one layer and of what its output projection and post-norm add by themselves; none where
    heads are not apart."""
    if found.heads is None or model.lacks("heads_add_up", layers=[layer]) is not None:
        return []
    z = found.heads[layer, 0]  # [H, d_head]
    weights = model.W_O(layer).to(z.device, z.dtype)
    wrote = torch.einsum("hd,hdw->hw", z, weights)
    block = model.anatomy.blocks[layer]
    if block.attention_writer in block.norms.values():
        raw = block.o_proj(z.flatten().to(model.dtype)[None])[0].to(z.dtype)
        wrote = frozen_norm(block.attention_writer, raw).of(wrote)
    each = (frozen.of(wrote).to(reader.device, reader.dtype) @ reader).double().cpu().tolist()
    rows = [_row("head", value, layer, head) for head, value in enumerate(each)]
    attention = float(frozen.of(found.attention[layer, 0]).to(reader.device, reader.dtype) @ reader)
    return [*rows, _row("head_bias", attention - sum(each), layer)]
