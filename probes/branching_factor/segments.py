"""Parts of a sample apart, thinking and answer or sentence by sentence: the branching factor of each, by prompt and
over prompts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from probes.branching_factor.bf_intervals import mean_ends, prompt_ends
from probes.branching_factor.branching_samples import frame
from probes.branching_factor.conditions import MeasuredCondition
from probes.branching_factor.config import Config
from probes.branching_factor.estimators import Profile, log_bf
from probes.branching_factor.sentences import sentence_splitter
from workbench.core.context import Context
from workbench.models.thinking import ThinkingSpan

SEGMENTS = ("thinking", "answer")
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
MEANS = {
    "condition": pl.String,
    "segment": pl.String,
    "bf": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "prompts": pl.Int64,
    "mean_length": pl.Float64,
}


def segment_tables(
    found: MeasuredCondition, config: Config, context: Context, first_row: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`segments`, one row per prompt and segment, where `samples` and `mean_length` are of those that have tokens in
    it; and `segment_means`, one row per segment with its interval over prompts.

    Of thinking and answer both are empty where no sample thinks. Warns of samples that reached the limit inside their
    thinking."""
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
    if config.segments == "thinking" and set(states) <= {"none"}:
        return pl.DataFrame(schema=SCHEMA), pl.DataFrame(schema=MEANS)
    parts = [
        _of_segment(found, config, context, name, inside, first_row) for name, inside in _insides(found, config, spans)
    ]
    tables, means = zip(*parts)
    return pl.concat(tables).sort("row", maintain_order=True), pl.concat(means)


def _insides(
    found: MeasuredCondition, config: Config, spans: list[list[ThinkingSpan]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each segment's name, and which steps [P, M, N] lie in it."""
    P, M, N = found.ids.shape
    alive = np.arange(N) < found.lengths[..., None]
    if config.segments == "thinking":
        thinks = np.arange(N) < np.array([[span.end for span in of_prompt] for of_prompt in spans])[..., None]
        yield SEGMENTS[0], thinks & alive
        yield SEGMENTS[1], ~thinks & alive
        return
    split = sentence_splitter(found.condition.model)
    sentence = np.full((P, M, N), -1)
    for p in range(P):
        for m in range(M):
            sentence[p, m, : found.lengths[p, m]] = split(found.tokens(p, m), spans[p][m].end)
    for k in range(int(sentence.max()) + 1):
        yield str(k), sentence == k


def _of_segment(
    found: MeasuredCondition, config: Config, context: Context, segment: str, inside: np.ndarray, first_row: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of one segment, whose steps are `inside` [P, M, N], and its row over prompts. A sentence that no sample
    of a prompt has is no row of that prompt's."""
    profile = _part(found.profile(), inside)
    P = len(profile.lengths)
    has = profile.lengths > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        bf = np.exp(log_bf(profile, config.estimator, pool=config.pool, bias=config.bias)[:, 0])
        mean = profile.lengths.sum(1) / has.sum(1)
    rng = context.rng(f"segments/{found.condition.name}/{segment}")
    starts, stops = prompt_ends(profile, config, bf, rng)
    columns = {
        "condition": [found.condition.name] * P,
        "row": list(range(first_row, first_row + P)),
        "prompt": found.condition.prompt,
        "segment": [segment] * P,
        "bf": bf,
        "ci_low": starts,
        "ci_high": stops,
        "samples": has.sum(1),
        "mean_length": mean,
    }
    rows = frame(columns).cast(SCHEMA)
    rows = rows if config.segments == "thinking" else rows.filter(pl.col("samples") > 0)
    known = np.isfinite(bf)
    low, high = mean_ends(bf, found.condition.cluster)
    overall = {
        "condition": [found.condition.name],
        "segment": [segment],
        "bf": [bf[known].mean() if known.any() else np.nan],
        "ci_low": [low],
        "ci_high": [high],
        "prompts": [len({name for name, there in zip(found.condition.cluster, known) if there})],
        "mean_length": [profile.lengths.sum() / has.sum() if has.any() else np.nan],
    }
    return rows, frame(overall).cast(MEANS)


def _part(profile: Profile, inside: np.ndarray) -> Profile:
    """The steps that are `inside` [P, M, N] alone, moved to the front in their order."""
    lengths = inside.sum(-1)
    width = max(1, int(lengths.max()))
    order = np.argsort(~inside, axis=-1, kind="stable")[..., :width]
    there = np.arange(width) < lengths[..., None]
    names = list(profile.__dataclass_fields__)[1:]
    values = [np.where(there, np.take_along_axis(getattr(profile, name), order, -1), np.nan) for name in names]
    return Profile(lengths, *values)
