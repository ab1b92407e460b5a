"""Figures of the representation-geometry probe: effective dimension over layers and training, spectra, maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from probes.representation_geometry import shape_figures, similarity_figures
from probes.representation_geometry.training_steps import logarithmic, shade, step_axis, step_scale
from workbench.core.errors import InputError
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.point_map import map_figure
from workbench.figures.run_tables import drawn, finite, info, maybe, model_name, need, numbers

INTERVAL = "95 % spread at this number of texts (bootstrap over texts); no bias of a finite sample is in it"
MEASURES = {
    "rankme": ("RankMe (covariance eigenvalues)", "ci_low", "ci_high"),
    "alpha": ("α of the spectrum", "alpha_low", "alpha_high"),
    "rankme_singular": ("RankMe (singular values, uncentred)", "rankme_singular_low", "rankme_singular_high"),
    "participation_ratio": ("participation ratio", "participation_ratio_low", "participation_ratio_high"),
    "stable_rank": ("stable rank", "stable_rank_low", "stable_rank_high"),
}


def layers(run: Any) -> go.Figure:
    """RankMe, α and the other measures over layers, one curve per checkpoint."""
    frame = _table(run)
    shown = _measures(frame)
    keys = _checkpoints(frame)
    colours = _ordered(len(keys))
    last = frame.filter(pl.col("checkpoint") == keys[-1])
    if last["layer"].n_unique() < 2:
        raise InputError("The run measured one layer only: there is no course over layers to draw.")
    fig = sheet(
        [""] * len(shown),
        title=f"Geometry of {model_name(run)} over layers",
        x="layer",
        y=[MEASURES[m][0] for m in shown],
        x_ticks=ticks(range(int(frame["layer"].max()) + 1)),
        share_y=False,
        aspect=0.75,
        interval=INTERVAL,
        n=_texts(frame),
    )
    for i, measure in enumerate(shown):
        for j, key in enumerate(keys):
            own = frame.filter(pl.col("checkpoint") == key).sort("layer")
            if not np.isfinite(numbers(own, measure)).any():
                continue
            _, low, high = MEASURES[measure]
            traces.add_curve(
                fig,
                i,
                numbers(own, "layer"),
                numbers(own, measure),
                name=_name(own, key),
                legend=i == 0 and len(keys) <= 8,
                style=theme.Style(colours[j]),
                low=numbers(own, low),
                high=numbers(own, high),
                hover="layer %{x}: %{y:.4g}",
            )
    if len(keys) > 8:
        step_scale(fig, frame)
    return dressed(fig)


def trajectory(run: Any) -> go.Figure:
    """RankMe and α over training steps, phases shaded."""
    frame = _table(run)
    layer = int(frame["layer"].max())
    frame = frame.filter((pl.col("layer") == layer) & pl.col("step").is_not_null()).sort("step")
    if frame["step"].n_unique() < 2:
        raise InputError("The run has fewer than two checkpoints with a step: there is no trajectory to draw.")
    shown = [(frame, m, *MEASURES[m]) for m in _measures(frame)[:2]]
    loss = maybe(run, "checkpoints", ("step", "loss"))
    if loss is not None and np.isfinite(numbers(loss, "loss")).any():
        shown.append(
            (
                loss.filter(pl.col("step").is_not_null()).sort("step"),
                "loss",
                "next-token loss (nats)",
                "loss_low",
                "loss_high",
            )
        )
    steps = numbers(frame, "step")
    fig = sheet(
        [""] * len(shown),
        title=f"Geometry of {model_name(run)} over training, layer {layer}",
        x="training step",
        y=[label for _, _, label, _, _ in shown],
        share_y=False,
        aspect=0.55 if len(shown) == 1 else 0.7,
        interval=INTERVAL,
        n=_texts(frame),
        note="Step 0 is drawn at the left edge." if steps.min() == 0 and logarithmic(steps) else "",
    )
    for i, (table, measure, label, low, high) in enumerate(shown):
        place = step_axis(fig, i, steps)
        traces.add_curve(
            fig,
            i,
            place(numbers(table, "step")),
            numbers(table, measure),
            name=label,
            style=theme.Style(theme.BLUE),
            legend=False,
            low=numbers(table, low),
            high=numbers(table, high),
            hover="step %{x}: %{y:.4g}",
        )
        shade(fig, i, run, place)
    return dressed(fig)


def spectrum(run: Any) -> go.Figure:
    """Eigenvalues against rank, both logarithmic, with the fitted power law; one panel per checkpoint or layer."""
    frame = finite(need(run, "spectrum", ("checkpoint", "layer", "rank", "eigenvalue")), "eigenvalue", what="spectrum")
    frame = frame.filter(pl.col("eigenvalue") > 0)
    if frame.is_empty():
        raise InputError("There is no spectrum to draw: no eigenvalue is positive.")
    keys = list(dict.fromkeys(frame["checkpoint"].to_list()))
    chosen = frame["layer"].max()
    over_layers = len(keys) == 1
    names = sorted(set(frame["layer"].to_list())) if over_layers else keys
    colours = _ordered(len(names))
    measured = maybe(run, "layers", ("checkpoint", "layer", "alpha", "alpha_intercept"))
    first, last = _fit_range(run, measured)
    fig = sheet(
        title=f"Spectrum of the representations of {model_name(run)}" + ("" if over_layers else f", layer {chosen}"),
        x="rank",
        y="eigenvalue (share of the total)",
        aspect=0.75,
        note=f"Dashed: the power law fitted to ranks {first} to {last}.",
        n=_texts(measured) if measured is not None else None,
    )
    totals = frame.group_by("checkpoint", "layer").agg(total=pl.col("eigenvalue").sum())
    frame = frame.join(totals, on=["checkpoint", "layer"]).with_columns(share=pl.col("eigenvalue") / pl.col("total"))
    drawn_layers = names if len(names) <= 6 else [names[round(j)] for j in np.linspace(0, len(names) - 1, 6)]
    for name, colour in zip(names, colours):
        if name not in drawn_layers:
            continue
        key, layer = (keys[0], name) if over_layers else (name, chosen)
        own = frame.filter((pl.col("checkpoint") == key) & (pl.col("layer") == layer)).sort("rank")
        rank, share = numbers(own, "rank"), numbers(own, "share")
        label = f"layer {name}" if over_layers else str(name)
        traces.add_curve(
            fig, 0, rank, share, name=label, style=theme.Style(colour), markers=False, hover="rank %{x}: %{y:.3g}"
        )
        fit = _fit(measured, key, layer)
        inside = (rank >= first) & (rank <= last)
        if fit is not None and inside.sum() > 1:
            alpha, level = fit[0], fit[1] - np.log(float(own["total"][0]))  # the line is drawn in shares
            x = np.array([rank[inside].min(), rank[inside].max()])
            fig.add_scatter(
                x=x,
                y=np.exp(level - alpha * np.log(x)),
                mode="lines",
                line={"color": theme.RED, "dash": "dash"},
                showlegend=False,
                name=traces.safe(f"{label}: fit"),
                hovertemplate=f"{traces.safe(label)}: α = {alpha:.3f}<extra></extra>",
                xaxis="x",
                yaxis="y",
            )
    traces.log_axis(x_axis(fig, 0), numbers(frame, "rank"))
    traces.log_axis(y_axis(fig, 0), numbers(frame, "share"))
    return dressed(fig)


def embedding(run: Any) -> go.Figure:
    """PCA and UMAP of the features, coloured by the column that the run was told to."""
    frame = need(run, "map", ("method", "x", "y"))
    methods = frame["method"].unique(maintain_order=True).to_list()
    coloured = "colour" in frame.columns and frame["colour"].null_count() < frame.height
    names = {"pca": "PCA", "umap": "UMAP"}
    return map_figure(
        [(names.get(m, m), frame.filter(pl.col("method") == m)) for m in methods],
        colour="colour" if coloured else None,
        label=str(info(run, "config", "colour", default="")),
        title=f"Map of the representations of {model_name(run)}",
        n=f"{frame.filter(pl.col('method') == methods[0]).height} texts",
    )


def eigen_ablation(run: Any) -> go.Figure:
    """Loss (and accuracy) with the top k eigen-directions kept or removed, against random directions."""
    frame = need(run, "ablation", ("directions", "k", "loss"))
    if "checkpoint" in frame.columns:  # the last one
        frame = frame.filter(pl.col("checkpoint") == frame["checkpoint"][-1])
    measures = [("loss", "next-token loss (nats)", "ci_low", "ci_high")]
    measures += [("accuracy", "accuracy", "accuracy_low", "accuracy_high")] if "accuracy" in frame.columns else []
    measures = [m for m in measures if np.isfinite(numbers(frame, m[0])).any()]
    edited = frame.filter((pl.col("directions") != "none") & (pl.col("k") > 0))
    if not measures or edited.is_empty():
        raise InputError("There is no ablation to draw: no eigen-direction was removed or kept.")
    fig = sheet(
        [""] * len(measures),
        title=f"Removing and keeping eigen-directions of {model_name(run)}",
        x="directions (k)",
        y=[m[1] for m in measures],
        share_y=False,
        interval="95 %, Student's t over texts, Wilson's for accuracy; of random directions, texts and draws both vary",
        n=f"{frame['n'].max()} texts" if "n" in frame.columns else None,
    )
    names = {
        "remove": "top k removed",
        "keep": "top k kept",
        "remove random": "random k removed",
        "keep random": "random k kept",
    }
    hues = {"remove": (theme.BLUE, "circle"), "keep": (theme.RED, "square")}
    for i, (measure, _, low, high) in enumerate(measures):
        for how in edited["directions"].unique(maintain_order=True).to_list():
            hue, symbol = hues.get(str(how).split()[0], (theme.OCHRE, "diamond"))
            style = (
                theme.Style(hue, "dash", f"{symbol}-open")
                if "random" in str(how)
                else theme.Style(hue, "solid", symbol)
            )
            own, ends = edited.filter(pl.col("directions") == how).sort("k"), (low, high)
            if own["k"].is_duplicated().any():  # several draws of random directions
                ends = (
                    ("draws_low", "draws_high") if measure == "loss" else ("accuracy_draws_low", "accuracy_draws_high")
                )
                there = [pl.col(end).first() for end in ends if end in own.columns]  # earlier runs have none
                own = own.group_by("k").agg(pl.col(measure).cast(pl.Float64).mean(), *there).sort("k")
            traces.add_curve(
                fig,
                i,
                numbers(own, "k"),
                numbers(own, measure),
                name=names.get(how, str(how)),
                style=style,
                legend=i == 0,
                low=numbers(own, ends[0]) if ends[0] in own.columns else None,
                high=numbers(own, ends[1]) if ends[1] in own.columns else None,
                hover="k = %{x}: %{y:.4g}",
            )
        whole = numbers(frame.filter(pl.col("directions") == "none"), measure)
        if np.isfinite(whole).any():
            traces.add_rule(fig, i, y=float(whole[np.isfinite(whole)][0]), text="unedited")
    return dressed(fig)


def memorisation(run: Any) -> go.Figure:
    """Spearman correlation of the model's and an n-gram model's token probabilities over training."""
    frame = need(run, "checkpoints", ("step", "memorisation")).filter(pl.col("step").is_not_null())
    frame = finite(frame, "memorisation", what="memorisation curve").sort("step")
    if frame.height < 2:
        raise InputError("The run has fewer than two checkpoints with a step: there is no memorisation curve to draw.")
    steps = numbers(frame, "step")
    fig = sheet(
        title=f"Agreement of {model_name(run)} with an n-gram model",
        x="training step",
        y="Spearman ρ with the n-gram model",
        interval="95 % bootstrap over texts",
    )
    place = step_axis(fig, 0, steps)
    traces.add_curve(
        fig,
        0,
        place(steps),
        numbers(frame, "memorisation"),
        name="ρ",
        style=theme.Style(theme.BLUE),
        legend=False,
        low=numbers(frame, "memorisation_low"),
        high=numbers(frame, "memorisation_high"),
        hover="step %{x}: %{y:.3f}",
    )
    shade(fig, 0, run, place)
    return dressed(fig)


def samples(run: Any) -> go.Figure:
    """RankMe against the number of texts: how much of it is the sample."""
    frame = finite(need(run, "curve", ("checkpoint", "layer", "n", "rankme")), "rankme", what="RankMe")
    frame = frame.filter(pl.col("checkpoint") == frame["checkpoint"][-1])
    if frame["n"].n_unique() < 2:
        raise InputError("The table 'curve' has one number of texts only: there is no curve to draw.")
    keys = sorted(set(frame["layer"].to_list()))
    shown = keys if len(keys) <= 6 else [keys[round(j)] for j in np.linspace(0, len(keys) - 1, 6)]
    fig = sheet(
        title=f"RankMe of {model_name(run)} against the number of texts",
        x="texts",
        y="RankMe (covariance eigenvalues)",
        note="Dotted: estimated at infinitely many texts.",
    )
    whole = maybe(run, "layers", ("checkpoint", "layer", "rankme_inf"))
    for key, colour in zip(shown, _ordered(len(shown))):
        own = frame.filter(pl.col("layer") == key).sort("n")
        style = theme.Style(colour)
        traces.add_curve(
            fig,
            0,
            numbers(own, "n"),
            numbers(own, "rankme"),
            name=f"layer {key}",
            style=style,
            hover="%{x} texts: %{y:.4g}",
        )
        row = (
            None
            if whole is None
            else whole.filter((pl.col("layer") == key) & (pl.col("checkpoint") == frame["checkpoint"][0]))
        )
        limit = numbers(row, "rankme_inf") if row is not None else np.array([])
        if len(limit) and np.isfinite(limit[0]):
            ends = [float(own["n"].min()), float(own["n"].max())]
            traces.add_curve(
                fig,
                0,
                ends,
                [limit[0]] * 2,
                name=f"layer {key}, infinitely many texts",
                style=theme.Style(colour, "dot"),
                legend=False,
                markers=False,
            )
    return dressed(fig)


def correlation(run: Any) -> go.Figure:
    """How geometry goes with loss, memorisation and task numbers over the checkpoints."""
    frame = finite(
        need(run, "correlation", ("measure", "against", "method", "value", "low", "high")), "value", what="correlation"
    )
    pairs = list(dict.fromkeys(frame.select("measure", "against").rows()))
    short = {"rankme": "RankMe", "rankme_singular": "RankMe (singular)", "alpha": "α"}
    rows = [f"{short.get(m, m)} and {a}" for m, a in pairs]
    fig = sheet(
        title=f"Geometry of {model_name(run)} against what it can do, over training",
        x="correlation over checkpoints",
        y_ticks=ticks(range(len(rows)), rows, keep=True),
        row=1.9,
        aspect=0.1 * len(rows),
        interval="95 % bootstrap over checkpoints, which are a time series: read those of the differences",
        n=f"{frame['n'].max()} checkpoints" if "n" in frame.columns else None,
    )
    methods = frame["method"].unique(maintain_order=True).to_list()
    for j, (method, style) in enumerate(theme.sequence(methods).items()):
        own = frame.filter(pl.col("method") == method)
        at = (
            np.array([pairs.index(p) for p in own.select("measure", "against").rows()])
            + (j - (len(methods) - 1) / 2) * 0.2
        )
        traces.add_spots(
            fig,
            0,
            numbers(own, "value"),
            at,
            low=numbers(own, "low"),
            high=numbers(own, "high"),
            name=method,
            style=theme.Style(style.colour, "solid", theme.SYMBOLS[j % len(theme.SYMBOLS)]),
            labels=[rows[round(p)] for p in at],
        )
    traces.add_rule(fig, 0, x=0, dash="dot")
    fig.layout.xaxis.range = [-1.05, 1.05]
    y_axis(fig, 0).range = [len(rows) - 0.5, -0.5]
    return dressed(fig)


FIGURES = {
    "layers": layers,
    "trajectory": trajectory,
    "spectrum": spectrum,
    "embedding": embedding,
    "eigen_ablation": eigen_ablation,
    "memorisation": memorisation,
    "correlation": correlation,
    "samples": samples,
    "dimension": shape_figures.dimension,
    "similarity": similarity_figures.similarity_of_layers,
    "similarity_over_training": similarity_figures.similarity_of_checkpoints,
    "cosine": shape_figures.cosine,
    "curvature": shape_figures.curvature,
}


def figures(run: Any) -> dict[str, go.Figure]:
    """Every figure that the tables of the run allow."""
    return drawn(run, FIGURES)


def _table(run: Any) -> pl.DataFrame:
    frame = need(run, "layers", ("checkpoint", "step", "layer", "rankme", "alpha"))
    frame = frame.with_columns(pl.col("checkpoint").cast(pl.String).fill_null("model"))
    return finite(frame, "rankme", what="RankMe")


def _measures(frame: pl.DataFrame) -> list[str]:
    return [m for m in MEASURES if m in frame.columns and np.isfinite(numbers(frame, m)).any()]


def _checkpoints(frame: pl.DataFrame) -> list[str]:
    order = frame.group_by("checkpoint", maintain_order=True).agg(pl.col("step").min())
    return order.sort("step", nulls_last=True, maintain_order=True)["checkpoint"].to_list()


def _ordered(count: int) -> list[str]:
    """Colours of things in an order (layers, checkpoints): along the sequential scale, its palest part left out."""
    if count == 1:
        return [theme.BLUE]
    # rounding to known stops keeps a dark form for every colour
    stops = np.linspace(2, len(theme.SEQUENTIAL) - 1, count).round().astype(int)
    return [theme.SEQUENTIAL[s] for s in stops]


def _name(frame: pl.DataFrame, key: str) -> str:
    step = frame["step"][0]
    return f"step {step}" if step is not None else key.rstrip("/").rsplit("/", 1)[-1]


def _texts(frame: pl.DataFrame | None) -> str | None:
    if frame is None or "n" not in frame.columns or frame["n"].max() is None:
        return None
    return f"{frame['n'].max()} texts"


def _fit_range(run: Any, measured: pl.DataFrame | None) -> tuple[int, int]:
    value = info(run, "config", "fit_range")
    if measured is not None and {"fit_first", "fit_last"} <= set(measured.columns):
        used = measured.filter(pl.col("alpha").is_not_null() & pl.col("fit_first").is_not_null())
        value = (used["fit_first"][-1], used["fit_last"][-1]) if used.height else value
    try:
        first, last = (int(v) for v in value)
        return first, last
    except (TypeError, ValueError):
        return 12, 100


def _fit(measured: pl.DataFrame | None, checkpoint: str, layer: int) -> tuple[float, float] | None:
    """(alpha, ln eigenvalue at rank 1) of the line that was fitted, whatever its weights were."""
    if measured is None:
        return None
    row = measured.filter((pl.col("checkpoint").cast(pl.String) == str(checkpoint)) & (pl.col("layer") == layer))
    found = [float(numbers(row, c)[0]) for c in ("alpha", "alpha_intercept")] if row.height else [np.nan]
    return (found[0], found[1]) if np.isfinite(found).all() else None
