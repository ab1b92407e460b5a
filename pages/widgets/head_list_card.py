"""The card "Heads": every head with its scores on this prompt and in every run, to sort, filter and select."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import streamlit as st

from pages.widgets import cached, export_panel, head_selection, styling
from workbench.core.errors import InputError
from workbench.explorer import head_list, readings
from workbench.explorer.opened_model import Head, Opened
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target

if TYPE_CHECKING:
    from pages.widgets.map_cards import Looking

TALL = 460  # pixels of the list, which scrolls


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=cached.BY_MODEL)
def live(
    who: str, ids: tuple[int, ...], switches: Switches, target: Target, position: int, opened: Opened
) -> tuple[pl.DataFrame, list[str]]:
    """What the prompt says of every head, and why some of it is not there."""
    return head_list.live_columns(
        opened,
        cached.reading(who, ids, switches, opened),
        target,
        position=position,
        switches=switches,
        scores=lambda: cached.scores(who, ids, opened),
    )


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=cached.BY_MODEL)
def figure(who: str, ids: tuple[int, ...], switches: Switches, target: Target, position: int, opened: Opened):
    """The heads coloured by the first column that has values, and its name; None where none has."""
    found, _ = live(who, ids, switches, target, position, opened)
    known = [name for name in head_list.LIVE if found[name].is_not_null().any()]
    said = target.in_words(opened.model)
    return (head_list.list_figure(found, known[0], said=said), known[0]) if known else None


def show(looking: Looking, tables) -> None:
    """The list. What is selected in it is selected in the grid, and the other way round."""
    of = looking.name, looking.ids, looking.switches, looking.target, looking.at
    found, missing = live(*of, looking.opened)
    whole = head_list.with_runs(found, tables)
    left, more = st.columns([5, 3], vertical_alignment="bottom")
    text = left.text_input(
        "Filter of the heads",
        key="filter",
        bind="query-params",
        placeholder="3.   3.0-7   .5   layer>10   induction>=0.5",
        help="A layer (3.), a head (3.5), a range (3.0-7), a head of every layer (.5): any of these. Conditions on a "
        "column, by the beginning of its name (layer>10, induction>=0.5): all of these.",
    )
    try:
        kept = head_list.filter_heads(whole, text)
    except InputError as error:
        styling.problem(error)
        kept = whole
    with more:
        drawn = figure(*of, looking.opened)
        if drawn is not None:
            fig, value = drawn
            call = f"heads(position={looking.at}, value={value!r}, where={text!r})"
            export_panel.show(looking.name, fig, kept, "heads", call, looking)
    rows(kept, head_selection.selected(looking.opened.model))
    listed = list(kept.select("layer", "head").iter_rows())
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            f"Select all {kept.height}",
            on_click=head_selection.put,
            args=(listed,),
            disabled=not listed,
            help="Every head that the filter leaves, in place of those selected now.",
        )
        st.caption(
            styling.md(
                f"{kept.height} of {whole.height} heads; attention and direct effect at token {looking.at}, on "
                f"{looking.said}; tick rows to select. " + " ".join(missing)
            )
        )


def rows(kept: pl.DataFrame, selected: tuple[Head, ...]) -> None:
    """The rows, those of the selected heads ticked. The list is made anew when something else than a tick in it has
    changed what it shows or what is selected; else it keeps its order and its place."""
    listed = list(kept.select("layer", "head").iter_rows())
    mine = st.session_state.setdefault("list of heads", {"count": 0, "shown": None, "told": None})
    if mine["shown"] != listed or mine["told"] != selected:
        mine |= {"count": mine["count"] + 1, "shown": listed, "told": selected}
    key = f"heads {mine['count']}"
    chosen = set(selected)

    def ticked() -> None:
        numbers = st.session_state[key]["selection"]["rows"]
        heads = tuple(sorted((chosen - set(listed)) | {listed[i] for i in numbers}))
        mine["told"] = heads
        head_selection.put(heads)

    named = kept
    if "kv_group" in named.columns and named["kv_group"].n_unique() in (1, named["head"].n_unique()):
        named = named.drop("kv_group")
    st.dataframe(
        named,
        key=key,
        height=min(TALL, 35 * (kept.height + 1) + 3),
        hide_index=True,
        on_select=ticked,
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [i for i, head in enumerate(listed) if head in chosen]}},
        column_config=styling.columns_of(named)
        | {
            "layer": st.column_config.NumberColumn(pinned=True, width=64),
            "head": st.column_config.NumberColumn(pinned=True, width=64),
            "kv_group": st.column_config.NumberColumn("key/value group"),
            **{
                name: st.column_config.NumberColumn(name.replace("_", " "), help=help_of(name), format="%.3g")
                for name in head_list.LIVE
            },
        },
    )


def help_of(name: str) -> str | None:
    """What a live score is."""
    return readings.SCORES.get(name) or {
        "attention": "the largest attention weight of the head, from the outlined token",
        "direct_effect": "change of the target by what the head writes at the outlined token",
        "output_norm": "length of the head's output, mean over the tokens",
    }.get(name)
