"""The points of a map of activations: drawn, dragged around, listed, and one of them opened as the prompt."""

from __future__ import annotations

import re

import polars as pl
import streamlit as st

from pages.widgets import navigation, run_view, styling, url_state
from pages.widgets.map_sources import Source
from workbench.core.wording import cut
from workbench.explorer.map_texts import MapTexts, text_of

SCREEN = "activations"
MANY = 1500  # points from which on they are drawn by the graphics card
IN_THE_URL = 400  # rows of a selection that a link can hold
LISTED = 1000


def draw(fig, table: pl.DataFrame) -> None:
    """The map; what is dragged around stays chosen when the layer changes."""
    made = run_view.on_screen(run_view.untitled(fig))
    rows = chosen_rows()
    if rows:
        for trace in made.data:
            own = trace.customdata if trace.customdata is not None else ()
            trace.selectedpoints = [i for i, row in enumerate(own) if int(row) in rows]
    made.layout.dragmode = "lasso"
    if table.height > MANY:
        made = by_graphics_card(made)
    st.plotly_chart(
        made,
        theme=None,
        key="map of activations",
        config={"displaylogo": False},
        on_select=picked,
        selection_mode=("lasso", "box", "points"),
    )


def by_graphics_card(fig):
    """The same with points that the browser draws by WebGL, many times faster."""
    size = fig.layout.template.data.scatter[0].marker.size
    traces = [{**trace.to_plotly_json(), "type": "scattergl"} for trace in fig.data]
    for trace in traces:
        trace["marker"] = {"size": size, **trace["marker"]}
    return type(fig)(traces, fig.layout)


def picked() -> None:
    """Keep the rows that were dragged around; none where the selection was taken back."""
    points = st.session_state["map of activations"].selection.points
    rows = sorted({int(point["customdata"]) for point in points if point.get("customdata") is not None})
    put_rows(rows)


def put_rows(rows: list[int]) -> None:
    st.session_state["chosen rows"] = rows
    url_state.put(SCREEN, "rows", ".".join(map(str, rows)) if len(rows) <= IN_THE_URL else "")


def clear() -> None:
    put_rows([])


def chosen_rows() -> set[int]:
    """The rows that are chosen: of this session where they are too many for the address."""
    text = url_state.get(SCREEN, "rows")
    return {int(row) for row in re.findall(r"[0-9]{1,9}", text)} or set(st.session_state.get("chosen rows", ()))


def listed(source: Source, opened, texts: MapTexts, table: pl.DataFrame, colour: str | None) -> None:
    """The texts that were chosen, or all; a row opens as the prompt."""
    rows = chosen_rows()
    some = table.filter(pl.col("row").is_in(list(rows))) if rows else table
    rows = rows if some.height else set()
    some = some if some.height else table
    a, b = st.columns([3, 2], vertical_alignment="center")
    a.markdown(f"**{some.height:,} chosen texts**" if rows else f"**All {some.height:,} texts**")
    b.button("All texts", on_click=clear, disabled=not rows, width="stretch", help="Choose none, list all.")
    shown = some.head(LISTED).select("row", *([colour] if colour else []), "text")
    found = st.dataframe(
        shown,
        height=420,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="listed texts",
        column_config={"text": st.column_config.TextColumn(width="large"), **styling.columns_of(shown)},
    )
    if some.height > LISTED:
        st.caption(f"The first {LISTED:,} are listed; the CSV under Take home has all.")
    chosen = [i for i in found.selection.rows if i < shown.height]
    if not chosen:
        st.caption("Select a row to read it whole and to open it in the Explorer.")
        return
    row = shown["row"][chosen[0]]
    ids = texts.ids[table["row"].to_list().index(row)]
    if not ids:
        st.caption("This capture is from before token ids were kept, so its texts are not known.")
        return
    text = text_of(opened.model, ids, most=None)
    st.html(styling.quote(cut(text, 4000), styling.accent()))
    if st.button("Open in the Explorer", key="open text", help="As the prompt, in this model."):
        navigation.to_prompt(source.model, text)
