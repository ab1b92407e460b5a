"""One layer of the Explorer: its logit lens, the length of the stream, and what runs found over the layers."""

from __future__ import annotations

import math

import polars as pl
import streamlit as st

from pages.widgets import cached, styling
from workbench.core.wording import number
from workbench.explorer import head_sets, layer_curves, readings
from workbench.explorer.opened_model import Opened
from workbench.explorer.readings import Reading
from workbench.explorer.switches import Switches
from workbench.figures import sparkline
from workbench.runs.folder import Run

NEWEST = 6  # runs whose curves are shown unless all are asked for


def show(name, opened: Opened, ids, switches: Switches, reading: Reading, layer: int, at: int) -> None:
    """One layer: logit lens, length of the stream, and what runs found at that depth."""
    lens, norms = cached.lens_map(name, ids, switches, "stream", None, opened), readings.norms(reading)
    texts = opened.model.token_strings(ids)
    st.html(f"<b>Layer {layer}</b><span class='wb-dim'> (of 0–{opened.model.n_layers - 1}); the stream after it</span>")
    depth, along = st.columns(2)
    with depth:
        here = (
            lens.filter(pl.col("position") == at).sort("layer", descending=True).join(norms, on=["layer", "position"])
        )
        rows = [
            ("input" if l < 0 else str(l), t, p, p, f"{n:.1f}")
            for l, t, p, n in here.select("layer", "text", "probability", "norm").iter_rows()
        ]
        st.html(
            styling.heading(f"logit lens at token {at}, by layer")
            + styling.table(rows, [("layer", "text"), ("top token", "tok"), ("p", "num"), ("", "bar"), ("norm", "num")])
        )
    with along:
        there = lens.filter(pl.col("layer") == layer)
        rows = [
            (i, texts[i], t, p, "" if r is None else str(r))
            for i, t, p, r in there.select("position", "text", "probability", "next_rank").iter_rows()
        ]
        table = styling.table(
            rows, [("at", "num"), ("token", "tok"), ("top token", "tok"), ("p", "num"), ("next", "num")]
        )
        st.html(
            styling.heading("logit lens at this layer (next: rank of what follows, 0 the top)")
            + f"<div class='wb-tall' tabindex='0' role='region' aria-label='logit lens at this layer'>{table}</div>"
        )
    in_runs(opened, layer)


def in_runs(opened: Opened, layer: int) -> None:
    """The curves of the newest runs, or of all, with the value at this layer beside each."""
    mine = [
        run
        for run in head_sets.runs_of(cached.run_list(), fingerprint=opened.model.fingerprint)
        if layer_curves.tables_with_curves(run)
    ]
    if not mine:
        do = ", ".join(title.lower() for title in layer_curves.probes_with_curves())
        st.caption(
            styling.md(
                "No finished run says anything about this model's layers yet"
                + (f"; probes that do: {do}." if do else ".")
            )
        )
        return
    shown = mine
    if len(mine) > NEWEST:
        every = st.toggle(
            f"All {len(mine)} runs",
            key="all layer curves",
            bind="query-params",
            help=f"Else the newest {NEWEST}: all of many take a while to be drawn.",
        )
        shown = mine if every else mine[:NEWEST]
    found = [curve for run in shown for curve in curves_of(run)]
    scales = {}
    for curve in found:
        values = [v for v in curve.values if v is not None and math.isfinite(v)]
        scales.setdefault((curve.run.id, curve.column), []).extend(values)
    rows, above = [], None
    for curve in found:
        value, ends = curve.at(layer)
        interval = "[{}, {}]".format(*map(number, ends)) if ends else ""
        scale = sparkline.span(scales[curve.run.id, curve.column])
        drawn = sparkline.svg(
            curve.layers, curve.values, at=layer, ends=scale, colours=(styling.accent(), styling.contrast())
        )
        said = (
            f"{curve.column} of {curve.of or curve.run.probe} over the layers, on a scale from {number(scale[0])} to "
        )
        small = sparkline.image(drawn, said=said + number(scale[1]))
        link = None if curve.run is above else curve.run  # one for all the curves of a run
        rows.append((curve.column.replace("_", " "), curve.of, small, value, interval, link))
        above = curve.run
    st.html(
        styling.heading(f"in finished runs, the newest first: over the layers, and at layer {layer}")
        + "<div class='wb-tall' tabindex='0' role='region' aria-label='curves of finished runs'>"
        + styling.table(
            rows,
            [
                *(("", "text"), ("of", "text"), ("over the layers", "image")),
                *(("value", "num"), ("95 % interval", "text"), ("run", "run")),
            ],
        )
        + "</div>"
    )


def curves_of(run: Run) -> list[layer_curves.LayerCurve]:
    """What one run says of the layers, made again when one of its files has changed."""
    names = layer_curves.tables_with_curves(run)
    stamps = tuple(cached.stamp(run.folder / "tables" / f"{name}.parquet") for name in names)
    return _curves_of(str(run.folder), (cached.stamp(run.folder / "run.json"), *stamps), run)


@st.cache_resource(max_entries=512, show_spinner=False)
def _curves_of(folder: str, stamps: tuple, _run: Run) -> list[layer_curves.LayerCurve]:
    return layer_curves.curves([_run], read=cached.table)
