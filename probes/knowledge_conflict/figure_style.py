"""How memory, context and other answers are drawn, and how many items a figure is of."""

from __future__ import annotations

from typing import Any

import polars as pl

from workbench.figures import style as theme
from workbench.figures.run_tables import maybe

MEMORY = theme.Style(theme.BLUE)
CONTEXT = theme.Style(theme.RED, "solid", "square")
OTHER = theme.Style(theme.OCHRE, "solid", "diamond")
KINDS = (("memory", MEMORY), ("context", CONTEXT))


def items_of(run: Any, *, test: bool = False) -> int | None:
    """Items of the find split, on which heads are measured, or of the test split."""
    frame = maybe(run, "inputs", ("split",))
    if frame is None:
        return None
    rows = frame.filter((pl.col("split") == "test") if test else (pl.col("split") == "find"))
    return rows.height or None
