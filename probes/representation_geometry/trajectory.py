"""Over the checkpoints of a training run: the course of the last layer, its phases, and what goes along with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from probes.representation_geometry import phases
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.core.wording import one_line
from workbench.stats.intervals import pearson, spearman


def course(layers: pl.DataFrame) -> pl.DataFrame:
    """The last layer over the checkpoints, by step; empty unless every checkpoint has a step."""
    last = layers.filter(pl.col("layer") == layers["layer"].max())
    return last.sort("step") if last["step"].null_count() == 0 else last.clear()


def phase_table(layers: pl.DataFrame, context: Context) -> pl.DataFrame:
    """`phases` of RankMe and alpha in the last layer, with a warning where checkpoints are too few for any."""
    along = course(layers)
    ends = {f"{end}_{of}": pl.Float64 for end in ("start", "end") for of in ("step", "low", "high", "rankme", "alpha")}
    schema = {"number": pl.Int64, "phase": pl.String, "layer": pl.Int64} | ends
    if along.height < 4 or along["rankme"].null_count():
        if layers["checkpoint"].n_unique() > 1:
            context.warn(f"Phases need at least four checkpoints with a step in their names; there are {along.height}.")
        return pl.DataFrame(schema=schema)
    steps, rankme = along["step"].to_numpy(), along["rankme"].to_numpy()
    found = phases.segment(steps, rankme, error=_error(along, "ci"), rng=context.rng("phases"))
    alpha = along["alpha"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    names = phases.named_with_alpha(found, alpha, error=_error(along, "alpha"), rng=context.rng("phases of alpha"))
    rows = [
        {
            "number": number,
            "phase": name,
            "layer": along["layer"][0],
            "start_step": phase.start_step,
            "end_step": phase.end_step,
            "start_low": phase.start_low,
            "start_high": phase.start_high,
            "end_low": phase.end_low,
            "end_high": phase.end_high,
            "start_rankme": along["rankme"][phase.start],
            "end_rankme": along["rankme"][phase.end],
            "start_alpha": along["alpha"][phase.start],
            "end_alpha": along["alpha"][phase.end],
        }
        for number, (phase, name) in enumerate(zip(found, names), 1)
    ]
    if not rows:
        context.warn(f"No phase stands out from the jitter of RankMe over the {along.height} checkpoints.")
    elif along.height < phases.FEW:
        context.warn(
            f"Phases of {along.height} checkpoints are told by the errors of their values alone: with fewer than "
            f"{phases.FEW} nobody knows how much training jitters from one to the next."
        )
    return pl.DataFrame(rows, schema=schema)


def _error(along: pl.DataFrame, of: str) -> np.ndarray | None:
    """Standard errors from the spread of a measure at its number of texts; None where it has none."""
    low, high = along[f"{of}_low"], along[f"{of}_high"]
    return None if low.null_count() or high.null_count() else (high - low).to_numpy() / (2 * 1.96)


def read_task(path: str) -> pl.DataFrame:
    """A table of numbers per checkpoint: `step`, each once, and at least one more column. Raises InputError."""
    frame = read_table(path, required=("step",), labels=("step",), what="task")
    try:
        # what is no whole number of steps is none, not the nearest below it
        frame = frame.with_columns(
            pl.col("step").cast(pl.Int64),
            *(pl.col(c).cast(pl.Float64).fill_nan(None) for c in frame.columns if c != "step"),
        )
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{path}: a task table holds numbers only, and whole ones in the column step ({one_line(error)})."
        ) from None
    for column in frame.columns[1:]:
        endless = frame[column].is_infinite().fill_null(False)
        if column != "step" and endless.any():
            raise InputError(f"{path}, row {endless.arg_true()[0] + 1}: the field '{column}' is infinite.")
    if frame.width < 2 or frame["step"].is_duplicated().any():
        raise InputError(f"{path} needs a column of numbers besides `step`, and each step once.")
    return frame


def check_task_steps(path: str, steps: Sequence[int | None], context: Context) -> None:
    """Say which checkpoints a task table has nothing for, before anything is computed; InputError where it has nothing
    for any."""
    known = set(read_task(path)["step"].to_list())
    missing = [step for step in steps if step not in known]
    if len(missing) == len(steps):
        own = ", ".join(str(s) for s in steps[:6] if s is not None)
        have = f"steps {own}{', …' if len(steps) > 6 else ''}" if own else "no step in their names"
        raise InputError(
            f"{path}: no row is of a checkpoint that is measured; the checkpoints have {have}, the table "
            f"{', '.join(map(str, sorted(known)[:6]))}{', …' if len(known) > 6 else ''}."
        )
    if missing:
        context.warn(
            f"{path} has no row for {len(missing)} of {len(steps)} checkpoints "
            f"({', '.join(map(str, missing[:6]))}): its correlations are over the others."
        )


def correlation_table(tables: Mapping[str, pl.DataFrame], task_path: str, context: Context) -> pl.DataFrame:
    """Geometry against loss, memorisation and task numbers over checkpoints. Checkpoints are a time series: intervals
    of plain correlations are too narrow, which is why those of the step-to-step differences stand beside them."""
    names, numbers = ("measure", "against", "method"), ("value", "low", "high")
    schema = dict.fromkeys(names, pl.String) | dict.fromkeys(numbers, pl.Float64) | {"n": pl.Int64}
    along = course(tables["layers"])
    if along.height < 4:
        return pl.DataFrame(schema=schema)
    along = along.join(tables["checkpoints"].select("step", "loss", "memorisation"), on="step")
    against = ["loss", "memorisation"]
    if task_path:
        task = read_task(task_path)
        task = task.rename({column: f"task: {column}" for column in task.columns if column != "step"})
        against += [column for column in task.columns if column != "step"]
        along = along.join(task, on="step", how="left")
    rows = []
    for measure in ("rankme", "rankme_singular", "alpha"):
        for other in against:
            pairs = along.select(measure, other).drop_nulls().to_numpy()
            if len(pairs) < 4:
                continue
            for method, statistic, values in (
                ("pearson", pearson, pairs),
                ("spearman", spearman, pairs),
                ("spearman of differences", spearman, np.diff(pairs, axis=0)),
            ):
                found = statistic(values[:, 0], values[:, 1], rng=context.rng(f"{measure} {other} {method}"))
                rows.append({"measure": measure, "against": other, "method": method} | found.as_dict())
    return pl.DataFrame(rows, schema=schema).fill_nan(None)
