"""What is said under a figure: what it shows, of what, how many, and what is not drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.wording import origin
from workbench.figures import page
from workbench.figures import style as theme
from workbench.figures.run_tables import info, model_name
from workbench.stats.clusters import FEWEST

if TYPE_CHECKING:
    import plotly.graph_objects as go


def caption(run: Any, fig: go.Figure) -> str:
    """What a reader must know of a figure, as it is dressed: what it shows, what is not drawn of it, where it was
    imported from if it was, model and revision, data, seed, n, interval."""
    meta = fig.layout.meta if isinstance(fig.layout.meta, Mapping) else {}
    sentences = [str(meta.get("title") or "").rstrip(".")]
    if meta.get("note"):
        sentences.append(str(meta["note"]).rstrip("."))
    sentences += [*page.in_words(meta), *_not_drawn(fig)]
    imported = origin(run.info or {})
    if imported:
        sentences.append(f"Imported from {imported}, not computed here")
    model = f"Model: {model_name(run)}" if info(run, "model", "name") or not imported else "Model: not stated"
    revision = info(run, "model", "revision")
    model += f", revision {revision}" if revision else ""
    adapter = info(run, "model", "adapter", "path")
    model += f", with the adapter {Path(str(adapter)).name} merged" if adapter else ""
    fingerprint = info(run, "model", "fingerprint")
    model += f", weights {str(fingerprint)[:12]}" if fingerprint else ""
    dtype = info(run, "model", "dtype")
    sentences.append(model + (f", {str(dtype).removeprefix('torch.')}" if dtype else ""))
    source = info(run, "data", "path") or info(run, "data", "name")
    if source:
        rows = info(run, "data", "rows")
        data = f"Data: {Path(str(source)).name}" + (f", {rows} rows" if rows else "")
        mark = info(run, "data", "fingerprint")
        sentences.append(data + (f" ({str(mark)[:12]})" if mark else ""))
    seed = info(run, "seed")
    if seed is not None:
        sentences.append(f"Seed {seed}")
    if meta.get("n") not in (None, ""):
        rows = meta.get("rows")
        sentences.append(f"n = {meta['n']}" + (f" ({rows} rows)" if rows not in (None, "", meta["n"]) else ""))
    if meta.get("interval"):
        sentences.append(_interval(fig, str(meta["interval"]).rstrip(".")))
    name = info(run, "id")
    if name:
        sentences.append(f"Run {name}")
    return ". ".join(p for p in sentences if p) + "."


def _interval(fig: go.Figure, what: str) -> str:
    """What the bands and bars are; of a figure that has none, why."""
    drawn, missing = _intervals(fig)
    if not drawn:
        return f"No interval is drawn ({what}): none could be given, as below {FEWEST} independent clusters"
    if missing:
        return f"Intervals, where one could be given (not below {FEWEST} independent clusters): {what}"
    return f"Intervals: {what}"


def _intervals(fig: go.Figure) -> tuple[int, int]:
    """How many points have a bar, or bands are drawn, and how many bars are missing."""
    drawn = missing = 0
    for trace in fig.data:
        if trace.type == "scatter" and trace.fill == "toself":
            drawn += bool(np.isfinite(_numbers(trace.y)).any())
        for error in (trace.error_x, trace.error_y):
            ends = _numbers(error.array)
            drawn, missing = drawn + int(np.isfinite(ends).sum()), missing + int(np.isnan(ends).sum())
    return drawn, missing


def _not_drawn(fig: go.Figure) -> list[str]:
    """Points and cells without a value."""
    points = cells = 0
    for trace in fig.data:
        if trace.visible is False:
            continue
        if trace.type == "bar" and trace.base is not None:
            colour = trace.marker.color
            cells += len(trace.x) if isinstance(colour, str) and colour in (theme.MISSING, theme.MISSING_DARK) else 0
        elif trace.type == "bar" or (trace.type == "scatter" and trace.fill != "toself" and trace.mode != "text"):
            x, y = _numbers(trace.x), _numbers(trace.y)
            points += int((np.isnan(x) != np.isnan(y)).sum()) if len(x) == len(y) else 0
    said = []
    if cells:
        said.append(f"Grey: {cells} {'cell' if cells == 1 else 'cells'} without a value")
    if points:
        said.append(f"Not drawn: {points} {'point' if points == 1 else 'points'} without a value")
    return said


def _numbers(values: Any) -> np.ndarray:
    """Values as float64, nothing and words as NaN."""
    if values is None:
        return np.empty(0)
    try:
        return np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        return np.array([v if isinstance(v, (int, float)) else np.nan for v in values], dtype=np.float64)
