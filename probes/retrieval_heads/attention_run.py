"""What a run with score=attention gives: the heads by their attention, with nothing generated, or beside copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.retrieval_heads.answers import Judged
from probes.retrieval_heads.attention_scores import AttentionScores, attention_inputs, measure_attention
from probes.retrieval_heads.config import Config
from probes.retrieval_heads.haystack import Haystack
from probes.retrieval_heads.head_scores import RATE, difference_interval, head_table, how_many_are_enough, warn_of_few
from probes.retrieval_heads.masked_recall import MASKING, RECALL
from probes.retrieval_heads.needle_grid import NeedleGrid, read_grid
from probes.retrieval_heads.overlap import overlap_table, summary_of_overlap
from probes.retrieval_heads.passages import PassageTask, needle_tasks, passage_tasks
from probes.retrieval_heads.summary import summary_of_heads
from workbench.core.context import Context, Result
from workbench.stats.clusters import FEWEST, clusters_of

NO_ANSWERS = ("recall", "recall_closed")
CLOSED = {
    "needle": pl.Int64,
    "length": pl.Int64,
    "recall_closed": pl.Float64,
    "answered": pl.Boolean,
    "response": pl.String,
    "ids": pl.List(pl.Int64),
    "generated_ids": pl.List(pl.Int64),
}


def attention_alone(model, config: Config, context: Context) -> Result:
    """Heads by their attention on needles, or on a file of passages, without an answer: one pass over every context and
    three questions. Tables that need answers are empty."""
    if config.passages:
        tasks, haystack = passage_tasks(model, config), Haystack(model, [])
        answers = [None] * len(tasks)
    else:
        grid = read_grid(model, config, context)
        tasks, haystack = needle_tasks(model, config, grid), Haystack(model, grid.haystack)
        answers = [grid.needles[task.trial.needle].answer for task in tasks]
    found = measure_attention(model, config, context, tasks, haystack)
    names = groups_of(tasks, config)
    warn_of_few(names, config, context)
    heads = attention_table(model, found, names, config)
    tables = {
        "heads": heads,
        "trials": _trials(tasks, answers),
        "inputs": _inputs(tasks),
        "attention_inputs": attention_inputs(tasks),
        "closed_book": pl.DataFrame(schema=CLOSED),
        "enough": how_many_are_enough(found.gold, names, context),
        "masking": pl.DataFrame(schema=MASKING),
        "masked_recall": pl.DataFrame(schema=RECALL),
    }
    summary = {"trials_scored": len(tasks)} | summary_of_heads(heads, found.gold, names, config, context)
    summary |= summary_of_attention(heads, names)
    return Result(tables, {"trial_scores": found.gold.astype(np.float32)}, summary)


def groups_of(tasks: Sequence[PassageTask], config: Config) -> np.ndarray:
    """The clusters of the tasks, [tasks]: those of one passage together, unless every trial counts by itself."""
    groups = np.array([task.group for task in tasks])
    return groups if config.resample == "needles" else np.arange(len(tasks))


def attention_table(model, found: AttentionScores, names: np.ndarray, config: Config) -> pl.DataFrame:
    """One row per head, the columns of `head_table`, and the score minus its control with its interval, the attention
    of the null question, and that of another passage's question."""
    heads = head_table(model, found.gold, found.control, found.mass[:, 0], names, config)
    more = (found.gold - found.control).reshape(len(found.mass), -1)
    low, high = difference_interval(more, clusters_of(names))
    return heads.with_columns(
        pl.Series("above_control", more.mean(0)),
        pl.Series("above_control_low", low),
        pl.Series("above_control_high", high),
        pl.Series("null_mass", found.mass[:, 2].mean(0).ravel()),
        pl.Series("other_mass", found.mass[:, 1].mean(0).ravel()),
    )


def summary_of_attention(heads: pl.DataFrame, names: np.ndarray) -> dict:
    """The heads that are told from the threshold and from their control, by name, or that there is none."""
    clusters = clusters_of(names)
    if clusters.n < FEWEST:
        return {}
    told = heads.filter("told_apart").sort("score", descending=True)
    named = ", ".join(f"{r['layer']}.{r['head']} {r['score']:.3f}" for r in told.head(10).iter_rows(named=True))
    words = f"none above the control (false discovery rate {RATE:.0%})"
    best = int(np.argmax(heads["above_control"].to_numpy()))
    row = heads.row(best, named=True)
    return {
        "heads_above_control": named or words,
        "largest_above_control": {
            "value": row["above_control"],
            "low": row["above_control_low"],
            "high": row["above_control_high"],
            "n": clusters.n,
            "rows": clusters.rows,
        },
    }


@dataclass(frozen=True, eq=False)
class AttentionBeside:
    """`scores` [trials, layers, H] by attention of trials that are answered as well, and what they add to the run."""

    scores: np.ndarray
    heads: pl.DataFrame
    tables: dict[str, pl.DataFrame]
    summary: dict


def attention_beside(
    model, config: Config, context: Context, grid: NeedleGrid, haystack: Haystack, copying: np.ndarray, judged: Judged
) -> AttentionBeside:
    """The heads by their attention on the trials of the grid, all of which count, beside the copying scores `copying`
    [trials, layers, H], of which those count that are kept."""
    tasks = needle_tasks(model, config, grid)
    found, names = measure_attention(model, config, context, tasks, haystack), groups_of(tasks, config)
    kept, rng = judged.kept, context.rng("overlap")
    both = overlap_table(found.gold, copying[kept], names, names[kept], rng=rng)
    mean = copying[kept].mean(0).ravel() if kept.any() else np.full(copying[0].size, np.nan)
    heads = attention_table(model, found, names, config).with_columns(pl.Series("copying_score", mean).fill_nan(None))
    summary = summary_of_attention(heads, names) | summary_of_overlap(both)
    return AttentionBeside(found.gold, heads, {"attention_inputs": attention_inputs(tasks), "overlap": both}, summary)


def _trials(tasks: Sequence[PassageTask], answers: Sequence[str | None]) -> pl.DataFrame:
    trials = [task.trial for task in tasks]
    nothing = [None] * len(trials)
    return pl.DataFrame(
        {
            "trial": range(len(trials)),
            "needle": [t.needle for t in trials],
            "length": [t.length for t in trials],
            "depth": [float(t.depth) for t in trials],
            **{name: pl.Series(nothing, dtype=pl.Float64) for name in NO_ANSWERS},
            "known": pl.Series(nothing, dtype=pl.Boolean),
            "kept": [True] * len(trials),
            "response": pl.Series(nothing, dtype=pl.String),
            "answer": pl.Series(list(answers), dtype=pl.String),
            "prompt_tokens": [len(t.ids) for t in trials],
            "needle_position": [task.gold[0] for task in tasks],
        }
    )


def _inputs(tasks: Sequence[PassageTask]) -> pl.DataFrame:
    trials = [task.trial for task in tasks]
    return pl.DataFrame(
        {
            "row": range(len(trials)),
            "ids": [list(t.ids) for t in trials],
            "span_start": [t.span[0] for t in trials],
            "span_end": [t.span[1] for t in trials],
            "generated_ids": pl.Series([[]] * len(trials), dtype=pl.List(pl.Int64)),
        }
    )
