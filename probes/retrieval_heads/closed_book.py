"""The closed-book control: every question at every length with the needle cut out. What the model answers then, it did
not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.detection import answers
from probes.retrieval_heads.haystack import Haystack, parts
from probes.retrieval_heads.needle_grid import NeedleGrid
from workbench.core.context import Context
from workbench.models.answer_ends import answer_text
from workbench.models.batching import halving
from workbench.models.model import Model
from workbench.models.needle_prompts import Trial, recall
from workbench.stats.clusters import clusters_of
from workbench.stats.crossed_shares import share_difference_interval, steady_share_interval
from workbench.stats.intervals import Estimate

FEW = 10  # trials; so many find the ten best heads (table `enough`)


@dataclass(frozen=True)
class ClosedBook:
    """What was answered without a needle, one of each per prompt of `NeedleGrid.closed`."""

    generated: list[list[int]]
    responses: list[str]
    recalls: np.ndarray

    def of(self, trials: Sequence[Trial], closed: Sequence[Trial]) -> np.ndarray:
        """The recall without its needle of every trial, [trials]: that of its question at its length."""
        known = {(t.needle, t.length): float(value) for t, value in zip(closed, self.recalls)}
        return np.array([known[t.needle, t.length] for t in trials])


def ask_without_needles(
    model: Model, config: Config, context: Context, grid: NeedleGrid, haystack: Haystack
) -> ClosedBook:
    """Answers to every question at every length, with haystack where the needle was."""
    generated: list[list[int]] = [[] for _ in grid.closed]

    def compute(rows: Sequence[int]) -> dict[str, np.ndarray]:
        prompts = [grid.closed[i] for i in rows]
        found = halving(
            prompts, lambda some: answers(model, config, context, some, haystack, grid.stops, observed=False)
        )
        said = [[step.token for step in steps] for _, some in found for steps in some]
        return {
            "prompt": np.array([k for k, ids in enumerate(said) for _ in ids], np.int32),
            "token": np.array([token for ids in said for token in ids], np.int64),
        }

    done = 0
    for number, rows in enumerate(parts(model, grid.closed, config.max_tokens)):
        context.progress(done, len(grid.closed), "prompts")
        part = context.part(f"closed-{number}", lambda rows=rows: compute(rows))
        for k, i in enumerate(rows):
            generated[i] = part["token"][part["prompt"] == k].tolist()
        done += len(rows)
    responses = [answer_text(model, ids, grid.split) for ids in generated]
    recalls = [recall(grid.needles[t.needle].answer, text) for t, text in zip(grid.closed, responses)]
    return ClosedBook(generated, responses, np.array(recalls))


def closed_table(grid: NeedleGrid, closed: ClosedBook, config: Config) -> pl.DataFrame:
    """One row per question and length: what was fed, and what was answered."""
    return pl.DataFrame(
        {
            "needle": [t.needle for t in grid.closed],
            "length": [t.length for t in grid.closed],
            "recall_closed": closed.recalls.tolist(),
            "answered": (closed.recalls > config.recall_threshold).tolist(),
            "response": closed.responses,
            "ids": [list(t.ids) for t in grid.closed],
            "generated_ids": closed.generated,
        }
    )


def _rate(values: np.ndarray, names: np.ndarray) -> Estimate:
    clusters = clusters_of(names)
    low, high = steady_share_interval(values, clusters)
    return Estimate(float(np.mean(values)), float(low), float(high), clusters.n, clusters.rows)


def recalled(
    answered: np.ndarray,
    known: np.ndarray,
    kept: np.ndarray,
    names: np.ndarray,
    closed: tuple[np.ndarray, np.ndarray],
    context: Context,
) -> dict:
    """The share of trials that were answered beside that of the questions that were answered without their needle, and
    their difference; `answered` and `known` (answered without it) bool [trials], `names` their clusters, `closed` the
    questions that were answered without needle and their clusters. Warns where the two rates are not told apart."""
    clusters = clusters_of(names)
    rate = _rate(answered, names)
    low, high = share_difference_interval(answered * 1.0, known * 1.0, clusters)
    without = _rate(*closed)
    guessed = int((answered & known).sum())
    words = f"{int(answered.sum())} of {len(answered)} trials were answered, {guessed} of these also without the needle"
    if answered.any() and known.any() and not low > 0:
        context.warn(
            f"{words} ({without.value:.0%} of the questions are): the two rates are not told apart on {rate.n} "
            f"needles, and answers may be guesses or known by heart; use needles that nobody could guess."
        )
    if 0 < kept.sum() < FEW:
        context.warn(
            f"Only {int(kept.sum())} trials count ({words}); the ten best heads take about {FEW} to be found, those "
            f"near the threshold hundreds."
        )
    return {
        "recalled": rate.as_dict(),
        "recalled_without_needle": without.as_dict(),
        "recalled_minus_without_needle": {
            "value": float(answered.mean() - known.mean()),
            "low": low,
            "high": high,
            "n": clusters.n,
            "rows": clusters.rows,
        },
        "trials_answered_without_needle": guessed,
    }
