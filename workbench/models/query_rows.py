"""Which query rows of a pass are read: where those that are asked for stand among its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.models.attention_weights import Rows
from workbench.models.running_pass import positions


@dataclass(frozen=True, eq=False)
class QueryColumns:
    """Query columns of a pass, [R] or [B, R], that are known to hold tokens: nothing looks whether they do, which takes
    a wait for the device."""

    at: torch.Tensor


# Whose rows are read: "last" (each sequence's last token), "all", token positions ([R], or [B, R] one set per sequence;
# negative ones count from the end), a stretch of query columns, or columns.
Queries = str | slice | QueryColumns | torch.Tensor | Sequence[int]


def query_rows(rows: Queries, queries: int) -> Rows:
    """Where the query rows asked for are in the pass in progress, found once for all its layers."""
    return positions().once(
        ("rows", rows if isinstance(rows, str) else id(rows), queries), lambda: _query_rows(rows, queries)
    )


def _query_rows(rows: Queries, queries: int) -> Rows:
    here = positions()
    if isinstance(rows, str):
        if rows == "all":
            return slice(0, queries)
        padded = here.whole is None or here.whole.side == "right"
        return here.last_columns()[:, None] if padded and queries > 1 else slice(queries - 1, queries)
    if isinstance(rows, slice):
        return slice(*rows.indices(queries)[:2])
    if isinstance(rows, QueryColumns):
        return rows.at
    return here.columns(torch.as_tensor(rows))


def rows_in_pass(rows: str | torch.Tensor | Sequence[int], queries: int) -> torch.Tensor:
    """Query columns [R] or [B, R] of the rows asked for, with -1 for positions that an earlier pass has read already (a
    cache holds them)."""
    here = positions()
    if isinstance(rows, str):
        every = torch.arange(queries, device=here.position_ids.device)
        return every if rows == "all" else here.last_columns()[:, None]
    columns, there = here.columns_here(torch.as_tensor(rows))
    return columns.masked_fill(~there, -1)
