"""The tables of measured conditions: per prompt, along the output, per condition, and one condition over another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import polars as pl

from probes.branching_factor.branching_samples import correct, frame, sample_table, tree_table
from probes.branching_factor.conditions import DRAWS, MeasuredCondition, beyond_top, bf_of
from probes.branching_factor.config import Config
from probes.branching_factor.estimators import (
    around,
    bounds,
    curve_intervals,
    enough,
    interval,
    log_bf,
    over_prompts,
    prefix_curve,
    window_curve,
)
from probes.branching_factor.segments import segment_tables
from workbench.core.context import Context
from workbench.stats.intervals import multinomial_counts

BF = ("bf", "bf_entropy", "bf_nll", "bf_compat", "bf_full", "bf_late")
# of a condition: means over its prompts
MEANS = (*BF, "nats_per_byte", "mean_length", "ended", "distinct", "top50_short", "accuracy")


def condition_tables(found: Sequence[MeasuredCondition], config: Config, context: Context) -> dict[str, pl.DataFrame]:
    """`prompts`, `positions`, `samples`, `inputs`, `tree`, `conditions`, `enough`, `segments` and, where it has
    rows, `segment_means` of all conditions; `row` numbers the prompts over all of them."""
    names = ("prompts", "positions", "samples", "inputs", "tree", "conditions", "enough", "segments", "segment_means")
    tables = {name: [] for name in names}
    first_row = 0
    for measured in found:
        name = measured.condition.name
        prompts = prompt_table(measured, config, first_row)
        tables["prompts"].append(prompts)
        tables["positions"].append(position_table(measured, config, context.rng(f"positions/{name}")))
        tables["samples"].append(sample_table(measured, first_row))
        tables["tree"].append(tree_table(measured, first_row))
        segments, means = segment_tables(measured, config, context, first_row)
        tables["segments"].append(segments)
        tables["segment_means"].append(means)
        ids = pl.Series("ids", measured.condition.ids, dtype=pl.List(pl.Int64))
        tables["inputs"].append(prompts.select("row", "condition", "prompt").with_columns(ids))
        row = condition_row(measured, prompts, config, context.rng(f"prompts/{name}"))
        tables["conditions"].append(pl.DataFrame([row], infer_schema_length=None))
        tables["enough"].append(enough_table(measured, config, context.rng(f"enough/{name}")))
        first_row += prompts.height
    joined = {name: pl.concat(of_each, how="vertical_relaxed") for name, of_each in tables.items()}
    return {name: table for name, table in joined.items() if table.height or name != "segment_means"}


def prompt_table(found: MeasuredCondition, config: Config, first_row: int) -> pl.DataFrame:
    """One row per prompt. bf, bf_late and bf_full as `bias` says; bf_entropy, bf_nll and bf_compat uncorrected; ci over
    samples."""
    profile, alive = found.profile(), found.ids >= 0
    P, M = found.lengths.shape
    bf = bf_of(found, config)
    ends = [bounds(around(value, row)) if M > 1 else (np.nan, np.nan) for value, row in zip(bf, found.draws)]
    how = {"pool": config.pool, "bias": config.bias}
    full = log_bf(replace(profile, entropy=found.statistic("entropy_full")), "entropy", **how)[:, 0]
    late = log_bf(profile.without_first(config.late), config.estimator, **how)[:, 0]
    size = np.array([[len(text.encode()) for text in texts] for texts in found.texts]).sum(1)
    nats = np.nansum(profile.entropy, (1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "condition": [found.condition.name] * P,
            "row": list(range(first_row, first_row + P)),
            "prompt": found.condition.prompt,
            "bf": bf,
            "bf_entropy": bf_of(found, config, "entropy"),
            "bf_nll": bf_of(found, config, "nll"),
            "bf_compat": bf_of(found, config, "compat"),
            "ci_low": [low for low, _ in ends],
            "ci_high": [high for _, high in ends],
            "bf_full": np.exp(full),
            "bf_late": np.exp(late),
            "nats_per_byte": nats / size,
            "samples": [M] * P,
            "mean_length": found.lengths.mean(1),
            "ended": (found.finish == 1).mean(1),
            "distinct": [len(set(texts)) / M for texts in found.texts],
            "top50_short": (beyond_top(found) & alive).sum((1, 2)) / found.lengths.sum(1),
            "accuracy": correct(found).mean(1) if found.condition.answers else [np.nan] * P,
            "text": found.condition.texts,
        }
    return frame(columns)


def position_table(found: MeasuredCondition, config: Config, rng: np.random.Generator) -> pl.DataFrame:
    """One row per position of the output; entropy and alive are over all samples of all prompts, intervals over prompts
    and samples."""
    profile, N = found.profile(), found.ids.shape[2]
    P, M = found.lengths.shape
    how = {"pool": config.pool, "bias": config.bias}
    curve = np.exp(prefix_curve(profile, config.estimator, **how))
    alive = (found.ids >= 0).sum((0, 1))
    ends = {name: (np.full(N, np.nan),) * 2 for name in ("prefix", "window")}
    if P * M > 1:
        ends = curve_intervals(profile, config.estimator, **how, window=config.window, rng=rng)

    def wide(windows: np.ndarray) -> np.ndarray:
        return np.repeat(windows, config.window, axis=-1)[..., :N]

    columns = {
        "condition": [found.condition.name] * N,
        "position": list(range(N)),
        "bf_prefix": _mean(curve),
        "bf_window": wide(_mean(window_curve(profile, config.window))),
        "entropy": np.nansum(profile.entropy, (0, 1)) / alive,
        "alive": alive.astype(np.int64),
        "ci_low": ends["prefix"][0],
        "ci_high": ends["prefix"][1],
        "window_low": wide(ends["window"][0]),
        "window_high": wide(ends["window"][1]),
        "prompts": np.isfinite(curve).sum(0),
    }
    return frame(columns)


def enough_table(found: MeasuredCondition, config: Config, rng: np.random.Generator) -> pl.DataFrame:
    """One row per number of samples: BF and its interval with so many."""
    rows = enough(found.profile(), config.estimator, pool=config.pool, bias=config.bias, rng=rng)
    name = [found.condition.name] * len(rows)
    return frame({"condition": name} | {key: [row[key] for row in rows] for key in rows[0]})


def condition_row(found: MeasuredCondition, prompts: pl.DataFrame, config: Config, rng: np.random.Generator) -> dict:
    """The numbers of one condition; ci over prompts and samples."""
    times = multinomial_counts(prompts.height, DRAWS, rng)
    low, high = bounds(over_prompts(bf_of(found, config), found.draws, times))
    if found.lengths.size == 1:
        low = high = None  # nothing to resample
    rule, mean = found.condition.rule, {name: prompts[name].mean() for name in MEANS}
    pooled = np.exp(np.nansum(found.statistic("entropy")) / found.lengths.sum())
    return {
        "condition": found.condition.name,
        "model": found.condition.model.name,
        "template": found.condition.template,
        "ci_low": low,
        "ci_high": high,
        **mean,
        "bf_pooled": float(pooled),
        "prompts": prompts.height,
        "samples": config.samples,
        **asdict(rule),
    }


def comparison_row(a: MeasuredCondition, b: MeasuredCondition, config: Config, rng: np.random.Generator) -> dict:
    """BF of a over BF of b on the same prompts; prompts are resampled together, samples within each."""
    times = multinomial_counts(len(a.draws), DRAWS, rng)
    bf_a, bf_b = bf_of(a, config), bf_of(b, config)
    over_a, over_b = over_prompts(bf_a, a.draws, times), over_prompts(bf_b, b.draws, times)
    mean_a, mean_b = float(np.nanmean(bf_a)), float(np.nanmean(bf_b))
    ratio = difference = (None, None)
    if a.lengths.size > 1:
        ratio, difference = interval(over_a / over_b), interval(over_a - over_b)
    return {
        "a": a.condition.name,
        "b": b.condition.name,
        "bf_a": mean_a,
        "bf_b": mean_b,
        "ratio": mean_a / mean_b,
        "ratio_low": ratio[0],
        "ratio_high": ratio[1],
        "difference": mean_a - mean_b,
        "difference_low": difference[0],
        "difference_high": difference[1],
        "prompts": len(a.draws),
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over prompts of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
