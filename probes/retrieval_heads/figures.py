"""Figures of the retrieval-head probe: which heads copy, how sparse they are, and what masking them does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.retrieval_heads.agreement import RunCorrelation, correlation_of_runs, scored_trials
from workbench.core.errors import InputError
from workbench.figures import heads, traces
from workbench.figures import style as theme
from workbench.figures.layout import about, dressed, sheet, ticks, x_axis
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers
from workbench.stats import intervals as statistics
from workbench.stats.clusters import FEWEST

KINDS = {"random heads": "random", "retrieval heads": "top"}  # curve -> kind of masking


def head_map(run: Any) -> go.Figure:
    """Retrieval score of every head; retrieval heads outlined."""
    frame = finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score")
    return heads.head_map(
        frame,
        label=_score(run),
        n_layers=info(run, "model", "layers"),
        n_heads=info(run, "model", "heads"),
        n_kv_heads=info(run, "model", "kv_heads"),
        marked="is_retrieval",
        diverging=not _copies(run),
        more=[c for c in ("ci_low", "ci_high", "activation_frequency") if c in frame.columns],
        title=f"{_score(run).capitalize()} of each head of {model_name(run)}",
        note=" ".join(filter(None, [_outlined(frame, run), _told(frame, run)])),
        n=_counted(frame, run),
    )


def score_curve(run: Any) -> go.Figure:
    """Scores from the highest, with the threshold and the share of heads above it."""
    frame = finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score")
    threshold = info(run, "config", "threshold")
    fig = heads.ranked(
        frame,
        label=_score(run),
        threshold=float(threshold) if threshold is not None else 0.1,
        title=f"{_score(run).capitalize()}s of {model_name(run)}, sorted",
        interval=_interval(frame, run),
        n=_counted(frame, run),
    )
    return about(fig, note=" ".join(filter(None, [_missing(frame), _told(frame, run)])))


def activation(run: Any) -> go.Figure:
    """How often a head copies at all against how much it copies."""
    frame = need(run, "heads", ("layer", "head", "score", "activation_frequency"))
    frame = finite(finite(frame, "score", what="head score"), "activation_frequency", what="activation frequency")
    fig = sheet(
        title=f"How often and how much the heads of {model_name(run)} {'copy' if _copies(run) else 'attend'}",
        x=f"activation frequency (share of trials{'' if _copies(run) else ' above the null question'})",
        y=_score(run),
        aspect=0.7,
        n=_counted(frame, run),
    )
    marked = frame["is_retrieval"].to_list() if "is_retrieval" in frame.columns else [False] * frame.height
    for name, wanted, style in (
        ("other heads", False, theme.Style(theme.NEUTRAL)),
        ("retrieval heads", True, theme.Style(theme.BLUE)),
    ):
        own = frame.filter(pl.Series([bool(m) == wanted for m in marked]))
        if own.is_empty():
            continue
        rows = own.select("layer", "head", "activation_frequency", "score").iter_rows()
        traces.add_points(
            fig,
            0,
            numbers(own, "activation_frequency"),
            numbers(own, "score"),
            name=name,
            style=style,
            hover=[f"layer {a}, head {b}<br>score {s:.3f}, active in {f:.0%}" for a, b, f, s in rows],
            custom=own.select("layer", "head").to_numpy(),
            opacity=0.85 if frame.height <= 256 else 0.4,
        )
    fig.layout.xaxis.range = [-0.04, 1.04]
    return dressed(fig)


def needle_map(run: Any) -> go.Figure:
    """Recall of the needle over context length and depth: unmasked, and with the top and random heads masked."""
    trials = finite(need(run, "trials", ("length", "depth", "recall")), "recall", what="recall")
    panels = [("no head masked", _mean_over(trials, ["length", "depth"]))]
    masked = _masked_cells(run)
    if masked is not None:
        panels += masked
    lengths = sorted({v for _, f in panels for v in f["length"].to_list()})
    depths = sorted({v for _, f in panels for v in f["depth"].to_list()})
    percent = max(depths) > 1
    fig = sheet(
        [name for name, _ in panels],
        title=f"Recall of the needle by {model_name(run)}",
        x="context length (tokens)",
        y="depth (%)",
        x_ticks=ticks(range(len(lengths)), [_length(v) for v in lengths], keep=True),
        y_ticks=ticks(range(len(depths)), [f"{v if percent else 100 * v:.0f}" for v in depths], keep=len(depths) <= 12),
        aspect=min(0.9, max(0.3, len(depths) / len(lengths))),
        cells=(len(depths), len(lengths)),
        n=f"{trials['needle'].n_unique()} needles ({trials.height:,} trials)" if "needle" in trials.columns else None,
        note="Depth 0 is the beginning of the context." + _closed(trials),
    )
    traces.colour_scale(fig, (0.0, 1.0), "recall")
    for i, (_, frame) in enumerate(panels):
        values = np.full((len(depths), len(lengths)), np.nan)
        count = np.zeros(values.shape)
        for length, depth, recall, size in frame.select("length", "depth", "recall", "size").iter_rows():
            values[depths.index(depth), lengths.index(length)] = np.nan if recall is None else recall
            count[depths.index(depth), lengths.index(length)] = size
        d, s = np.meshgrid(depths, lengths, indexing="ij")
        custom = np.stack([s, d, values, count], axis=-1)
        hover = (
            "%{customdata[0]} tokens, depth %{customdata[1]:.3g}<br>recall %{customdata[2]:.3f} (n = %{customdata[3]})"
        )
        labels = np.vectorize(lambda v: f"{v:.2f}" if np.isfinite(v) else "")(values)
        traces.add_cells(fig, i, values, custom=custom, hover=hover, ends=(0.0, 1.0), labels=labels, reverse=True)
    return dressed(fig)


def masking(run: Any) -> go.Figure:
    """Recall against the number of masked heads: the top heads and random heads, each with its interval where the run
    says both."""
    frame = finite(need(run, "masking", ("k", "heads", "draw", "recall")), "recall", what="recall")
    recalls = maybe(run, "masked_recall", ("k", "heads", "recall", "ci_low", "ci_high", "n", "rows"))
    curves = _curves(frame, recalls)
    known = any(np.isfinite(numbers(data, "low")).any() for by_name in curves.values() for data in by_name.values())
    fig = sheet(
        [f"{a} ablation" if a and len(curves) > 1 else "" for a in curves],
        title=f"Masking retrieval heads of {model_name(run)}",
        x="masked heads (K)",
        y="recall",
        interval=f"both bands are 95 % intervals over {_independent(run)}, that of random heads over their draws too"
        if known
        else "",
        n=_masked_n(run, frame, recalls),
        note="Random heads are drawn from the same layers, none with a score above the threshold."
        + (" Heads were chosen on other needles." if _held_out(run) else "")
        + ("" if known else " No intervals: " + _why_none(recalls)),
    )
    baseline = _baseline(run, frame)
    for i, by_name in enumerate(curves.values()):
        for name, data in by_name.items():
            if data.is_empty():
                continue
            if baseline is not None and not (data["k"] == 0).any():  # every curve starts where nothing is masked
                data = pl.concat([pl.DataFrame({"k": [0], "recall": [baseline]}), data], how="diagonal_relaxed")
            top = name == "retrieval heads"
            style = theme.Style(theme.BLUE) if top else theme.Style(theme.NEUTRAL, "dash", "square")
            traces.add_curve(
                fig,
                i,
                numbers(data, "k"),
                numbers(data, "recall"),
                name=name,
                style=style,
                legend=i == 0,
                low=numbers(data, "low"),
                high=numbers(data, "high"),
                hover="K = %{x}: recall %{y:.3f}",
            )
        traces.level_axis(fig, i)
        traces.whole_numbers(x_axis(fig, i), numbers(frame, "k"))
    return dressed(fig)


def enough(run: Any) -> go.Figure:
    """How many needles are enough: overlap of the top heads with those of all needles (table ``enough``)."""
    frame = finite(need(run, "enough", ("trials", "top", "overlap")), "overlap", what="overlap")
    used = "needles" if "needles" in frame.columns else "trials"  # before, trials were drawn
    kind = _independent(run) if used == "needles" else used
    fig = sheet(
        title=f"How many {kind} are enough, {model_name(run)}",
        x=f"{kind} used" if used == "needles" or not _copies(run) else "successful trials used",
        y=f"overlap with the heads of all {kind}",
        interval="95 % of random subsets" if "ci_low" in frame.columns else "",
    )
    names = [str(v) for v in frame["top"].unique(maintain_order=True).to_list()]
    looks = theme.sequence(names)
    for name in names:
        own = frame.filter(pl.col("top").cast(pl.String) == name).sort(used)
        traces.add_curve(
            fig,
            0,
            numbers(own, used),
            numbers(own, "overlap"),
            style=looks[name],
            name=f"top {name}" if name.isdigit() else name,
            low=numbers(own, "ci_low"),
            high=numbers(own, "ci_high"),
        )
    traces.level_axis(fig, 0)
    return dressed(fig)


def compare(a: Any, b: Any, *, seed: int = 0) -> go.Figure:
    """The head scores of two runs against each other, with Pearson's r and its interval: over needles, or over heads,
    and then it says so, where a run does not tell its needles."""
    frames = [finite(need(run, "heads", ("layer", "head", "score")), "score", what="head score") for run in (a, b)]
    both = frames[0].join(frames[1], on=["layer", "head"], suffix="_b")
    if both.height < 2:
        raise InputError("The two runs have fewer than two heads in common: their maps cannot be compared.")
    rng = np.random.default_rng(seed)
    data = [(info(run, "data", "fingerprint"), info(run, "config", "resample", default="needles")) for run in (a, b)]
    same = data[0] == data[1] and data[0][0] is not None
    r = correlation_of_runs(*(scored_trials(run) for run in (a, b)), same_needles=same, rng=rng)
    if r is None:  # of published scores nobody knows which trial is of which needle
        of_heads = statistics.pearson(both["score"], both["score_b"], rng=rng)
        r = RunCorrelation(of_heads.value, of_heads.low, of_heads.high, "heads, not needles")
    ends = f"[{traces.number(r.low)}, {traces.number(r.high)}]<br>over " if np.isfinite(r.low) else ""
    names = (model_name(a), model_name(b))
    if names[0] == names[1]:
        names = ("first run", "second run")
    return heads.against(
        *frames,
        names=names,
        label="retrieval score",
        correlation=f"Pearson r = {traces.number(r.value)}<br>{ends}{r.over}",
        title=f"Retrieval scores: {names[0]} and {names[1]}",
    )


def of_several(runs: Sequence[Any]) -> go.Figure:
    """:func:`compare` of two runs. Raises InputError for more."""
    if len(runs) > 2:
        raise InputError(f"The figure of several runs of 'retrieval-heads' shows two, not {len(runs)}.")
    return compare(*runs)


def attention(run: Any) -> go.Figure:
    """The attention score of every head against its control, and against its copying score where the run has one."""
    frame = finite(need(run, "heads", ("layer", "head", "score", "score_chance", "told_apart")), "score", what="score")
    panels = [("against the control", "score_chance", "score with another passage's question")]
    if "copying_score" in frame.columns and frame["copying_score"].null_count() < frame.height:
        panels.append(("against copying", "copying_score", "copying score"))
    fig = sheet(
        [name if len(panels) > 1 else "" for name, *_ in panels],
        title=f"Heads of {model_name(run)} that attend from a question to its passage",
        x=[label for *_, label in panels],
        y="attention score",
        share_x=False,
        aspect=0.9,
        n=_counted(frame, run),
        note=" ".join(filter(None, [_told(frame, run), _overlap(run)])),
    )
    told = frame["told_apart"].to_list()
    for i, (_, column, label) in enumerate(panels):
        for name, wanted, style in (
            ("other heads", False, theme.Style(theme.NEUTRAL)),
            ("told from threshold and control", True, theme.Style(theme.BLUE)),
        ):
            own = frame.filter(pl.Series([bool(mark) == wanted for mark in told]))
            if own.is_empty():
                continue
            rows = own.select("layer", "head", "score", column).iter_rows()
            traces.add_points(
                fig,
                i,
                numbers(own, column),
                numbers(own, "score"),
                name=name,
                style=style,
                hover=[f"layer {a}, head {b}<br>score {s:.3f}, {label} {c:.3f}" for a, b, s, c in rows],
                custom=own.select("layer", "head").to_numpy(),
                opacity=0.85 if frame.height <= 256 else 0.4,
                legend=i == 0,
            )
    return dressed(fig)


def tasks(run: Any) -> go.Figure:
    """The score on the tasks against the number of masked heads, and what masking takes: the top heads and random
    ones, each with its interval."""
    columns = ("k", "heads", "score", "ci_low", "ci_high", "n", "rows")
    frame = finite(need(run, "task_scores", columns), "score", what="score")
    metric = str(info(run, "config", "task_metric", default="f1"))
    metric = {"exact": "exact match", "f1": "F1", "last_number": "last number right"}.get(metric, metric)
    n, rows = int(frame["n"].max()), int(frame["rows"].max())
    known = np.isfinite(numbers(frame, "ci_low")).any()
    fig = sheet(
        ["score", "what masking takes"],
        title=f"Tasks under masked heads of {model_name(run)}",
        x="masked heads (K)",
        y=[metric, f"drop of {metric}"],
        share_y=False,
        interval="95 % over questions, of random heads over their draws too; drops are paired" if known else "",
        n=f"{n} questions" if n == rows else f"{n} groups ({rows:,} questions)",
        note="Heads were chosen on needles; random heads are of the same layers, none with a score above the threshold."
        + (" Asked to reason first." if info(run, "config", "chain_of_thought", default=False) else "")
        + ("" if known else f" No intervals: they need {FEWEST} questions or groups."),
    )
    none = frame.filter(pl.col("heads") == "none")
    for i, prefix in enumerate(("", "drop_")):
        for name, kind in KINDS.items():
            own = frame.filter(pl.col("heads") == prefix + kind).sort("k")
            if own.is_empty():
                continue
            own = own if prefix else pl.concat([none, own])
            top = kind == "top"
            traces.add_curve(
                fig,
                i,
                numbers(own, "k"),
                numbers(own, "score"),
                name=name,
                style=theme.Style(theme.BLUE) if top else theme.Style(theme.NEUTRAL, "dash", "square"),
                legend=i == 0,
                low=numbers(own, "ci_low"),
                high=numbers(own, "ci_high"),
                hover="K = %{x}: %{y:.3f}",
            )
        traces.whole_numbers(x_axis(fig, i), numbers(frame, "k"))
    traces.level_axis(fig, 0)
    traces.add_rule(fig, 1, y=0.0)
    return dressed(fig)


FIGURES = {
    "head_map": head_map,
    "score_curve": score_curve,
    "needle_map": needle_map,
    "masking": masking,
    "activation": activation,
    "enough": enough,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    more = {} if _copies(run) else {"attention": attention}
    return drawn(run, FIGURES | more | ({"tasks": tasks} if "task_scores" in run.tables else {}))


def _overlap(run: Any) -> str:
    """What the two lists of heads have in common, beside chance, at the largest k up to 16."""
    overlaps = maybe(run, "overlap", ("k", "overlap", "by_chance", "by_chance_in_layers"))
    if overlaps is None or overlaps.is_empty():
        return ""
    row = (overlaps.filter(pl.col("k") <= 16) if overlaps["k"].min() <= 16 else overlaps).sort("k").row(-1, named=True)
    return (
        f"The {row['k']} best heads have {row['overlap']:.0%} in common with the {row['k']} that copy best; random "
        f"heads would have {row['by_chance']:.0%}, random heads of the same layers {row['by_chance_in_layers']:.0%}."
    )


def _mean_over(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    recall = pl.col("recall").cast(pl.Float64).fill_nan(None)
    return frame.group_by(keys).agg(recall.mean(), size=recall.count()).sort(keys)


def _masked_cells(run: Any) -> list[tuple[str, pl.DataFrame]] | None:
    """Recall per length and depth at the largest K that has both: from ``masking`` where it has these columns,
    otherwise from the optional table ``masked_trials``."""
    columns = ("k", "heads", "length", "depth", "recall")
    frame = next((f for f in (maybe(run, t, columns) for t in ("masked_trials", "masking")) if f is not None), None)
    if frame is None or frame.is_empty():
        return None
    if "ablation" in frame.columns:
        frame = frame.filter(pl.col("ablation") == frame["ablation"][0])
    k = frame["k"].max()
    result = []
    for group, name in (("top", f"top {k} heads masked"), ("random", f"{k} random heads masked")):
        own = frame.filter((pl.col("heads") == group) & (pl.col("k") == k))
        if not own.is_empty():
            result.append((name, _mean_over(own, ["length", "depth"])))
    return result or None


def _curves(frame: pl.DataFrame, recalls: pl.DataFrame | None) -> dict[str | None, dict[str, pl.DataFrame]]:
    """Ablation → name of the curve → k, recall, low, high: of the table `masked_recall`, or of the means over draws,
    without intervals, where a run has none."""
    if recalls is not None and not recalls.is_empty():
        ends = recalls.rename({"ci_low": "low", "ci_high": "high"})
        none = ends.filter(pl.col("heads") == "none")
        own = {name: pl.concat([none, ends.filter(pl.col("heads") == kind)]) for name, kind in KINDS.items()}
        return {None: {name: data.sort("k") for name, data in own.items() if data.height > none.height}}
    ablations = frame["ablation"].unique(maintain_order=True).to_list() if "ablation" in frame.columns else [None]
    found: dict[str | None, dict[str, pl.DataFrame]] = {}
    for ablation in ablations:
        own = frame if ablation is None else frame.filter(pl.col("ablation") == ablation)
        means = own.group_by("k", "heads").agg(pl.col("recall").mean()).sort("k")
        found[ablation] = {name: means.filter(pl.col("heads") == kind) for name, kind in KINDS.items()}
    return found


def _why_none(recalls: pl.DataFrame | None) -> str:
    if recalls is None:
        return "the run has none of both kinds."
    return f"they need {FEWEST} needles that were tested."


def _masked_n(run: Any, frame: pl.DataFrame, recalls: pl.DataFrame | None) -> str | int | None:
    if recalls is not None and not recalls.is_empty():
        return _of(int(recalls["n"].max()), int(recalls["rows"].max()), _independent(run))
    return f"{int(frame['n'].max())} trials" if "n" in frame.columns else None


def _baseline(run: Any, masking: pl.DataFrame) -> float | None:
    """Recall with nothing masked: the row k = 0, else the mean over trials."""
    for frame in (masking.filter(pl.col("k") == 0), maybe(run, "trials", ("recall",))):
        if frame is not None and not frame.is_empty():
            value = frame["recall"].cast(pl.Float64).fill_nan(None).mean()
            if value is not None:
                return float(value)
    return None


def _closed(trials: pl.DataFrame) -> str:
    if "recall_closed" not in trials.columns:
        return ""
    return f" With the needle cut out, mean recall is {trials['recall_closed'].mean():.2f}."


def _independent(run: Any) -> str:
    """What the intervals of the run take for independent."""
    if info(run, "config", "passages", default="") and info(run, "config", "resample", default="") == "needles":
        return "passages"
    return str(info(run, "config", "resample", default="trials"))


def _interval(frame: pl.DataFrame, run: Any) -> str:
    """What the intervals of head scores are; nothing where the table has none."""
    known = "ci_low" in frame.columns and np.isfinite(numbers(frame, "ci_low")).any()
    return f"95 % over {_independent(run)} (score or t interval of clusters)" if known else ""


def _missing(frame: pl.DataFrame) -> str:
    """That no interval is drawn, and why."""
    known = "ci_low" in frame.columns and np.isfinite(numbers(frame, "ci_low")).any()
    if known:
        return ""
    return f"No intervals: they need {FEWEST} needles that count." if "n_needles" in frame.columns else "No intervals."


def _told(frame: pl.DataFrame, run: Any) -> str:
    """How many heads are above the threshold, beside how many would be by chance and how many are told apart."""
    if not {"is_retrieval", "told_apart", "score_chance", "ci_low"} <= set(frame.columns):
        return ""
    over = int(frame["is_retrieval"].sum())
    text = f"{over} of {frame.height} heads are above the threshold"
    if np.isfinite(numbers(frame, "p_adjusted")).any():
        chance = "chance" if _copies(run) else "the control"
        text += f", {int(frame['told_apart'].sum())} told from it and from {chance} (false discovery rate 5 %)"
    highest = float(frame["score_chance"].max())
    if not _copies(run):
        return f"{text}. With the question of another passage (the control) the highest score is {highest:.2f}."
    return (
        f"{text}. Looking at random places of the answer at the same steps, the highest score would be {highest:.2f}."
    )


def _copies(run: Any) -> bool:
    """Whether the scores of the run are of copying, and not of attention from a question to its passage."""
    return info(run, "config", "score", default="set") != "attention"


def _score(run: Any) -> str:
    return "retrieval score" if _copies(run) else "attention score"


def _outlined(frame: pl.DataFrame, run: Any) -> str:
    if "is_retrieval" not in frame.columns:
        return ""
    return "Outlined: retrieval heads." if _copies(run) else "Outlined: heads above the threshold."


def _of(n: int, rows: int, kind: str) -> str:
    return f"{n} {kind}" if kind == "trials" else f"{n} {kind[:-1] if n == 1 else kind} ({rows:,} trials)"


def _held_out(run: Any) -> bool:
    """Heads were masked on other needles than those that chose them."""
    trials, threshold = maybe(run, "trials", ("needle", "recall")), info(run, "config", "recall_threshold", default=0.5)
    wanted = info(run, "config", "mask_on", default="same") == "held_out"
    return wanted and trials is not None and trials.filter(pl.col("recall") > threshold)["needle"].n_unique() > 1


def _counted(frame: pl.DataFrame, run: Any) -> str | None:
    """The clusters and the trials that the scores of the table `heads` rest on."""
    if "n_trials" not in frame.columns or frame["n_trials"].max() is None:
        return None
    rows = int(frame["n_trials"].max())
    if "n_needles" not in frame.columns:
        return f"{rows} trials"
    return _of(int(frame["n_needles"].max()), rows, _independent(run))


def _length(value: float) -> str:
    return f"{value / 1000:g}K" if value >= 1000 and value % 1000 == 0 else f"{value:g}"
