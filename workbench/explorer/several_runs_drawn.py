"""Several runs of a probe in one figure: how alike they rank the same rows, and their courses over the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from workbench.core.errors import InputError
from workbench.explorer.layer_curves import LayerCurve
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks
from workbench.runs.compare_several import RankAgreement


def agreement_figure(found: RankAgreement, names: Sequence[str], *, label: str) -> go.Figure:
    """Runs × runs, coloured by the rank correlation of what they say of the same rows; grey where there is none."""
    count = len(names)
    values = np.array([[np.nan if v is None else v for v in row] for row in found.rho], dtype=np.float64)
    custom = np.array(
        [
            [
                (traces.safe(a, 40), traces.safe(b, 40), f"{traces.number(values[i, j])} over {found.rows[i][j]} rows")
                for j, b in enumerate(names)
            ]
            for i, a in enumerate(names)
        ],
        dtype=object,
    )
    fig = sheet(
        title=f"Rank agreement of {label}",
        x_ticks=ticks(range(count), [str(i + 1) for i in range(count)], keep=True),
        y_ticks=ticks(range(count), [f"{i + 1}  {name}" for i, name in enumerate(names)], keep=True),
        cells=(count, count),
        note="Spearman's rho of each pair of runs, over the rows that both have",
    )
    labels = np.array([["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in values], dtype=object)
    traces.add_cells(
        fig,
        0,
        values,
        custom=custom,
        hover="%{customdata[0]}<br>%{customdata[1]}<br>Spearman %{customdata[2]}<extra></extra>",
        ends=(-1.0, 1.0),
        diverging=True,
        labels=labels,
        reverse=True,
    )
    traces.colour_scale(fig, (-1.0, 1.0), "Spearman", diverging=True)
    return dressed(fig)


def overlaid_curves(found: Sequence[LayerCurve], names: Mapping[str, str], *, column: str) -> go.Figure:
    """A panel for each thing that curves are of, in it a curve for each run (``names``: by run id) with its interval.

    Raises InputError where no curve is of the column."""
    mine = [curve for curve in found if curve.column == column]
    if not mine:
        raise InputError(f"None of the runs has a curve of '{column}' over the layers.")
    panels: dict[str, list[LayerCurve]] = {}
    for curve in mine:
        panels.setdefault(curve.of, []).append(curve)
    word = column.replace("_", " ")
    fig = sheet(
        [of or word for of in panels],
        title=f"{word.capitalize()} over the layers, by run",
        x="layer",
        y=word,
        interval="bands: the intervals that the runs give",
    )
    styles, seen = theme.sequence(names.values()), set()
    for i, curves in enumerate(panels.values()):
        for curve in curves:
            name = names[curve.run.id]
            ends = [pair or (np.nan, np.nan) for pair in curve.ends]
            known = any(curve.ends)
            traces.add_curve(
                fig,
                i,
                curve.layers,
                [np.nan if value is None else float(value) for value in curve.values],
                name=name,
                style=styles[name],
                low=[low for low, _ in ends] if known else None,
                high=[high for _, high in ends] if known else None,
                legend=name not in seen,
            )
            seen.add(name)
    return dressed(fig)
