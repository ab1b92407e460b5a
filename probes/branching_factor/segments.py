"""Thinking and answer of a sample apart: the branching factor of each, by prompt and over prompts."""

from __future__ import annotations

import numpy as np
import polars as pl

from probes.branching_factor.branching_samples import frame
from probes.branching_factor.conditions import MeasuredCondition
from probes.branching_factor.config import Config
from probes.branching_factor.estimators import Profile, around, bounds, log_bf, resampled
from workbench.core.context import Context

SEGMENTS = ("thinking", "answer")
DRAWS = 1000
SCHEMA = {
    "condition": pl.String,
    "row": pl.Int64,
    "prompt": pl.Int64,
    "segment": pl.String,
    "bf": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "samples": pl.Int64,
    "mean_length": pl.Float64,
}


def segment_table(found: MeasuredCondition, config: Config, context: Context, first_row: int) -> pl.DataFrame:
    """One row per prompt and segment, where any sample thinks; `samples` and `mean_length` are of those that have
    tokens in it. Warns of samples that reached the limit inside their thinking."""
    spans = found.thinking()
    states = [span.state for of_prompt in spans for span in of_prompt]
    if (unfinished := states.count("unfinished")) > 0:
        context.counters["samples_ended_in_thinking"] = (
            context.counters.get("samples_ended_in_thinking", 0) + unfinished
        )
        context.warn(
            f"{found.condition.name}: {unfinished} of {len(states)} samples ended inside their thinking and have no "
            f"answer; raise max_new_tokens (now {config.max_new_tokens}), or use thinking=off."
        )
    if set(states) <= {"none"}:
        return pl.DataFrame(schema=SCHEMA)
    ends = np.array([[span.end for span in of_prompt] for of_prompt in spans])
    return pl.concat([_rows(found, config, context, name, ends, first_row) for name in SEGMENTS]).sort("row")


def _rows(
    found: MeasuredCondition, config: Config, context: Context, segment: str, ends: np.ndarray, first_row: int
) -> pl.DataFrame:
    """The rows of one segment; `ends` [P, M]: how many tokens of each sample are thinking."""
    profile = _part(found.profile(), ends, thinking=segment == "thinking")
    P, M = profile.lengths.shape
    has = profile.lengths > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        bf = np.exp(log_bf(profile, config.estimator, pool=config.pool, bias=config.bias)[:, 0])
        rng = context.rng(f"segments/{found.condition.name}/{segment}")
        draws = resampled(profile, config.estimator, pool=config.pool, rng=rng, draws=DRAWS)
        mean = profile.lengths.sum(1) / has.sum(1)
    intervals = [bounds(around(v, d)) if M > 1 and np.isfinite(v) else (np.nan, np.nan) for v, d in zip(bf, draws)]
    columns = {
        "condition": [found.condition.name] * P,
        "row": list(range(first_row, first_row + P)),
        "prompt": found.condition.prompt,
        "segment": [segment] * P,
        "bf": bf,
        "ci_low": [low for low, _ in intervals],
        "ci_high": [high for _, high in intervals],
        "samples": has.sum(1),
        "mean_length": mean,
    }
    return frame(columns).cast(SCHEMA)


def _part(profile: Profile, ends: np.ndarray, *, thinking: bool) -> Profile:
    """The same for the thinking alone, or for the answers alone moved to the front."""
    if thinking:
        ends = np.minimum(ends, profile.lengths)
        inside = np.arange(profile.entropy.shape[2]) < ends[..., None]
        values = [np.where(inside, getattr(profile, n), np.nan) for n in list(profile.__dataclass_fields__)[1:]]
        return Profile(ends, *values)
    at = np.arange(profile.entropy.shape[2]) + ends[..., None]
    inside = at < profile.lengths[..., None]
    at = np.where(inside, at, 0)
    names = list(profile.__dataclass_fields__)[1:]
    values = [np.where(inside, np.take_along_axis(getattr(profile, n), at, -1), np.nan) for n in names]
    return Profile(np.maximum(profile.lengths - ends, 0), *values)
