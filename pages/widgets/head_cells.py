"""The heads of a model as the cells of the head grid, coloured by one column of a table."""

from __future__ import annotations

from pages.widgets import head_grid, styling, switchboard
from workbench.core.wording import number, two_decimals
from workbench.explorer.switches import Switches
from workbench.figures import style as theme


def show(opened, frame, column: str, switches: Switches, at: tuple[int, int], *, share: bool) -> None:
    model = opened.model
    values: dict[tuple[int, int], float | None] = {}
    beside: dict[tuple[int, int], str] = {}
    parts = [part for part in ("control", "difference") if f"{column}_{part}" in frame.columns]
    shown = frame.select("layer", "head", column, *(f"{column}_{part}" for part in parts))
    for layer, head, value, *rest in shown.iter_rows():
        values[int(layer), int(head)] = None if value is None else float(value)
        beside[int(layer), int(head)] = "".join(f"\n{part}: {number(v)}" for part, v in zip(parts, rest))
    order = [values.get(pair) for pair in model.heads()]
    known = [v for v in order if v is not None and v == v]
    diverging = bool(known) and min(known) < 0
    whole = share and all(0 <= v <= 1 for v in known)
    ends = (0.0, 1.0) if whole else styling.limits(known, diverging=diverging)
    group = model.n_heads // model.n_kv_heads
    off = set(switches.heads)
    label = column.replace("_", " ")
    cells = []
    for (layer, head), value, (colour, ink) in zip(
        model.heads(), order, styling.shades(order, diverging=diverging, ends=ends)
    ):
        title = (
            f"layer {layer}, head {head}"
            + (f", key/value group {model.kv_group(head)}" if group > 1 else "")
            + f"\n{label}: {number(value)}{beside.get((layer, head), '')}"
        )
        cells.append(
            {
                "colour": colour,
                "ink": ink,
                "title": title,
                "off": (layer, head) in off,
                "shown": "" if value is None else two_decimals(value),
            }
        )
    scales = {
        ("light", False): theme.SEQUENTIAL,
        ("light", True): theme.DIVERGING,
        ("dark", False): theme.SEQUENTIAL_DARK,
        ("dark", True): theme.DIVERGING_DARK,
    }
    data = {
        "layers": model.n_layers,
        "heads": model.n_heads,
        "group": group if group < model.n_heads else 1,
        "at": list(at),
        "layer": at[0],
        "names": [str(i) for i in range(model.n_layers)],
        "mlps": [layer in switches.mlps for layer in range(model.n_layers)],
        "cells": cells,
        "low": number(ends[0]),
        "high": number(ends[1]),
        "scale": list(scales[styling.mode(), diverging]),
        "say": "rows: layers, columns: heads"
        + (f"; gaps part the {model.n_kv_heads} key/value groups" if 1 < group < model.n_heads else ""),
    }
    head_grid.heads(
        data,
        key="grid",
        on_pick=switchboard.pick_head,
        on_toggle=switchboard.toggle,
        on_layer=lambda layer: switchboard.pick_layer(layer, at[1]),
        on_mlp=switchboard.toggle_mlp,
    )
