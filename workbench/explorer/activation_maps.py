"""Maps of activations: the states of many texts at one layer, in two dimensions, for every layer alike.

from workbench import activation_map

table, figure = activation_map("organism", run, layer=3, method="umap", colour="score · sea")
table, figure = activation_map("organism", "texts.csv", layer=-1, clusters=6)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.sample_tables import read_samples
from workbench.core.sample_tables import texts as words_of
from workbench.core.wording import number
from workbench.explorer.layer_states import LayerStates, site_name, states_of
from workbench.explorer.map_texts import MapTexts, colourable, drawn_from, inputs_of, texts_of_run, texts_of_table
from workbench.explorer.opened_model import Opened, open_model
from workbench.explorer.probe_readings import LayerProbes, layer_probes
from workbench.explorer.projections import (
    NEIGHBOURS,
    Oriented,
    PointClusters,
    clusters_of,
    oriented,
    plane,
    principal_components,
    trustworthiness_of,
    umap_of,
)
from workbench.figures.point_map import map_figure
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.runs.folder import Run, open_run

if TYPE_CHECKING:
    import plotly.graph_objects as go

PCA, UMAP = METHODS = ("pca", "umap")
NAMES = {PCA: "PCA", UMAP: "UMAP"}
CLUSTER, PREDICTION, SCORE = "cluster", "probe prediction", "probe score"
DRAWN = 5000  # texts on a map, where nobody asks for more
GROUPS = 6  # clusters, where nobody says how many


@dataclass(frozen=True, eq=False)
class MappedLayer:
    """The map of one site: `places` [n, 2] float64, `shares` [k] of the variance along each principal component, and
    `trust` (`trustworthiness_of`; None for too few texts)."""

    site: Site
    method: str
    places: np.ndarray
    shares: np.ndarray
    trust: float | None
    clusters: PointClusters | None = None

    def in_words(self) -> str:
        """What a reader of the picture must know of it."""
        both = self.shares[:2].sum()
        said = f"The first two principal components hold {both:.0%} of the variance"
        said += f" ({', '.join(f'{share:.0%}' for share in self.shares[:2])})." if len(self.shares) > 1 else "."
        trust = "not known for so few texts" if self.trust is None else number(self.trust, 2)
        said += f" Trustworthiness of the {NAMES[self.method]}: {trust} (1: whoever is near here is near in the model)."
        if self.method == UMAP:
            said += " Distances between groups and the sizes of groups mean nothing on a UMAP."
        if self.clusters is not None:
            said += (
                f" Clusters: k-means of the components, silhouette {number(self.clusters.silhouette, 2)} (near 0: "
                f"there are none to speak of)."
            )
        return said


def layers_of(states: LayerStates) -> list[Oriented]:
    """The principal components of every site of the slider, each oriented as the one before; one pass over what is
    stored."""
    return list(oriented(principal_components(states.read(site)) for site in states.sites))


def mapped(
    states: LayerStates,
    layers: Sequence[Oriented],
    site: Site,
    *,
    method: str = PCA,
    neighbours: int = NEIGHBOURS,
    clusters: int = 0,
) -> MappedLayer:
    """The map of one site, `layers` being `layers_of(states)`. `clusters`: how many; 0: none.

    Raises InputError for an unknown method, too few texts for it, and a site where all texts are the same."""
    if method not in METHODS:
        raise InputError(f"A map is a {' or '.join(METHODS)}, not '{method}'{nearest(method, METHODS)}.")
    found = layers[states.sites.index(site)]
    if not len(found.components.shares):
        raise InputError(
            f"All {states.n} texts have the same activation at {site_name(site)}: they end in the same token; read the "
            f"mean of their tokens, or another layer."
        )
    places = umap_of(found, neighbours=neighbours) if method == UMAP else plane(found.components)
    grouped = clusters_of(found.components, count=clusters) if clusters else None
    near = min(neighbours, max(1, (states.n - 1) // 2))
    trust = trustworthiness_of(states.read(site), places, neighbours=near)
    return MappedLayer(site, method, places, found.components.shares, trust, grouped)


def map_table(
    texts: MapTexts, found: MappedLayer, *, probes: LayerProbes | None = None, read: LayerStates | None = None
) -> pl.DataFrame:
    """One row per text: what is known of it, `site`, `method`, `x`, `y`; `cluster` where clusters were asked for;
    `probe score` and `probe prediction` where there are `probes` of the layer, with the states that they `read`."""
    new = [
        pl.lit(str(found.site)).alias("site"),
        pl.lit(found.method).alias("method"),
        pl.Series("x", found.places[:, 0]),
        pl.Series("y", found.places[:, 1]),
    ]
    if probes is not None and read is not None and found.site.layer is not None:
        scores = probes.scores(read.read(Site(probes.kind, found.site.layer)), found.site.layer)
        new += [pl.Series(SCORE, scores), pl.Series(PREDICTION, probes.predictions(scores))]
    table = texts.about.with_columns(new)
    return table if found.clusters is None else with_clusters(table, found.clusters)


def with_clusters(table: pl.DataFrame, clusters: PointClusters) -> pl.DataFrame:
    """The table with a column `cluster`."""
    return table.with_columns(pl.Series(CLUSTER, [f"cluster {label + 1}" for label in clusters.labels]))


def figure_of(table: pl.DataFrame, found: MappedLayer, texts: MapTexts, *, colour: str | None, model: str) -> go.Figure:
    """The map, coloured by a column of the table."""
    if colour is not None and colour not in table.columns:
        known = colourable(table)
        raise InputError(f"The map has no column '{colour}'{nearest(colour, known)}; it has {', '.join(known)}.")
    axes = ("", "")
    if found.method == PCA:
        axes = tuple(
            f"component {i + 1} ({found.shares[i]:.0%} of the variance)" if i < len(found.shares) else "no component"
            for i in range(2)
        )
    fig = map_figure(
        [("", table)],
        colour=colour,
        label=colour or "",
        title=f"{NAMES[found.method]} of {len(texts):,} texts at {site_name(found.site)}, {model}",
        n=f"{len(texts):,} texts",
        size=len(texts),
        axes=axes,
        diverging=colour == SCORE,
    )
    fig.layout.meta = {**fig.layout.meta, "note": found.in_words() + texts.note}
    return fig


def probes_for(run: Run, part: str, token: str) -> LayerProbes | None:
    """The probes that a run fitted on this part of its texts, read at the same token; None where it has none."""
    if "inputs" not in run.tables:
        return None
    inputs = inputs_of(run, part)
    if not {"dataset", "condition"} <= set(inputs.columns):
        return None
    sets = inputs.select("dataset", "condition").unique()
    if sets.height != 1:
        return None
    dataset, condition = sets.row(0)
    found = layer_probes(run, str(dataset), str(condition))
    return found if found is not None and found.token == token else None


def texts_from(model: Model, source: Run | Path | str | Sequence[str] | pl.DataFrame, *, part: str = "") -> MapTexts:
    """The texts of a run (a `Run`, or the id of one), of a file, of a list, or of a table with a column `text`."""
    if isinstance(source, Run):
        return texts_of_run(model, source, part=part)
    if isinstance(source, pl.DataFrame):
        return texts_of_table(model, source, name="the table")
    if not isinstance(source, (str, Path)):
        return texts_of_table(model, pl.DataFrame({"text": list(source)}), name="the list")
    if isinstance(source, str) and _is_run(source):
        return texts_of_run(model, open_run(source), part=part)
    table = read_samples(Path(source), what="text")
    return texts_of_table(model, table.with_columns(pl.Series("text", words_of(table))), name=str(source))


def _is_run(source: str) -> bool:
    """Whether a text names a run, not a file: file names have a dot or a slash."""
    return "." not in source and "/" not in source


def activation_map(
    model: str | Model | Opened,
    source: Run | Path | str | Sequence[str] | pl.DataFrame,
    *,
    layer: int | str = -1,
    method: str = PCA,
    token: str | None = None,
    colour: str | None = None,
    clusters: int = 0,
    neighbours: int = NEIGHBOURS,
    most: int = DRAWN,
    part: str = "",
) -> tuple[pl.DataFrame, go.Figure]:
    """The residual stream of many texts at one layer, in two dimensions: (table with one row per text, figure).

    `source`: a run or its id, a file of texts, texts, or a table with a column `text`. `layer`: from 0, negative from
    the end, or "final" for the final norm; every layer is oriented as the one before. `method`: pca, or umap of the
    first 50 components, with so many `neighbours`. `token`: last, mean (over tokens that are no sinks), or a place that
    the run has; unless given, the one that the run read. `colour`: a column of the table. `clusters`: that many, by
    k-means. At most `most` texts, drawn at random. `part`: of a run that has several. The states are kept in the
    activation store.

    Raises InputError for what does not fit, RunFailed where the store cannot be written."""
    opened = model if isinstance(model, Opened) else Opened(model) if isinstance(model, Model) else open_model(model)
    if isinstance(source, str) and _is_run(source):
        source = open_run(source)
    texts, token = chosen_texts(texts_from(opened.model, source, part=part), token, most)
    states = states_of(opened, texts, token)
    found = mapped(
        states,
        layers_of(states),
        _site(states, layer),
        method=method,
        neighbours=neighbours,
        clusters=clusters or (GROUPS if colour == CLUSTER else 0),
    )
    probes = probes_for(source, part, token) if isinstance(source, Run) else None
    read = None if probes is None else states_of(opened, texts, token, kind=probes.kind)
    table = map_table(texts, found, probes=probes, read=read)
    return table, figure_of(table, found, texts, colour=colour, model=str(opened.model.name))


def chosen_texts(texts: MapTexts, token: str | None, most: int) -> tuple[MapTexts, str]:
    """At most `most` of the texts, and the token they are read at: the source's own unless one is given."""
    token = texts.token if token is None else token
    texts.positions(token)  # says what is wrong with the token
    return drawn_from(texts, most), token


def _site(states: LayerStates, layer: int | str) -> Site:
    """The site that a layer stands for."""
    if layer == "final":
        return states.sites[-1]
    stream = states.sites[:-1]
    if not isinstance(layer, int) or not -len(stream) <= layer < len(stream):
        raise InputError(f"There is no layer {layer}; the model has layers 0 to {len(stream) - 1}, and 'final'.")
    return stream[layer]
