"""Figures of the hopping probe: what is answered, where the stages of an answer are, and what back-patching solves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import drawn, finite, model_name, need, numbers
from workbench.stats.clusters import cluster_share

SETS = {"correct": theme.Style(theme.BLUE), "incorrect": theme.Style(theme.RED, "solid", "square")}
NAMED = {"correct": "answered", "incorrect": "failed"}
CONTROL = theme.Style(theme.NEUTRAL, "dash", "x")
CURVES = {
    "bridge_described_t1": "bridge in the state at t1",
    "bridge_described_t2": "bridge in the state at t2",
    "answer_described_t2": "answer in the state at t2",
    "answer_described_t1": "answer in the state at t1",
    "knockout": "changed where t1 is not seen",
    "knockout_r1": "changed where r1 is not seen",
    "knockout_r2": "changed where r2 is not seen",
    "attention_bridge": "attention adds the bridge",
    "attention_answer": "attention adds the answer",
    "mlp_bridge": "MLP adds the bridge",
    "mlp_answer": "MLP adds the answer",
    "mlp_prediction": "MLP adds what is said",
}
FOUR = {
    "first_hop": "first hop resolved",
    "propagation": "information propagated",
    "second_hop": "second hop resolved",
    "extraction": "prediction extracted",
}
ASKED = {
    "hop1": "first hop",
    "hop2": "second hop",
    "two_hop": "composition",
    "entity_shortcut": "entity shortcut",
    "relation_shortcut": "relation shortcut",
}
T1 = "t1: the last token of the first hop; t2: the last token."


def answers(run: Any) -> go.Figure:
    """How many questions, and parts of questions, the model answers."""
    frame = need(run, "items", ("row", *ASKED, "bridge"))
    asked = [name for name in reversed(ASKED) if frame[name].is_not_null().any()]  # the first one on top
    if not asked:
        raise InputError("There is nothing that was asked: every column of the table 'items' is empty.")
    found = []
    for name in asked:
        own = frame.filter(pl.col(name).is_not_null())
        values, bridges = own[name].cast(pl.Float64).to_numpy(), own["bridge"].str.to_lowercase().to_numpy()
        found.append(cluster_share(values, bridges))
    fig = sheet(
        title=f"What {model_name(run)} answers of two-hop questions",
        x="share answered",
        y_ticks=ticks(range(len(asked)), [ASKED[name] for name in asked], keep=True),
        aspect=0.42,
        row=1.6,
        note="Shortcuts leave out the first relation (entity shortcut) or the entity (relation shortcut).",
        interval="95 %, over bridges",
        n=f"{found[0].n} bridges",
        rows=frame.height,
    )
    traces.add_spots(
        fig,
        0,
        [one.value for one in found],
        list(range(len(asked))),
        name="answered",
        style=SETS["correct"],
        low=[one.low for one in found],
        high=[one.high for one in found],
        labels=[ASKED[name] for name in asked],
        legend=False,
    )
    _shares(fig, 0, len(asked))
    return dressed(fig)


def stages(run: Any) -> go.Figure:
    """At which layers each stage shows, of questions that are answered and of those that are not."""
    frame = need(run, "layers", ("split", "stage", "layer", "rate", "null", "n"))
    frame = finite(frame, "rate", what="share over the layers")
    shown = [stage for stage in CURVES if stage in frame["stage"].unique().to_list()]
    fig = sheet(
        [CURVES[stage] for stage in shown],
        title=f"Stages of a two-hop answer in {model_name(run)}",
        x="layer",
        y="share of questions",
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        aspect=0.62,
        note=f"{T1} Dashed: the control (names of other questions; a cut of another token).",
        interval="95 %, over bridges",
        n=_bridges(frame),
    )
    for i, stage in enumerate(shown):
        for split, style in SETS.items():
            own = frame.filter(stage=stage, split=split).sort("layer")
            if own.is_empty():
                continue
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, "rate"),
                name=NAMED[split],
                style=style,
                legend=i == 0,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
                hover="layer %{x}: %{y:.3f}",
            )
            if np.isfinite(numbers(own, "null")).any():
                traces.add_curve(
                    fig,
                    i,
                    numbers(own, "layer"),
                    numbers(own, "null"),
                    name=f"control, {NAMED[split]}",
                    style=theme.Style(theme.NEUTRAL, "dash" if split == "correct" else "dot"),
                    legend=i == 0,
                    markers=False,
                    hover="layer %{x}: %{y:.3f}",
                )
        y_axis(fig, i).range = [-0.03, 1.05]
    return dressed(fig)


def first_layers(run: Any) -> go.Figure:
    """The mean first layer of the paper's four stages, and how many questions reach them."""
    frame = need(run, "stages", ("split", "stage", "reached", "layer", "ci_low", "ci_high", "n"))
    frame = frame.filter(pl.col("stage").is_in(list(FOUR)))
    finite(frame, "layer", what="first layer of a stage")  # or there is nothing to draw
    shown = list(FOUR)[::-1]
    fig = sheet(
        ["first layer", "questions that reach it"],
        title=f"When {model_name(run)} resolves the hops",
        x=["layer", "share"],
        y_ticks=ticks(range(len(shown)), [FOUR[stage] for stage in shown], keep=True),
        share_x=False,
        columns=2,
        row=2.2,
        aspect=0.7,
        note="The mean first layer is over questions that reach the stage, so read it beside their share.",
        interval="95 %, over bridges",
        n=_bridges(frame),
    )
    for (split, style), shift in zip(SETS.items(), (0.14, -0.14)):
        own = frame.filter(split=split)
        if own.is_empty():
            continue
        at = [shown.index(stage) + shift for stage in own["stage"]]
        labels = [f"{FOUR[stage]}, {NAMED[split]}" for stage in own["stage"]]
        for i, (value, low, high) in enumerate(
            (("layer", "ci_low", "ci_high"), ("reached", "reached_low", "reached_high"))
        ):
            traces.add_spots(
                fig,
                i,
                numbers(own, value),
                at,
                name=NAMED[split],
                style=style,
                low=numbers(own, low),
                high=numbers(own, high),
                labels=labels,
                legend=i == 0,
            )
    _shares(fig, 1, len(shown))
    y_axis(fig, 0).range = y_axis(fig, 1).range
    return dressed(fig)


def back_patching(run: Any) -> go.Figure:
    """Of every pair of layers the share of failed questions that it solves, beside that of random donors."""
    frame = need(run, "backpatch", ("position", "source_layer", "target_layer", "solved", "control", "n"))
    frame = finite(frame, "solved", what="share that back-patching solves")
    positions = frame["position"].unique(maintain_order=True).to_list()
    size = int(frame["source_layer"].max()) + 1
    kinds = {"solved": "own later state"}
    if np.isfinite(numbers(frame, "control")).any():
        kinds["control"] = "state of a random question"
    panels = [(position, kind) for position in positions for kind in kinds]
    fig = sheet(
        [f"at {position}: {kinds[kind]}" for position, kind in panels],
        title=f"Failed questions that back-patching solves in {model_name(run)}",
        x="put after block",
        y="state after block",
        x_ticks=ticks(range(size)),
        y_ticks=ticks(range(size)),
        cells=(size, size),
        aspect=1.0,
        columns=len(kinds),
        note=f"{T1} Only later states are put earlier. No interval is drawn; the table has them.",
        n=_bridges(frame),
    )
    both = np.concatenate([numbers(frame, kind) for kind in kinds])
    ends = traces.limits(both, low=0.0)
    traces.colour_scale(fig, ends, "share solved")
    for i, (position, kind) in enumerate(panels):
        own = frame.filter(position=position)
        values = np.full((size, size), np.nan)
        values[own["source_layer"].to_numpy(), own["target_layer"].to_numpy()] = numbers(own, kind)
        source, target = np.indices(values.shape)
        custom = np.stack([source, target, values], -1).astype(object)
        traces.add_cells(
            fig,
            i,
            values,
            custom=custom,
            hover="from layer %{customdata[0]} to %{customdata[1]}: %{customdata[2]:.3f}",
            ends=ends,
        )
    return dressed(fig)


def solved(run: Any) -> go.Figure:
    """What any pair solves, and what one pair that was chosen on other bridges solves, beside random donors."""
    frame = finite(
        need(run, "oracle", ("split", "position", "pairs", "solved", "control", "n")),
        "solved",
        what="share that back-patching solves",
    )
    rows = [_spoken(row) for row in frame.iter_rows(named=True)]
    rows += [_spoken(row) for row in need(run, "best_pair").iter_rows(named=True)] if _has(run, "best_pair") else []
    rows = rows[::-1]
    labels = [label for label, _ in rows]
    fig = sheet(
        title=f"Back-patching against random donors in {model_name(run)}",
        x="share of questions whose answer is named",
        y_ticks=ticks(range(len(rows)), labels, keep=True, lines=2),
        row=2.4,
        aspect=min(0.95, 0.11 * len(rows) + 0.1),
        note=f"Any pair is an oracle (up to {frame['pairs'].max()} pairs), which random donors with as many pairs pass "
        "too. The one pair was chosen on other bridges.",
        interval="95 %, over bridges",
        n=_bridges(frame),
    )
    for part, name, style, shift in (
        ("solved", "own later state", SETS["correct"], 0.14),
        ("control", "random donor", CONTROL, -0.14),
    ):
        traces.add_spots(
            fig,
            0,
            _column(rows, part),
            [at + shift for at in range(len(rows))],
            name=name,
            style=style,
            low=_column(rows, f"{part}_low"),
            high=_column(rows, f"{part}_high"),
            labels=[f"{label}, {name}" for label in labels],
        )
    _shares(fig, 0, len(rows))
    return dressed(fig)


def _spoken(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A row of `oracle` or of `best_pair`, and what it is called."""
    where = "t1 or t2" if row["position"] == "either" else row["position"]
    if "split" in row:
        return f"{NAMED.get(row['split'], row['split'])}, {where}: any pair", row
    return f"failed, {where}: pair {row['source_layer']}→{row['target_layer']}", row


def _column(rows: Sequence[tuple[str, dict[str, Any]]], name: str) -> list[float]:
    return [float("nan") if row.get(name) is None else float(row[name]) for _, row in rows]


def _has(run: Any, table: str) -> bool:
    return table in list(run.tables() if callable(run.tables) else run.tables) and not run.table(table).is_empty()


def _bridges(frame: pl.DataFrame) -> str:
    """How many bridges, as a caption says it."""
    counts = frame["n"].drop_nulls()
    counts = counts.filter(counts > 0)
    if counts.is_empty():
        return ""
    low, high = int(counts.min()), int(counts.max())  # pyright: ignore[reportArgumentType]
    return f"{high} bridges" if low == high else f"{low} to {high} bridges"


def _shares(fig: go.Figure, i: int, rows: int) -> None:
    """The whole scale of shares, and room around the rows."""
    x_axis(fig, i).range = [-0.03, 1.03]
    y_axis(fig, i).range = [-0.6, rows - 0.4]


FIGURES = {
    "answers": answers,
    "stages": stages,
    "first_layers": first_layers,
    "back_patching": back_patching,
    "solved": solved,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)
