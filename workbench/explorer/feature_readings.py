"""The features of an autoencoder on one prompt: which are active at which token, and what share of it they rebuild."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.engine.hf import stream
from workbench.explorer.autoencoders import Autoencoder
from workbench.explorer.opened_model import Opened
from workbench.explorer.switches import Switches, edits_of
from workbench.models.sites import Site
from workbench.sae.feature_edits import check_feature
from workbench.sae.sparse_rows import Rows
from workbench.sae.written_parts import parts, rebuilt

SCHEMA = {
    "position": pl.Int64,
    "feature": pl.Int64,
    "activation": pl.Float64,
    "share": pl.Float64,
    "error": pl.Float64,
    "norm": pl.Float64,
}
AT_ONCE = 32  # tokens whose features are taken apart at once


@dataclass(frozen=True, eq=False)
class FeatureReading:
    """One pass over one prompt. `x` [T, …]: what the autoencoder read, `y` [T, …]: what it rebuilds (the same, but for
    a transcoder), `final` [T, width]: the stream after the last layer; float32. `rows`: the active features of every
    token. `counted` [T]: tokens that an autoencoder is trained on, BOS in front is none."""

    autoencoder: Autoencoder
    ids: tuple[int, ...]
    x: torch.Tensor
    y: torch.Tensor
    final: torch.Tensor
    rows: Rows
    counted: tuple[bool, ...]
    table: pl.DataFrame

    @cached_property
    def explained(self) -> float | None:
        """Share of the variance of the counted tokens that is rebuilt; None where nothing is rebuilt, or they do not
        differ."""
        counted = torch.tensor(self.counted)
        errors = [e for e, own in zip(self._errors, self.counted) if own and e is not None]
        y = self.y[counted.to(self.y.device)].double().flatten(1)
        total = float((y - y.mean(0)).square().sum()) if len(y) else 0.0
        return 1 - sum(e**2 for e in errors) / total if total and len(errors) == len(y) else None

    @property
    def _errors(self) -> list[float | None]:
        return self.table.group_by("position").agg(pl.col("error").first()).sort("position")["error"].to_list()

    def activation(self, feature: int) -> torch.Tensor:
        """Of one feature at every token, [T]."""
        check_feature(self.autoencoder.sae, feature)
        found = torch.zeros(self.rows.n, device=self.rows.value.device)
        own = self.rows.feature == feature
        found[self.rows.row[own]] = self.rows.value[own]
        return found

    def most_active(self, position: int | None = None, *, most: int = 24) -> list[int]:
        """Features by their activation at one token, or by their largest one at the counted tokens; the smaller number
        first where two are equal."""
        if position is None:
            counted = [i for i, own in enumerate(self.counted) if own]
            found = self.table.filter(pl.col("position").is_in(counted))
        else:
            found = self.table.filter(pl.col("position") == position % len(self.ids))
        best = found.drop_nulls("feature").group_by("feature").agg(pl.col("activation").max())
        return best.sort(["activation", "feature"], descending=[True, False])["feature"].head(most).to_list()


@torch.no_grad()
def read_features(
    opened: Opened, ids: Sequence[int], autoencoder: Autoencoder, switches: Switches = Switches()
) -> FeatureReading:
    """Run the prompt once, with the switches, and encode every token.

    `table`: one row per token and active feature (a token without any has one with nulls): position, feature,
    activation, share (of what the token's features rebuild together, by projection on it: the shares of a token sum to
    1; null where nothing is rebuilt), error (length of what is not rebuilt) and norm (length of what there is to
    rebuild)."""
    model, sae = opened.model, autoencoder.sae
    last = Site("resid_post", model.n_layers - 1)
    wanted = list(dict.fromkeys([sae.site, sae.writes, last]))
    with opened.lock:
        edits = edits_of(opened, switches, ids)
        passes = stream(model, [list(ids)], wanted, positions="all", edits=edits, dtype=torch.float32)
        _, found, _ = next(iter(passes))
        x, y = found[sae.site], found[sae.writes]
        if not bool(x.isfinite().all()):
            raise InputError(f"{sae.site} of {model.name} is NaN or infinite on this prompt: no feature can be read.")
        rows = sae.encode(x)
        table = _table(sae, rows, x, y)
    counted = tuple(not (model.prepends_bos and i == 0) for i in range(len(ids)))
    return FeatureReading(autoencoder, tuple(ids), x, y, found[last], rows, counted, table)


def _table(sae, rows: Rows, x: torch.Tensor, y: torch.Tensor) -> pl.DataFrame:
    norm = y.flatten(1).norm(dim=-1).double().cpu().tolist()
    error: list[float | None] = [None] * rows.n
    share: list[float | None] = [None] * len(rows.row)
    if sae.reconstructs:
        off = y - rebuilt(sae, rows, x).reshape(y.shape)
        error = off.flatten(1).norm(dim=-1).double().cpu().tolist()
        share = _shares(sae, rows, x)
    frame = pl.DataFrame(
        {
            "position": rows.row.cpu().tolist(),
            "feature": rows.feature.cpu().tolist(),
            "activation": rows.value.double().cpu().tolist(),
            "share": share,
        },
        schema={name: SCHEMA[name] for name in ("position", "feature", "activation", "share")},
    )
    tokens = pl.DataFrame(
        {"position": list(range(rows.n)), "error": error, "norm": norm},
        schema={name: SCHEMA[name] for name in ("position", "error", "norm")},
    )
    found = tokens.join(frame, on="position", how="left").select(list(SCHEMA))
    return found.sort(["position", "activation", "feature"], descending=[False, True, False], nulls_last=True)


def _shares(sae, rows: Rows, x: torch.Tensor) -> list[float]:
    """c · R / |R|² of every entry's part c, R being the sum of its token's parts."""
    found = torch.zeros(len(rows.row), dtype=torch.float64)
    for start in range(0, rows.n, AT_ONCE):
        inside = ((rows.row >= start) & (rows.row < start + AT_ONCE)).nonzero()[:, 0]
        here = x[start : start + AT_ONCE]
        own = Rows(rows.row[inside] - start, rows.feature[inside], rows.value[inside], len(here), rows.width)
        each = parts(sae, own, here)[0].double().flatten(1)
        whole = torch.zeros(len(here), each.shape[-1], dtype=torch.float64, device=each.device)
        whole.index_add_(0, own.row, each)
        size = whole.square().sum(-1)
        along = (each * whole[own.row]).sum(-1)
        found[inside.cpu()] = torch.where(size[own.row] > 0, along / size[own.row], torch.nan).cpu()
    return found.tolist()
