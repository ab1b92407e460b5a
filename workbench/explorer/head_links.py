"""Links from one head to a later one, as runs name them: what the grid of heads draws as arrows.

Which tables hold links each probe declares (`head_links`)."""

from __future__ import annotations

import polars as pl

from workbench.core.errors import InputError
from workbench.core.registry import LINK_ENDS
from workbench.explorer.head_sets import probe_of
from workbench.runs.folder import Run

MOST = 12  # arrows that can still be told from each other
SCHEMA = dict.fromkeys(LINK_ENDS, pl.Int64) | {"weight": pl.Float64}


def links_of(run: Run, *, most: int = MOST) -> tuple[pl.DataFrame, str]:
    """The ``most`` strongest links of a run, one for each pair of heads, with their ``weight``, the strongest first;
    and what the weight is called. No rows where its probe declares none, or the table cannot be read."""
    probe = probe_of(run)
    for table, (weight, *which) in ({} if probe is None else probe.head_links).items():
        if table not in run.tables:
            continue
        try:
            frame = run.table(table)
        except InputError:
            continue
        if not {*LINK_ENDS, weight, *which} <= set(frame.columns):
            continue
        for column in which:
            frame = frame.filter(pl.col(column).fill_null(False))
        frame = frame.filter(pl.col(weight).is_finite()).sort(weight, descending=True, maintain_order=True)
        frame = frame.unique(list(LINK_ENDS), keep="first", maintain_order=True).head(most)
        ends = (pl.col(name).cast(pl.Int64) for name in LINK_ENDS)
        return frame.select(*ends, pl.col(weight).cast(pl.Float64).alias("weight")), weight.replace("_", " ")
    return pl.DataFrame(schema=SCHEMA), ""
