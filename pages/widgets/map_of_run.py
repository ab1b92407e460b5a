"""The map of activations of one run, as its own view shows it: the first part of its texts at the middle layer."""

from __future__ import annotations

import streamlit as st

from pages.widgets import cached, map_sources, navigation, styling
from pages.widgets.map_sources import RUN, Source
from workbench import figures
from workbench.core.errors import InputError
from workbench.explorer import activation_maps as maps
from workbench.explorer import head_sets, map_texts
from workbench.runs import demo, notes
from workbench.runs.folder import Run

HEIGHT = 420


def has_map(run: Run) -> bool:
    """Whether the texts of a run can be laid out."""
    return run.info.get("status") == "complete" and map_texts.has_inputs(run)


def opens_on_map(run: Run) -> bool:
    """Whether a run is first looked at as a map: an example of a probe that lays its texts out."""
    if not has_map(run) or "map" not in run.tables:
        return False
    try:
        return demo.TAG in notes.read(run.folder)["tags"]
    except InputError:  # the list of runs says that its notes cannot be read
        return False


def button(run: Run) -> None:
    """To the screen that has all layers."""
    if st.button(
        "Map of activations",
        key=f"map of {run.id}",
        help="The texts of this run as points, layer by layer, PCA or UMAP.",
    ):
        st.switch_page(navigation.HERE / "activations.py", query_params={"source": f"{RUN} {run.id}"})


def show(run: Run, prefix: str = "") -> None:
    """The map, and the way to all layers."""
    source = Source(RUN, run.id, str(head_sets.model_info(run).get("name") or ""))
    opened = cached.model(source.model)
    part = next(iter(map_texts.parts_of(run, read=cached.table)), "")
    stamp = map_sources.stamp(source)
    token = map_sources.texts(source, stamp, part, opened).token
    asked = (source, stamp, part, token, maps.DRAWN)
    texts, states, _ = map_sources.layers(*asked, opened)
    site = states.sites[len(states.sites) // 2]
    found, table = map_sources.mapped(*asked, site, maps.PCA, maps.NEIGHBOURS, opened)
    colour = next((c for c in map_sources.colours(table) if c != maps.CLUSTER), None)
    fig = maps.figure_of(table, found, texts, colour=colour, model=styling.short(source.model))
    made = figures.dressed(fig, mode=styling.mode(), height=HEIGHT)
    st.plotly_chart(made, theme=None, key=f"{prefix}map {run.id}", config={"displaylogo": False})
    coloured = f" Colour: {colour}." if colour else ""
    st.caption(styling.md(f"{found.in_words()}{texts.note}{coloured}"))
