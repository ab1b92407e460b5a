"""What runs found over the layers of a model, as a figure."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.core.errors import InputError
from workbench.explorer.layer_curves import LayerCurve, probes_with_curves
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet

MOST = 8  # curves of a panel that can be told apart


def layer_curves_figure(found: Sequence[LayerCurve], *, layer: int | None = None) -> go.Figure:
    """A panel for each column, the newest curves in it with their intervals; `layer`: one that is marked.

    Raises InputError where no run says anything of the layers."""
    if not found:
        raise InputError(
            "No finished run says anything about this model's layers yet; probes that do: "
            f"{', '.join(title.lower() for title in probes_with_curves()) or 'none that is installed here'}."
        )
    panels: dict[tuple[str, str], list[LayerCurve]] = {}
    for curve in found:
        panels.setdefault((curve.run.probe, curve.column), []).append(curve)
    drawn = {panel: mine[:MOST] for panel, mine in panels.items()}
    left = len(found) - sum(map(len, drawn.values()))
    fig = sheet(
        [f"{probe.replace('-', ' ')}: {column.replace('_', ' ')}" for probe, column in panels],
        x="layer",
        share_y=False,
        columns=2,
        note="What finished runs found after each layer"
        + (f"; the newest {MOST} of each panel, {left} more are in the table" if left else ""),
        interval="bands: the intervals that the runs give",
    )
    names = [name_of(curve, found) for mine in drawn.values() for curve in mine]
    styles, seen = theme.sequence(names), set()
    for i, mine in enumerate(drawn.values()):
        for curve in mine:
            name = name_of(curve, found)
            ends = [pair or (float("nan"), float("nan")) for pair in curve.ends]
            known = any(curve.ends)
            traces.add_curve(
                fig,
                i,
                curve.layers,
                [float("nan") if value is None else float(value) for value in curve.values],
                name=name,
                style=styles[name],
                low=[low for low, _ in ends] if known else None,
                high=[high for _, high in ends] if known else None,
                legend=name not in seen,
            )
            seen.add(name)
        if layer is not None:
            traces.add_rule(fig, i, x=layer)
    return dressed(fig)


def name_of(curve: LayerCurve, among: Sequence[LayerCurve]) -> str:
    """What a curve is of, with the end of its run's id where several runs have one of that name."""
    same = {other.run.id for other in among if (other.run.probe, other.of) == (curve.run.probe, curve.of)}
    end = curve.run.id.rpartition("-")[2][-6:]
    return f"{curve.of or curve.run.probe} ({end})" if len(same) > 1 else curve.of or curve.run.probe
