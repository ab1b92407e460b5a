"""The tables of measured conditions: per prompt, along the output, per condition, and one condition over another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import polars as pl

from probes.branching_factor.bf_intervals import (
    curve_ends,
    mean_ends,
    paired_mean,
    prompt_ends,
    prompts_in,
    ratio_of_means,
)
from probes.branching_factor.branching_samples import correct, frame, sample_table, tree_table
from probes.branching_factor.cohort import Cohort, cohort_of, course_of, words_of
from probes.branching_factor.conditions import MeasuredCondition, beyond_top, bf_of
from probes.branching_factor.config import Config
from probes.branching_factor.estimators import enough, log_bf, prefix_curve, window_curve
from probes.branching_factor.per_byte import nats_per_byte, pieces_of
from probes.branching_factor.segments import segment_tables
from workbench.core.context import Context
from workbench.stats.clusters import FEWEST, cluster_share, false_discovery

BF = ("bf", "bf_entropy", "bf_nll", "bf_compat", "exp_entropy_untruncated", "bf_late")
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
        prompts = prompt_table(measured, config, first_row, context.rng(f"bootstrap/{name}"))
        tables["prompts"].append(prompts)
        cohort = cohort_of(measured.profile(), config.window, measured.condition.cluster, tokens=config.cohort)
        _tell(measured, cohort, config, context)
        tables["positions"].append(position_table(measured, config, cohort))
        tables["samples"].append(sample_table(measured, first_row))
        tables["tree"].append(tree_table(measured, first_row))
        segments, means = segment_tables(measured, config, context, first_row)
        tables["segments"].append(segments)
        tables["segment_means"].append(means)
        ids = pl.Series("ids", measured.condition.ids, dtype=pl.List(pl.Int64))
        tables["inputs"].append(prompts.select("row", "condition", "prompt").with_columns(ids))
        row = condition_row(measured, prompts, config, cohort, context.rng(f"course/{name}"))
        tables["conditions"].append(frame({key: [value] for key, value in row.items()}))
        tables["enough"].append(enough_table(measured, config, context.rng(f"enough/{name}")))
        first_row += prompts.height
    joined = {name: pl.concat(of_each, how="vertical_relaxed") for name, of_each in tables.items()}
    joined["conditions"] = _with_courses(joined["conditions"])
    return {name: table for name, table in joined.items() if table.height or name != "segment_means"}


def _with_courses(conditions: pl.DataFrame) -> pl.DataFrame:
    """Whether BF falls or rises over the output, its p adjusted for how many conditions were looked at."""
    p, order = (
        false_discovery(conditions[name].cast(pl.Float64).fill_null(np.nan).to_numpy())
        for name in ("slope_p", "slope_p_order")
    )
    said = [words_of(*row) for row in zip(conditions["slope"], p, order)]
    added = {"slope_p_adjusted": p, "slope_p_order_adjusted": order, "course": said}
    return conditions.with_columns(frame(added).get_columns())


def _tell(found: MeasuredCondition, cohort: Cohort, config: Config, context: Context) -> None:
    if config.cohort and not cohort.tokens:
        context.warn(
            f"{found.condition.name}: fewer than {FEWEST} prompts have samples that last {config.cohort} tokens (at "
            f"least two windows), so there is no cohort; take a smaller cohort."
        )


def prompt_table(found: MeasuredCondition, config: Config, first_row: int, rng: np.random.Generator) -> pl.DataFrame:
    """One row per prompt. bf and bf_late as `bias` says; bf_entropy, bf_nll and bf_compat uncorrected; ci over
    samples."""
    profile, alive = found.profile(), found.ids >= 0
    P, M = found.lengths.shape
    bf = bf_of(found, config)
    low, high = prompt_ends(profile, config, bf, rng)
    how = {"pool": config.pool, "bias": config.bias}
    full = log_bf(replace(profile, entropy=found.statistic("entropy_full")), "entropy", **how)[:, 0]
    late = log_bf(profile.without_first(config.late), config.estimator, **how)[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "condition": [found.condition.name] * P,
            "row": list(range(first_row, first_row + P)),
            "prompt": found.condition.prompt,
            "bf": bf,
            "bf_entropy": bf_of(found, config, "entropy"),
            "bf_nll": bf_of(found, config, "nll"),
            "bf_compat": bf_of(found, config, "compat"),
            "ci_low": low,
            "ci_high": high,
            "exp_entropy_untruncated": np.exp(full),
            "bf_late": np.exp(late),
            "nats_per_byte": nats_per_byte(found),
            "samples": [M] * P,
            "mean_length": found.lengths.mean(1),
            "ended": (found.finish == 1).mean(1),
            "distinct": [len(set(texts)) / M for texts in found.texts],
            "top50_short": (beyond_top(found) & alive).sum((1, 2)) / found.lengths.sum(1),
            "accuracy": correct(found).mean(1) if found.condition.answers else [np.nan] * P,
            "text": found.condition.texts,
        }
    return frame(columns)


def position_table(found: MeasuredCondition, config: Config, cohort: Cohort) -> pl.DataFrame:
    """One row per position of the output; entropy is over all samples alive, intervals are over prompts."""
    profile, N, names = found.profile(), found.ids.shape[2], found.condition.cluster
    prefix = np.exp(prefix_curve(profile, config.estimator, pool=config.pool, bias=config.bias))
    windows = window_curve(profile, config.window)
    alive = (found.ids >= 0).sum((0, 1))

    def wide(values: np.ndarray) -> np.ndarray:
        """A value for each window as one for each of its positions; NaN beyond the last."""
        repeated = np.repeat(np.asarray(values, np.float64), config.window)[:N]
        return np.concatenate([repeated, np.full(N - len(repeated), np.nan)])

    columns: dict = {
        "condition": [found.condition.name] * N,
        "position": list(range(N)),
        "bf_prefix": _mean(prefix),
        "bf_window": wide(_mean(windows)),
        "bf_cohort": wide(_mean(cohort.curve)),
        "prompts": wide(prompts_in(windows, names)).astype(np.int64),
        "entropy": np.nansum(profile.entropy, (0, 1)) / alive,
        "alive": alive / alive[0],
        "alive_samples": alive.astype(np.int64),
        "prefix_prompts": prompts_in(prefix, names),
        "cohort_prompts": wide([cohort.prompts] * cohort.curve.shape[1]),
    }
    columns["cohort_prompts"] = np.nan_to_num(columns["cohort_prompts"]).astype(np.int64)
    for name, curve in (("ci", prefix), ("window", windows), ("cohort", cohort.curve)):
        low, high = curve_ends(curve, names)
        columns |= {f"{name}_low": low, f"{name}_high": high}
        if name != "ci":
            columns |= {f"{name}_low": wide(low), f"{name}_high": wide(high)}
    return frame(columns)


def enough_table(found: MeasuredCondition, config: Config, rng: np.random.Generator) -> pl.DataFrame:
    """One row per number of samples: BF and its interval with so many."""
    rows = enough(found.profile(), config.estimator, pool=config.pool, bias=config.bias, rng=rng)
    name = [found.condition.name] * len(rows)
    return frame({"condition": name} | {key: [row[key] for row in rows] for key in rows[0]})


def condition_row(
    found: MeasuredCondition, prompts: pl.DataFrame, config: Config, cohort: Cohort, rng: np.random.Generator
) -> dict:
    """The numbers of one condition; every interval is over prompts."""
    names, mean = found.condition.cluster, {name: prompts[name].mean() for name in MEANS}
    bf, rate = (prompts[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("bf", "nats_per_byte"))
    low, high = mean_ends(bf, names)
    rate_low, rate_high = mean_ends(rate, names, least=0.0)
    with np.errstate(divide="ignore"):
        log_bf_of = paired_mean(np.log(bf), names)
    course = course_of(cohort, config.window, names, rng)
    pooled = np.exp(np.nansum(found.statistic("entropy")) / found.lengths.sum())
    return {
        "condition": found.condition.name,
        "model": found.condition.model.name,
        "tokenizer": pieces_of(found.condition.model),
        "template": found.condition.template,
        "ci_low": low,
        "ci_high": high,
        **mean,
        "nats_per_byte_low": rate_low,
        "nats_per_byte_high": rate_high,
        "log_bf": log_bf_of.value,
        "log_bf_low": log_bf_of.low,
        "log_bf_high": log_bf_of.high,
        **_accuracy_ends(prompts, names),
        "bf_pooled": float(pooled),
        "prompts": len(set(names)),
        "rows": prompts.height,
        "samples": config.samples,
        **asdict(found.condition.rule),
        "cohort_tokens": cohort.tokens,
        "cohort_prompts": cohort.prompts,
        "cohort_samples": cohort.samples,
        "slope": course.slope.value,
        "slope_low": course.slope.low,
        "slope_high": course.slope.high,
        "slope_p": course.p,
        "slope_p_order": course.p_order,
    }


def _accuracy_ends(prompts: pl.DataFrame, names: list[int]) -> dict[str, float]:
    known = prompts["accuracy"].is_not_null().to_numpy()
    low = high = np.nan
    if known.any():
        found = cluster_share(prompts["accuracy"].to_numpy()[known], np.asarray(names)[known])
        low, high = found.low, found.high
    return {"accuracy_low": low, "accuracy_high": high}


def comparison_row(a: MeasuredCondition, b: MeasuredCondition, config: Config) -> dict:
    """BF, and nats per byte, of a over those of b on the same prompts; intervals over prompts, paired."""
    names = a.condition.cluster
    row = {"a": a.condition.name, "b": b.condition.name}
    row["same_tokenizer"] = pieces_of(a.condition.model) == pieces_of(b.condition.model)
    measures = {
        "": ("bf", bf_of(a, config), bf_of(b, config)),
        "per_byte_": ("nats_per_byte", nats_per_byte(a), nats_per_byte(b)),
    }
    for prefix, (name, of_a, of_b) in measures.items():
        ratio, difference = ratio_of_means(of_a, of_b, names), paired_mean(of_a - of_b, names)
        row |= {f"{name}_a": float(np.nanmean(of_a)), f"{name}_b": float(np.nanmean(of_b))}
        for key, found in (("ratio", ratio), ("difference", difference)):
            ends = {"": found.value, "_low": found.low, "_high": found.high}
            row |= {f"{prefix}{key}{end}": value for end, value in ends.items()}
    return row | {"prompts": len(set(names)), "rows": len(names)}


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over prompts of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)
