"""Map of activations: many texts as points, layer by layer; drag around some to read them, open one as a prompt."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import streamlit as st

from pages.widgets import cached, export_panel, map_points, map_sources, navigation, styling, url_state
from pages.widgets.map_sources import CAPTURE, FILE, RUN, Source
from workbench.core.errors import InputError
from workbench.explorer import activation_maps as maps
from workbench.explorer import as_code
from workbench.explorer.layer_states import site_name
from workbench.explorer.map_texts import MapTexts, parts_of
from workbench.explorer.projections import NEIGHBOURS
from workbench.models.sites import Site

METHODS = {"PCA": maps.PCA, "UMAP": maps.UMAP}
POINTS = (1000, 5000, 20000)


def main() -> None:
    st.title("Map of activations")
    found = map_sources.sources()
    source = chosen_source(found)
    if source is None:
        return
    with styling.guard():
        body(source)


def chosen_source(found: dict[str, Source]) -> Source | None:
    """What is mapped; None until a file is named."""
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    wanted = url_state.get(map_points.SCREEN, "source")  # always in the address: which run is the latest changes
    if st.session_state.get("source") not in found or wanted not in ("", st.session_state["source"]):
        st.session_state["source"] = wanted if wanted in found else next(iter(found))
    label = left.selectbox(
        "Texts",
        list(found),
        key="source",
        on_change=new_source,
        help="Of a run (what it read), of the organism's world, of a capture in the activation store, or a file.",
    )
    url_state.put(map_points.SCREEN, "source", label)
    source = found[label]
    if source.kind == FILE:
        typed = st.text_input(
            "File",
            key="map file",
            placeholder="/path/to/texts.csv",
            on_change=map_points.clear,
            help="csv, tsv, jsonl, parquet or txt with a column text, or prompt and response. A link never opens a "
            "file, so it is not in the address.",
        ).strip()
        if not typed:
            st.info("Type the path of a file of texts; its other columns can colour them.")
            return None
        source = Source(FILE, typed)
    if source.model:
        right.caption(styling.md(f"Model: {source.model}, as the {source.kind} has it."))
        return source
    name = right.selectbox(
        "Model",
        cached.model_names(),
        key="model",
        bind="query-params",
        accept_new_options=True,
        help="An organism, a local folder in Hugging Face format, or a hub id. Type to enter another.",
    )
    return Source(source.kind, source.which, name)


def new_source() -> None:
    url_state.put(map_points.SCREEN, "source", st.session_state["source"])
    map_points.clear()


def body(source: Source) -> None:
    opened = cached.model(source.model)
    first, place, coloured = st.columns([2, 4, 4], vertical_alignment="bottom")
    method = first.segmented_control(
        "Map",
        list(METHODS),
        default="PCA",
        key="method",
        bind="query-params",
        required=True,
        help="PCA: the two directions along which the texts differ most. UMAP: who is near whom.",
    )
    part, token, most, neighbours, clusters = chosen(source, opened)
    asked = (source, map_sources.stamp(source), part, token, most)
    texts, states, _ = map_sources.layers(*asked, opened)
    with place:
        site = chosen_site(states.sites)
    found, table = map_sources.mapped(*asked, site, METHODS[method], neighbours, opened)
    with coloured:
        colour = chosen_colour(table)
    if colour == maps.CLUSTER:
        try:
            found = replace(found, clusters=map_sources.clusters(*asked, site, clusters, opened))
            table = maps.with_clusters(table, found.clusters)
        except InputError as error:  # too few texts for it, which have a map all the same
            colour = None
            styling.problem(error)
    fig = maps.figure_of(table, found, texts, colour=colour, model=styling.short(source.model))
    more = {"neighbours": neighbours, "clusters": clusters if colour == maps.CLUSTER else 0, "most": most}
    left, right = st.columns([3, 2], gap="large")
    with left:
        map_points.draw(fig, table)
        st.caption(styling.md(found.in_words() + texts.note + what_is_drawn(texts)))
        take_home(source, opened, fig, table, python_of(source, part, token, site, method, colour, **more))
    with right:
        map_points.listed(source, opened, texts, table, colour)


def chosen(source: Source, opened) -> tuple[str, str, int, int, int]:
    """(part of the run, token, points, neighbours, clusters)."""
    first, second, third = st.columns([4, 3, 3], vertical_alignment="bottom")
    part, token = "", "last"
    if source.kind == RUN:
        parts = parts_of(map_sources.run_of(source), read=cached.table)
        if parts:
            forget_unknown("part", parts)
            part = first.selectbox(
                "Part",
                parts,
                key="part",
                bind="query-params",
                on_change=map_points.clear,
                help="Texts of the run.",
            )
    if source.kind != CAPTURE:
        texts = map_sources.texts(source, map_sources.stamp(source), part, opened)
        forget_unknown("token", list(texts.tokens))
        token = second.selectbox(
            "Token",
            [texts.token, *(name for name in texts.tokens if name != texts.token)],
            key="token",
            bind="query-params",
            help="last: the last token of each text; mean: over its tokens, sinks left out; others: where the run "
            "looked.",
        )
    with third.popover("More", width="stretch", help="Neighbours, clusters, how many points."):
        neighbours = st.number_input(
            "Neighbours",
            2,
            200,
            NEIGHBOURS,
            key="neighbours",
            bind="query-params",
            help="Of UMAP (few: fine structure, many: coarse), and of the trustworthiness.",
        )
        clusters = st.number_input(
            "Clusters", 2, 50, maps.GROUPS, key="clusters", bind="query-params", help="Of k-means."
        )
        most = st.selectbox(
            "Points at most",
            POINTS,
            index=1,
            key="points",
            bind="query-params",
            on_change=map_points.clear,
            help="Of more texts, so many drawn at random.",
        )
    return part, token, int(most), int(neighbours), int(clusters)


def chosen_site(sites: tuple[Site, ...]) -> Site:
    by_name = {site_name(site): site for site in sites}
    names = list(by_name)
    forget_unknown("layer", names)
    if len(names) == 1:
        st.caption(styling.md(f"Site: {names[0]}"))
        return sites[0]
    name = st.select_slider(
        "Layer",
        names,
        value=names[len(names) // 2],
        key="layer",
        bind="query-params",
        help="The residual stream after this layer. Every layer is turned as the one before it, so that points stay "
        "where they are as far as they can.",
    )
    return by_name[name]


def chosen_colour(table: pl.DataFrame) -> str:
    """What colours the points: columns of names first, then numbers, then clusters and texts of many kinds."""
    order = map_sources.colours(table)
    forget_unknown("colour of points", order)
    return st.selectbox(
        "Colour",
        order,
        key="colour of points",
        bind="query-params",
        help="Any column of the texts: labels, scores of the run, what its probes say at this layer, clusters.",
    )


def forget_unknown(key: str, options: list[str]) -> None:
    """A choice that is none here, from another source or from the address, gives way to the first one."""
    if st.session_state.get(key) not in (None, *options):
        del st.session_state[key]
    if key in st.query_params and st.query_params[key] not in options:
        del st.query_params[key]


def what_is_drawn(texts: MapTexts) -> str:
    said = f" {len(texts):,} texts"
    said += f", drawn at random from {len(texts) + texts.left_out:,}" if texts.left_out else ""
    said += f"; {texts.cut} are longer than the model's context and were cut" if texts.cut else ""
    return said + ". Drag around points to list their texts; a double click lists all."


# ---- to take home


def take_home(source: Source, opened, fig, table: pl.DataFrame, python: str) -> None:
    with st.popover("Take home", width="stretch", help="This map as a file, and the Python that makes it."):
        columns = st.columns(4, gap="small")
        for column, (kind, mime) in zip(columns, export_panel.MIME.items()):
            column.download_button(
                kind.upper(),
                lambda kind=kind: as_code.csv(table).encode() if kind == "csv" else export_panel.drawn(fig, kind),
                f"map-of-activations.{kind}",
                mime,
                on_click="ignore",
                key=f"map {kind}",
                width="stretch",
                help="The table, every column." if kind == "csv" else "The figure, light, at the width of two columns.",
            )
        model = opened.model
        st.code(
            f"{(fig.layout.meta or {}).get('title')}. {(fig.layout.meta or {}).get('note')} Texts: {source.kind} "
            f"{source.which}. Model: {model.name}, weights {model.fingerprint[:12]}.",
            language=None,
            wrap_lines=True,
        )
        st.code(python, language="python", wrap_lines=True)


def python_of(
    source: Source,
    part: str,
    token: str,
    site: Site,
    method: str,
    colour: str | None,
    *,
    neighbours: int,
    clusters: int,
    most: int,
) -> str:
    """The lines that make the map in a notebook."""
    if source.kind == CAPTURE:
        return (
            "from workbench.explorer.layer_states import stored_states, stored_texts\n\n"
            f"states, texts = stored_states({source.which!r}), stored_texts({source.which!r})"
        )
    given = {
        "layer": "final" if site.layer is None else site.layer,
        "method": METHODS[method],
        "token": token,
    }
    given |= {"colour": colour} if colour else {}
    given |= {"clusters": clusters} if clusters else {}
    given |= {"neighbours": neighbours} if neighbours != NEIGHBOURS else {}
    given |= {"most": most} if most != maps.DRAWN else {}
    given |= {"part": part} if part else {}
    first = source.which if source.kind == RUN else str(map_sources.path_of(source))
    said = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return (
        "from workbench import activation_map\n\n"
        f"table, figure = activation_map({source.model!r}, {first!r}, {said})\n"
        "figure.show()"
    )


navigation.through_app()
main()
