"""Figures of the features of a selection: which there are, what they mean, how good they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.data_selection.comparison_figures import clusters_of_pool
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.figure_geometry import columns_of
from workbench.figures.layout import about, dressed, sheet, ticks, y_axis
from workbench.figures.run_tables import finite, maybe, model_name, need, numbers
from workbench.figures.text_table import word_table

TOP = 12
PASSAGES = 2  # of a feature, on its card
BEFORE, AFTER = 28, 20  # characters around the strongest token: so few that a narrow card shows it


def feature_map(run: Any) -> go.Figure:
    """The features that weigh most for any target, over all targets."""
    frame = finite(need(run, "features", ("target", "feature", "weight")), "weight", what="feature weight")
    targets = frame["target"].unique(maintain_order=True).to_list()
    if len(targets) < 2:
        raise InputError("The run has one target only: there is no map of features and targets to draw.")
    each = max(3, 24 // len(targets))
    by = [name for name in ("distinctive", "contribution") if name in frame.columns] or ["weight"]
    top = frame.sort(by, descending=True).group_by("target", maintain_order=True).head(each)
    chosen = [f for t in targets for f in top.filter(pl.col("target") == t)["feature"].to_list()]
    chosen = list(dict.fromkeys(chosen))
    values = np.full((len(targets), len(chosen)), np.nan)
    for target, feature, weight in (
        frame.filter(pl.col("feature").is_in(chosen)).select("target", "feature", "weight").iter_rows()
    ):
        values[targets.index(target), chosen.index(feature)] = weight
    fig = sheet(
        title=f"Features of the targets, {model_name(run)}",
        x="feature",
        x_ticks=ticks(range(len(chosen)), [str(f) for f in chosen], keep=True),
        y_ticks=ticks(range(len(targets)), [str(t) for t in targets], keep=True),
        aspect=min(0.8, max(0.15, len(targets) / len(chosen))),
        cells=(len(targets), len(chosen)),
        note=f"The {each} features that "
        + ("set each target apart most" if by != ["weight"] else "weigh most for each target")
        + "; a cell has no value where a feature is not among a target's.",
    )
    ends = traces.limits(values)
    traces.colour_scale(fig, ends, "weight")
    custom = np.empty((*values.shape, 3), dtype=object)
    for r, t in enumerate(targets):
        for c, f in enumerate(chosen):
            custom[r, c] = [traces.safe(t), f, values[r, c]]
    traces.add_cells(
        fig,
        0,
        values,
        custom=custom,
        hover="%{customdata[0]}, feature %{customdata[1]}: %{customdata[2]:.3g}",
        ends=ends,
        reverse=True,
    )
    return dressed(fig)


def features(run: Any) -> go.Figure:
    """The features that set each target apart from the pool, with what they stand for where the run has explained them;
    of a run that does not say, those that weigh most."""
    told = need(run, "features", ("target", "feature", "weight"))
    by = "contribution" if {"contribution", "lift", "distinctive"} <= set(told.columns) else "weight"
    frame = finite(told, by, what="feature weight")
    targets = frame["target"].unique(maintain_order=True).to_list()
    named = _explained(run)
    most = TOP if len(targets) < 5 else TOP // 2
    order = {"by": ["distinctive", by], "descending": True} if by != "weight" else {"by": by, "descending": True}
    tops = [frame.filter(pl.col("target") == t).sort(**order).head(most) for t in targets]
    if len(targets) > 4:  # narrow panels
        named = {feature: words.partition(" / ")[0] for feature, words in named.items()}
    labels = [[_labelled(row, named) for row in top.iter_rows(named=True)] for top in tops]
    note = "Feature number" + (" and the tokens on which it is strongest" if named else "") + "."
    if by == "contribution":
        note = (
            f"{note} Contribution: its part of the similarity, above the pool's. ×: how much more often it fires on "
            f"the examples than in the pool. Blue: the target's own (at least twice as often; FDR 5 %)."
        )
    fig = sheet(
        [str(t) if len(targets) > 1 else "" for t in targets],
        title=f"What sets the targets apart, {model_name(run)}"
        if by != "weight"
        else f"The targets, {model_name(run)}",
        x="contribution" if by != "weight" else "weight in the target",
        y_ticks=[ticks(range(len(names)), names, keep=True) for names in labels],
        share_x=by != "weight",
        share_y=False,
        aspect=0.8 if len(targets) < 5 else 0.45,
        columns=2 if len(targets) < 5 else 3,
        n=_examples(frame),
        note=note,
    )
    for i, (top, names) in enumerate(zip(tops, labels)):
        own = top["distinctive"].to_list() if by != "weight" else [True] * top.height
        for mine, colour in ((True, theme.BLUE), (False, theme.NEUTRAL)):
            rows = [k for k, is_own in enumerate(own) if is_own == mine]
            if rows:
                traces.add_bars(
                    fig,
                    i,
                    np.array(rows),
                    numbers(top, by)[rows],
                    name="the target's own" if mine else "other",
                    style=theme.Style(colour),
                    horizontal=True,
                    legend=False,
                    width=0.7,
                    labels=[names[k] for k in rows],
                )
        y_axis(fig, i).range = [top.height - 0.4, -0.6]
    return dressed(fig)


def _labelled(row: dict[str, Any], named: dict[Any, str]) -> str:
    lift = row.get("lift")
    words = [str(row["feature"]), *([named[row["feature"]]] if row["feature"] in named else [])]
    return "  ".join([*words, *([f"×{lift:.2g}"] if lift is not None else [])])


def _examples(frame: pl.DataFrame) -> str | None:
    if "n" not in frame.columns:
        return None
    least, most = frame["n"].min(), frame["n"].max()
    return f"{least} examples a target" if least == most else f"{least} to {most} examples a target"


def cards(run: Any) -> go.Figure:
    """The heaviest features: how often they fire, the passages that they fire on, and the tokens that they make more
    likely."""
    frame = need(run, "passages", ("feature", "place", "tokens", "activation"))
    weights = need(run, "features", ("feature", "weight"))
    first = ["distinctive"] if "distinctive" in weights.columns else []
    density = dict(weights.select("feature", "density").iter_rows()) if "density" in weights.columns else {}
    order = (
        weights.group_by("feature")
        .agg(pl.col("weight").cast(pl.Float64).max(), *(pl.col(name).any() for name in first))
        .sort(*first, "weight", "feature", descending=[*(True for _ in first), True, False])
        .select("feature", "weight")
    )
    effects = maybe(run, "effects", ("feature", "promotes"))
    promoted = dict(effects.select("feature", "promotes").iter_rows()) if effects is not None else {}
    rows = []
    for feature, weight in order.iter_rows():
        for i, row in enumerate(
            frame.filter(pl.col("feature") == feature).sort("place").head(PASSAGES).iter_rows(named=True)
        ):
            words = ", ".join(str(t).strip() for t in (promoted.get(feature) or [])[:4])
            fires = f"{density[feature]:.2%}" if density.get(feature) is not None else ""
            first = (
                [feature, traces.number(weight), *([fires] if density else [])]
                if i == 0
                else [""] * (3 if density else 2)
            )
            rows.append((*first, _passage(row), *([words if i == 0 else ""] if promoted else [])))
    columns = [
        "feature",
        "weight",
        *(["fires on"] if density else []),
        "passages (strongest token in brackets)",
        *(["makes likelier"] if promoted else []),
    ]
    note = "Fires on: share of the pool's tokens." if density else ""
    fig = word_table(columns, rows, title="Features and the passages that they fire on", most=TOP, note=note)
    return about(fig, **clusters_of_pool(run))


def quality(run: Any) -> go.Figure:
    """How good the sparse autoencoder is on this model."""
    frame = need(run, "quality", ("site", "l0", "explained_variance", "dead_fraction"))
    names = {
        "site": "site",
        "l0": "active features (L0)",
        "explained_variance": "explained variance",
        "dead_fraction": "dead features",
        "loss_recovered_training": "loss recovered (in training)",
        "width": "width",
        "k": "k",
    }
    columns = [c for c in names if c in frame.columns]
    shares = {"explained_variance", "dead_fraction", "loss_recovered_training"}

    def word(column: str, value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.1%}" if column in shares and np.isfinite(value) else traces.number(value)
        return "n/a" if value is None else str(value)

    rows = [[word(c, v) for c, v in zip(columns, row)] for row in frame.select(columns).iter_rows()]
    return word_table([names[c] for c in columns], rows, title=f"The sparse autoencoder on {model_name(run)}")


def listed(run: Any) -> go.Figure:
    """The features of a published list that fire most often, and what they are said to stand for."""
    frame = need(run, "features", ("feature", "explanation"))
    frame = frame.sort("density", "feature", descending=[True, False], nulls_last=True)
    rows = [
        (feature, "n/a" if density is None else f"{density:.3%}", explanation or "")
        for feature, density, explanation in frame.select("feature", "density", "explanation").iter_rows()
    ]
    title = f"Features of {model_name(run)} that fire most often"
    return word_table(["feature", "fires on", "explanation"], rows, title=title, most=2 * TOP)


def _explained(run: Any) -> dict[Any, str]:
    """What a feature fires on most, from the strongest tokens of its passages."""
    frame = maybe(run, "passages", ("feature", "place", "start", "peak", "tokens"))
    found: dict[Any, list[str]] = {}
    for row in frame.sort("feature", "place").iter_rows(named=True) if frame is not None else ():
        token = _plain(_peak(row)[1])
        if token not in found.setdefault(row["feature"], []):
            found[row["feature"]].append(token)
    return {feature: " / ".join(tokens[:2]) for feature, tokens in found.items() if tokens}


def _peak(row: dict) -> tuple[int, str]:
    """(index, token) of the strongest token of a passage; ``peak`` counts from the beginning of the text, as ``start``
    does."""
    tokens = row["tokens"] or [""]
    index = (row.get("peak") or 0) - (row.get("start") or 0)
    index = index if 0 <= index < len(tokens) else 0
    return index, str(tokens[index])


def _passage(row: dict) -> str:
    index, _ = _peak(row)
    tokens = [str(t).replace("Ġ", " ").replace("▁", " ") for t in row["tokens"]]
    first, last = index, index + 1
    while first > 0 and sum(map(columns_of, tokens[first - 1 : index])) <= BEFORE:
        first -= 1
    while last < len(tokens) and sum(map(columns_of, tokens[index + 1 : last + 1])) <= AFTER:
        last += 1
    text = "".join(_bracketed(tokens[i]) if i == index else tokens[i] for i in range(first, last))
    return " ".join(text.split())


def _bracketed(token: str) -> str:
    core = token.strip()
    return token.replace(core, f"[{core}]", 1) if core else f"[{token}]"


def _plain(token: str) -> str:
    return token.replace("Ġ", " ").replace("▁", " ").strip() or "␣"
