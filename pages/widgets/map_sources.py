"""Where the texts of a map come from: runs, stored captures, texts that ship, a file. And what is kept of them between
clicks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import streamlit as st

from pages.widgets import cached
from workbench import organisms
from workbench.core.errors import InputError
from workbench.explorer import activation_maps, layer_states, map_texts
from workbench.explorer.activation_maps import MappedLayer
from workbench.explorer.layer_states import LayerStates
from workbench.explorer.map_texts import MapTexts
from workbench.explorer.opened_model import Opened
from workbench.explorer.projections import Oriented, PointClusters, clusters_of
from workbench.models.sites import Site
from workbench.runs import execution
from workbench.runs.folder import Run

RUN, CAPTURE, SHIPPED, FILE = "run", "stored capture", "texts", "a file"
SHIPPED_TEXTS = ("texts", "pool")  # of the organism's world, which are samples by themselves
SHOWN_CAPTURES = 30
FEW_VALUES = 12  # of a column that is a label rather than a text


@dataclass(frozen=True)
class Source:
    """One choice of the box: its `kind`, which one (a run's id, a store key, a data file's name, a path), and the model
    that it belongs to ("" where any will do)."""

    kind: str
    which: str
    model: str = ""


def sources() -> dict[str, Source]:
    """What can be mapped, by what the box says of it: runs with a map of their own first, then other runs with texts,
    the latest of each first."""
    runs = [run for run in cached.run_list() if run.info.get("status") == "complete" and map_texts.has_inputs(run)]
    runs.sort(key=lambda run: "map" not in run.tables)
    found = {f"{RUN} {run.id}": Source(RUN, run.id, str(run.of("model", "name", default=""))) for run in runs}
    for name in [*SHIPPED_TEXTS, *(name for name in organisms.datasets() if name.startswith("concepts/"))]:
        found[f"{SHIPPED} {name}"] = Source(SHIPPED, name)
    for row in layer_states.captures().head(SHOWN_CAPTURES).iter_rows(named=True):
        label = f"{CAPTURE} {row['key'][:12]}, {row['prompts']} texts, {row['positions'].rpartition(':')[2]}"
        found[label] = Source(CAPTURE, row["key"], row["model"])
    return found | {FILE: Source(FILE, "")}


def run_of(source: Source) -> Run:
    """The run of a source."""
    return execution.run_by_id(source.which)


def path_of(source: Source) -> Path:
    """The file of a source."""
    return organisms.data(source.which) if source.kind == SHIPPED else Path(source.which).expanduser()


def stamp(source: Source) -> tuple:
    """Changes when what the texts come from does."""
    if source.kind == RUN:
        return cached.stamp(run_of(source).folder / "run.json")
    return () if source.kind == CAPTURE else cached.stamp(path_of(source))


@st.cache_resource(max_entries=6, show_spinner="Reading the texts", hash_funcs=cached.BY_MODEL)
def texts(source: Source, stamp: tuple, part: str, opened: Opened) -> MapTexts:
    """All texts of a source."""
    if source.kind == CAPTURE:
        return layer_states.stored_texts(source.which, opened.model)
    if source.kind == RUN:
        return map_texts.texts_of_run(opened.model, run_of(source), part=part, read=cached.table)
    return activation_maps.texts_from(opened.model, path_of(source))


@st.cache_resource(max_entries=3, show_spinner="Reading what the model makes of the texts", hash_funcs=cached.BY_MODEL)
def layers(
    source: Source, stamp: tuple, part: str, token: str, most: int, opened: Opened
) -> tuple[MapTexts, LayerStates, list[Oriented]]:
    """The texts that are drawn, their states, and the principal components of every layer."""
    found = texts(source, stamp, part, opened)
    if source.kind == CAPTURE:
        if len(found) > map_texts.MOST:
            raise InputError(f"This capture is of {len(found):,} texts, and a map has at most {map_texts.MOST:,}.")
        states = layer_states.stored_states(source.which)
    else:
        found, token = activation_maps.chosen_texts(found, token, most)
        states = layer_states.states_of(opened, found, token)
    return found, states, activation_maps.layers_of(states)


@st.cache_resource(max_entries=32, show_spinner="Laying the texts out", hash_funcs=cached.BY_MODEL)
def mapped(
    source: Source,
    stamp: tuple,
    part: str,
    token: str,
    most: int,
    site: Site,
    method: str,
    neighbours: int,
    opened: Opened,
) -> tuple[MappedLayer, pl.DataFrame]:
    """The map of one layer, and its table with what probes of the run say."""
    drawn, states, found = layers(source, stamp, part, token, most, opened)
    made = activation_maps.mapped(states, found, site, method=method, neighbours=neighbours)
    probes = activation_maps.probes_for(run_of(source), part, token) if source.kind == RUN else None
    read = None if probes is None else layer_states.states_of(opened, drawn, token, kind=probes.kind)
    return made, activation_maps.map_table(drawn, made, probes=probes, read=read)


@st.cache_resource(max_entries=32, show_spinner="Looking for clusters", hash_funcs=cached.BY_MODEL)
def clusters(
    source: Source, stamp: tuple, part: str, token: str, most: int, site: Site, count: int, opened: Opened
) -> PointClusters:
    """The clusters of one layer."""
    _, states, found = layers(source, stamp, part, token, most, opened)
    return clusters_of(found[states.sites.index(site)].components, count=count)


def colours(table: pl.DataFrame) -> list[str]:
    """What can colour the points: columns of few names first, then numbers, clusters, and texts of many kinds."""
    columns = map_texts.colourable(table)
    named = [c for c in columns if not table[c].dtype.is_float() and table[c].n_unique() <= FEW_VALUES]
    words = [c for c in columns if c not in named and table[c].dtype == pl.String]
    return [*named, *(c for c in columns if c not in (*named, *words)), activation_maps.CLUSTER, *words]
