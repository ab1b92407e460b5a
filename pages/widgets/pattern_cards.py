"""The map "Patterns": the attention patterns of a layer's heads, or of the selected heads, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.widgets import cached, export_panel, head_selection, pattern_grid, styling, url_state
from workbench.explorer import pattern_thumbnails
from workbench.explorer.opened_model import Head, Opened
from workbench.explorer.pattern_thumbnails import Thumbnails
from workbench.explorer.switches import Switches

if TYPE_CHECKING:
    from pages.widgets.map_cards import Looking

SCREEN = "explorer"
WHICH = ("heads of the layer", "selected heads")


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=cached.BY_MODEL)
def of_heads(
    who: str, ids: tuple[int, ...], heads: tuple[Head, ...], switches: Switches, side: int | None, opened: Opened
) -> Thumbnails:
    """The patterns of some heads."""
    return pattern_thumbnails.thumbnails(opened, ids, heads, switches=switches, side=side)


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=cached.BY_MODEL)
def figure(who: str, ids: tuple[int, ...], heads: tuple[Head, ...], switches: Switches, opened: Opened):
    """Their figure, of blocks that are few enough to be drawn one by one."""
    return pattern_thumbnails.patterns_figure(of_heads(who, ids, heads, switches, pattern_thumbnails.DRAWN, opened))


def show(looking: Looking) -> None:
    """Thumbnails; a click chooses the head."""
    left, more = st.columns([6, 4], vertical_alignment="bottom")
    which = left.selectbox(
        "Patterns of",
        WHICH,
        key="patterns of",
        bind="query-params",
        help="All heads of the chosen head's layer, or the heads that are selected in the grid.",
    )
    model, layer = looking.opened.model, looking.layer
    heads = tuple((layer, head) for head in range(model.n_heads))
    call, what = f"patterns(layer={layer})", f"layer {layer}"
    if which == WHICH[1]:
        heads = head_selection.selected(model)
        call, what = f"patterns(heads={list(heads)})", "the selected heads"
        if not heads:
            st.info("Select heads in the grid (drag over them, or Enter on each): their patterns stand here.")
            return
    if len(heads) > pattern_thumbnails.HEADS:
        st.caption(f"The first {pattern_thumbnails.HEADS} of {len(heads)} heads.")
        heads = heads[: pattern_thumbnails.HEADS]
    of = looking.name, looking.ids, heads, looking.switches
    found = of_heads(*of, None, looking.opened)
    with more:
        fig = figure(*of, looking.opened)
        export_panel.show(looking.name, fig, pattern_thumbnails.table(found), "patterns", call, looking)
    pattern_grid.show(
        found,
        at=(layer, looking.head),
        label=f"attention patterns of {what}, from each token downwards to each token to the right",
        key="patterns",
        on_pick=lambda a, b: url_state.put(SCREEN, "head", f"{a}.{b}"),
    )
    said = f"Attention of {what}: from each token (downwards) to each token (to the right)"
    if found.block > 1:
        said += f"; every point is the largest weight among {found.block} × {found.block} tokens"
    st.caption(styling.md(f"{said}. Click a pattern to choose its head."))
