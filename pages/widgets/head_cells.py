"""The heads of a model as the cells of the head grid, coloured by one column of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import streamlit as st

from pages.widgets import head_grid, head_selection, styling, switchboard
from workbench.core.wording import number, two_decimals
from workbench.explorer import colour_scales
from workbench.explorer.opened_model import Head
from workbench.explorer.switches import Switches
from workbench.models.model import Model

Links = tuple[pl.DataFrame, str] | None  # of `head_links.links_of`
LEAST = 0.05  # where no value is larger, two decimals in a cell say nothing
STEPS = 64  # colours of the scale; the last of the palette is that of a missing value


def scale_choice() -> str:
    """How values become colours, as it is chosen."""
    return st.selectbox(
        "Colour scale",
        colour_scales.SCALES,
        key="scale",
        bind="query-params",
        help="linear: in proportion; root: small values apart; rank: every head as far from the next; automatic: root "
        "where three of four heads are near zero. The line under the grid says which, and its ends.",
    )


def show(
    opened, frame: pl.DataFrame, column: str, switches: Switches, at: Head, *, share: bool, links: Links = None
) -> None:
    """The grid, coloured by `column` of a table with layer and head; `share`: on the whole scale from 0 to 1; `links`:
    drawn as arrows."""
    head_grid.heads(
        data(
            opened.model,
            frame,
            column,
            switches,
            at,
            share=share,
            scale=st.session_state.get("scale") or colour_scales.AUTOMATIC,
            selected=head_selection.selected(opened.model),
            links=links,
        ),
        key="grid",
        on_pick=switchboard.pick_head,
        on_toggle=switchboard.toggle,
        on_layer=lambda layer: switchboard.pick_layer(layer, at[1]),
        on_mlp=switchboard.toggle_mlp,
        on_select=head_selection.take,
    )


def data(
    model: Model,
    frame: pl.DataFrame,
    column: str,
    switches: Switches,
    at: Head,
    *,
    share: bool,
    scale: str = colour_scales.AUTOMATIC,
    selected: Sequence[Head] = (),
    links: Links = None,
) -> dict[str, Any]:
    """What the grid draws. A head is numbered layer · heads + head in it; colours are numbers in a palette."""
    parts = [part for part in ("control", "difference") if f"{column}_{part}" in frame.columns]
    rows = {
        (int(layer), int(head)): rest
        for layer, head, *rest in frame.select(
            "layer", "head", column, *(f"{column}_{part}" for part in parts)
        ).iter_rows()
    }
    nothing = [None] * (1 + len(parts))
    order = [rows.get(pair, nothing) for pair in model.heads()]
    values = [None if row[0] is None else float(row[0]) for row in order]
    known = [v for v in values if v is not None and v == v]
    diverging = bool(known) and min(known) < 0
    whole = share and all(0 <= v <= 1 for v in known)
    ends = (0.0, 1.0) if whole else styling.limits(known, diverging=diverging)
    spread = colour_scales.spread(values, ends=ends, scale=scale, diverging=diverging)
    palette = styling.shades([*(i / STEPS for i in range(STEPS + 1)), None], diverging=diverging, ends=(0.0, 1.0))
    group = model.n_heads // model.n_kv_heads
    wide, tall = head_grid.size_of_cells(model.n_layers, model.n_heads)
    room = wide >= head_grid.READABLE[0] and tall >= head_grid.READABLE[1]
    told = any(abs(v) >= LEAST for v in known)
    grouped = 1 < group < model.n_heads
    say = ["rows: layers, columns: heads", f"gaps part the {model.n_kv_heads} key/value groups" if grouped else ""]
    label = column.replace("_", " ")
    arrows = [] if links is None else _arrows(model, links[0])
    if links is not None and arrows:
        say.append(f"arrows: the {len(arrows)} strongest links by {links[1]}" if len(arrows) > 1 else "arrow: a link")
    return {
        "model": str(model.name),
        "name": f"the heads of the model, coloured by {label}",
        "layers": model.n_layers,
        "heads": model.n_heads,
        "group": group if group < model.n_heads else 1,
        "wide": wide,
        "tall": tall,
        "at": list(at),
        "mlps": list(switches.mlps),
        "off": _numbers(model, switches.heads),
        "selected": _numbers(model, selected),
        "label": label,
        "palette": [list(pair) for pair in palette],
        "shades": [STEPS + 1 if place is None else round(place * STEPS) for place in spread.places],
        "values": [number(v) for v in values],
        "shown": ["" if v is None else two_decimals(v) for v in values] if room and told else None,
        "beside": [[part, [number(row[i + 1]) for row in order]] for i, part in enumerate(parts)],
        "low": number(spread.ends[0]),
        "high": number(spread.ends[1]),
        "scale": list(styling.scale(diverging=diverging)),
        "arrows": arrows,
        "say": "; ".join(filter(None, [spread.in_words, *say])),
    }


def _numbers(model: Model, heads: Sequence[Head]) -> list[int]:
    return [layer * model.n_heads + head for layer, head in heads]


def _arrows(model: Model, links: pl.DataFrame) -> list[list[float | int | str]]:
    """Links as the grid takes them: the numbers of both heads, how strong the link is beside the strongest, and what is
    said of it. A link of heads that the model does not have is left out."""
    most = links["weight"].abs().max() if links.height else None
    found: list[list[float | int | str]] = []
    for a, b, c, d, weight in links.iter_rows():
        if max(a, c) < model.n_layers and max(b, d) < model.n_heads and isinstance(most, float) and most > 0:
            start, end = _numbers(model, [(a, b), (c, d)])
            found.append([start, end, abs(weight) / most, f"{a}.{b} → {c}.{d}, {number(weight)}"])
    return found
