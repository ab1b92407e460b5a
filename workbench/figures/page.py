"""A figure no taller than its page: smaller panels in more columns, and what then does not fit is left out and named.

How many panels of which size are drawn is a `Packing`. What was left out or cut is kept in ``fig.layout.meta`` (the
keys of `FACTS`) for the caption.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.figures.plotly_text import read

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.figures.figure_geometry import FigureMeasures
    from workbench.figures.style import Preset

HIDDEN = [0, 5e-4]  # of a hidden axis: its empty ground is drawn over the others; below 1/4096 Plotly takes the whole
FACTS = ("left_out", "in_full", "trace_names", "thinned", "rows_left_out")


@dataclass(frozen=True)
class Packing:
    """``shown`` panels, the first ones. ``columns``: exactly so many side by side (None: as many as are wide enough).
    ``tallest``: the most that a panel may take, whatever its names need."""

    shown: int
    columns: int | None = None
    tallest: float | None = None


def packed(meta: dict, size: Preset, height: float | None, measure: Callable[[Packing], FigureMeasures]) -> Packing:
    """The packing of a figure: as it comes, where that fits its page (or the ``height`` that is asked for)."""
    panels = meta["panels"]
    natural = measure(Packing(len(panels)))
    limit = height or size.page
    if natural.height <= limit and natural.panel_height >= min(_least(panels, size), natural.panel_width):
        return Packing(len(panels))
    if height and len(panels) == 1:
        return Packing(1)
    for shown in range(len(panels), 0, -1):
        found = _fitting(meta, size, shown, limit, measure)
        if found:
            return found
    one = measure(Packing(1, 1))
    return Packing(1, 1, max(one.panel_height - (one.height - limit), 3 * size.font))


def _fitting(meta: dict, size: Preset, shown: int, limit: float, measure) -> Packing | None:
    """The number of columns in which the panels fit, of several that whose panels are large and have nearly the shape
    that is asked for."""
    best, off = None, math.inf
    for columns in range(1, shown + 1):
        found = measure(Packing(shown, columns))
        if columns > 1 and found.panel_width < 7.5 * size.tick:
            break
        tallest = found.panel_height - max(0.0, found.height - limit) / found.rows
        if tallest < _least(meta["panels"][:shown], size):
            continue
        shape = abs(math.log(tallest / found.panel_width / meta["aspect"]))
        loss = 2 * shape - math.log(tallest * found.panel_width)
        if loss < off:
            best, off = Packing(shown, columns, tallest), loss
    return best


def _least(panels: list[dict], size: Preset) -> float:
    """The least height of a panel: of several, so that the names on it can all be written."""
    names = max((len(p["y_ticks"]["values"]) for p in panels if p["y_ticks"] and p["y_ticks"]["keep"]), default=0)
    return max(4.2 * size.font, 1.2 * size.tick * names if len(panels) > 1 else 0)


def show_panels(fig: go.Figure, count: int, shown: int) -> None:
    """Hide all but the first panels, with what is drawn in them and written on them (in place); show those again that
    an earlier size had hidden."""
    hidden = {f"{kind}{i + 1}" for i in range(shown, count) for kind in "xy"}
    for trace in fig.data:
        if (trace.xaxis or "x") in hidden:
            trace.visible = False
    for written in (*fig.layout.annotations, *fig.layout.shapes):
        if {str(ref).split()[0] for ref in (written.xref, written.yref) if ref} & hidden:
            written.visible = False
    for i in range(count):
        for kind in "xy":
            along = fig.layout[f"{kind}axis{'' if i == 0 else i + 1}"]
            along.visible = i < shown
            if i >= shown:
                along.domain = HIDDEN


def show_all(fig: go.Figure) -> None:
    """Undo `show_panels`, before the figure is laid out for another size."""
    if (fig.layout.meta or {}).get("left_out"):
        for one in (*fig.data, *fig.layout.annotations, *fig.layout.shapes):
            one.visible = True


def in_words(meta: Any) -> list[str]:
    """What was left out of a figure or cut in it, in a sentence each."""
    said = []
    left, full = list(meta.get("left_out") or ()), list(meta.get("in_full") or ())
    if left:
        panels = len(meta["panels"])
        names = ", ".join(name or f"number {panels - len(left) + i + 1}" for i, name in enumerate(left))
        said.append(
            f"Drawn are the first {panels - len(left)} of {panels} panels, for want of room; the csv of the figure has "
            f"all of them, a wider size more. Left out: {names}"
        )
    if meta.get("rows_left_out"):
        said.append(f"The last {meta['rows_left_out']} of these rows are left out for want of room; the csv has them")
    if meta.get("thinned"):
        said.append(f"Only every {_ordinal(int(meta['thinned']))} name is written, for want of room")
    if full:
        said.append(f"Names that are cut, in full: {'; '.join(full)}")
    return said


def _ordinal(n: int) -> str:
    if n == 2:
        return "second"
    return f"{n}" + ("th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th"))


def plain(text: str) -> str:
    """A text of a figure as it reads."""
    return read(text.replace("<br>", " "))
