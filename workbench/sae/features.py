"""What a feature of a sparse autoencoder means: where it fires, how often, which tokens it promotes.

Every function takes features as indices and returns plain tables or arrays; the data-selection probe and the explorer
use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import torch
from torch import nn

from workbench.engine.hf import stream
from workbench.engine.passes import Pass, with_pass
from workbench.models.float32 import in_float32, unembedded
from workbench.models.host_copies import Resident, arrivals, arriving
from workbench.models.model import Model
from workbench.sae.load import Sae
from workbench.sae.sparse_rows import Rows

STREAM_KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # what is added to the residual stream


@with_pass
def encoded(
    model: Model, sae: Sae, ids: Sequence[Sequence[int]], *, run: Pass
) -> Iterator[tuple[list[int], Rows, torch.Tensor]]:
    """Yield (row indices, token rows of the batch, owner [tokens]): owner[t] is the place in the row indices of the
    text of token t."""
    for indices, found, batch in stream(model, ids, [sae.site], positions="all", run=run):
        owner = torch.repeat_interleave(torch.arange(len(indices)), torch.tensor(batch.sizes))
        rows = sae.encode(found[sae.site])
        yield indices, rows, arriving(owner, rows.row.device)


@with_pass
def token_activations(
    model: Model, sae: Sae, ids: Sequence[Sequence[int]], features: Sequence[int], *, run: Pass
) -> list[np.ndarray]:
    """Activation of each chosen feature on every token: one float32 array [length, features] per text, none for no
    texts."""
    if not ids:
        return []
    place = Resident(column_of(features, sae.d_sae))

    def dense() -> Iterator[tuple[list[int], dict[int, torch.Tensor]]]:
        for indices, rows, _ in encoded(model, sae, ids, run=run):
            column = place.on(rows.feature.device)[
                rows.feature
            ]  # -1, the last of a row, holds all that is not asked for
            found = torch.zeros(rows.n, len(features) + 1, device=rows.value.device)
            found[rows.row, column] = rows.value
            yield indices, {0: found[:, :-1].contiguous()}

    out: list[np.ndarray] = [None] * len(ids)  # pyright: ignore[reportAssignmentType]
    for indices, found in arrivals(dense()):
        for i, block in zip(indices, found[0].split([len(ids[i]) for i in indices])):
            out[i] = block.numpy()
    return out


def column_of(features: Sequence[int], width: int) -> torch.Tensor:
    """[width]: the place of a feature in `features`, −1 for the others."""
    place = torch.full((width,), -1, dtype=torch.int64)
    place[torch.as_tensor(list(features), dtype=torch.int64)] = torch.arange(len(features))
    return place


def passage(
    model: Model, ids: Sequence[int], activation: np.ndarray, *, counted: Sequence[bool] | None = None, window: int = 24
) -> dict:
    """The part of a text around the token on which a feature fires most: start, tokens (as they read), activations,
    peak.

    `activation` [length]; tokens that are not `counted` cannot be the peak."""
    allowed = np.ones(len(ids), bool) if counted is None else np.asarray(counted, bool)
    peak = int(np.where(allowed, activation, -1.0).argmax())
    start = max(0, min(peak - window * 2 // 3, len(ids) - window))
    stop = min(len(ids), start + window)
    return {
        "start": start,
        "peak": peak,
        "tokens": model.token_strings(ids[start:stop]),
        "activations": activation[start:stop].astype(np.float32).tolist(),
        "activation": float(activation[peak]),
    }


def logit_effect(model: Model, sae: Sae, features: Sequence[int], *, top: int = 8) -> pl.DataFrame:
    """The tokens that each feature's decoder direction raises and lowers most, through the final norm's gain and the
    unembedding.

    Columns feature, promotes, promoted_by, suppresses, suppressed_by (lists, strongest first). It is the direct path at
    unit activation, without the norm's division (which scales all tokens alike); empty for sites that do not write to
    the stream."""
    rows = []
    if sae.writes.kind in STREAM_KINDS:
        with torch.no_grad():
            direction = (
                sae.directions()[torch.as_tensor(list(features), dtype=torch.int64, device=sae.inner.W_dec.device)]
                .to(model.unembed.weight.device)
                .float()
            )
            if isinstance(model.final_norm, nn.LayerNorm):
                direction = direction - direction.mean(-1, keepdim=True)
            direction = direction * norm_gain(model)
            if model.low_precision:
                effect = unembedded(model.unembed, direction, model.dtype, bias=False)
            else:
                effect = direction @ model.unembed.weight.float().T
        for feature, row in zip(features, effect):
            high, low = row.topk(min(top, len(row))), (-row).topk(min(top, len(row)))
            rows.append(
                (
                    int(feature),
                    model.token_strings(high.indices.tolist()),
                    high.values.tolist(),
                    model.token_strings(low.indices.tolist()),
                    (-low.values).tolist(),
                )
            )
    schema = {
        "feature": pl.Int64,
        "promotes": pl.List(pl.String),
        "promoted_by": pl.List(pl.Float64),
        "suppresses": pl.List(pl.String),
        "suppressed_by": pl.List(pl.Float64),
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def norm_gain(model: Model) -> torch.Tensor:
    """The gain [width] of the final norm, read off its action on a vector of zero mean and unit variance (whatever its
    own parameters mean)."""
    weight = next(model.final_norm.parameters(), model.unembed.weight)
    probe = torch.ones(model.width, device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
    probe[1::2] = -1
    with torch.no_grad():
        return (
            ((in_float32(model.final_norm, probe[None]) - in_float32(model.final_norm, -probe[None]))[0] / 2 * probe)
            .float()
            .to(model.unembed.weight.device)
        )
