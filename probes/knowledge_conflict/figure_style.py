"""How memory, context and other answers are drawn, and how many items a figure is of."""

from __future__ import annotations

from typing import Any

import polars as pl

from workbench.figures import style as theme
from workbench.figures.run_tables import maybe, summary_value

MEMORY = theme.Style(theme.BLUE)
CONTEXT = theme.Style(theme.RED, "solid", "square")
MIXED = theme.Style(theme.PURPLE, "solid", "diamond")
OTHER = theme.Style(theme.OCHRE, "solid", "diamond")
KINDS = (("memory", MEMORY), ("context", CONTEXT))


def items_of(run: Any, *, test: bool = False) -> str | int | None:
    """Subjects and items of the find split, on which heads are measured, or of the test split; the items alone where a
    run does not say their subjects."""
    split = "test" if test else "find"
    frame = maybe(run, "inputs", ("split",))
    rows = 0 if frame is None else frame.filter(pl.col("split") == split).height
    subjects = summary_value(run, f"subjects_{split}")
    if not rows:
        return None
    return rows if subjects is None else f"{subjects} subjects, {rows} items"
