"""How much of the needle every layer keeps, beside what a random set of the same size keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.token_filter.config import Config
from probes.token_filter.selection import Selections
from probes.token_filter.trials import FilterTrials
from workbench.core.context import Context
from workbench.models.needle_prompts import Trial
from workbench.stats.clusters import Clusters, clusters_of, false_discovery, mean_interval, p_of_zero
from workbench.stats.crossed_shares import crossed_share_interval, steady_share_interval

RATE = 0.05  # of false marks among the layers that are marked
LEAST = 0.1  # of the needle that a marked layer keeps above a random set


@dataclass(frozen=True, eq=False)
class Kept:
    """For one k: the share of the needle that is kept, `needle`, and whether all of the answer is, `answer`, both
    [trials, layers]; the same expected of random sets of that size, `by_chance` and `answer_by_chance` [trials]; and of
    sets that were drawn, `drawn` [draws, trials]."""

    k: int
    needle: np.ndarray
    answer: np.ndarray
    by_chance: np.ndarray
    answer_by_chance: np.ndarray
    drawn: np.ndarray


def kept_of(found: FilterTrials, selections: Selections, k: int, config: Config, context: Context) -> Kept:
    """What the layers keep of every trial with k tokens, and random sets beside them."""
    trials = found.trials
    layers = selections.seen.shape[1]
    needle, answer = np.zeros((len(trials), layers)), np.zeros((len(trials), layers))
    for i, trial in enumerate(trials):
        start, end = found.needle_span(trial)
        for layer in range(layers):
            own = selections.kept(i, layer, k)
            needle[i, layer] = ((own >= start) & (own < end)).sum() / (end - start)
            answer[i, layer] = ((own >= trial.span[0]) & (own < trial.span[1])).sum() == trial.span[1] - trial.span[0]
    expected = [by_chance(found, trial, k) for trial in trials]
    drawn = _drawn(found, k, config.random_draws, context.rng(f"random sets of {k}"))
    return Kept(k, needle, answer, *(np.array(each) for each in zip(*expected)), drawn)


def by_chance(found: FilterTrials, trial: Trial, k: int) -> tuple[float, float]:
    """Expected of a random set of k tokens that holds the forced ones: the share of the needle in it, and how often it
    holds all of the answer. Closed forms: each of n − f tokens that are not forced is in it with probability
    (k − f)/(n − f), and a of them together with C(n−f−a, k−f−a) / C(n−f, k−f)."""
    free, kept, needle = _free(found, trial, k)
    start, end = found.needle_span(trial)
    share = (end - start - needle + needle * kept / max(free, 1)) / (end - start)
    forced = set(found.always(trial))
    asked = sum(1 for p in range(*trial.span) if p not in forced)
    if asked > kept:
        return share, 0.0
    return share, math.prod((kept - j) / (free - j) for j in range(asked))


def _free(found: FilterTrials, trial: Trial, k: int) -> tuple[int, int, int]:
    """Of a trial: tokens that are not forced, how many of them are kept, and how many are the needle's."""
    forced = set(found.always(trial))
    free = len(trial.ids) - len(forced)
    needle = sum(1 for p in range(*found.needle_span(trial)) if p not in forced)
    return free, min(max(k - len(forced), 0), free), needle


def _drawn(found: FilterTrials, k: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The share of the needle in random sets, [draws, trials]: how many of its tokens fall into a set that is drawn is
    hypergeometric."""
    columns = []
    for trial in found.trials:
        free, kept, needle = _free(found, trial, k)
        start, end = found.needle_span(trial)
        hits = rng.hypergeometric(needle, free - needle, kept, size=draws) if kept else np.zeros(draws)
        columns.append((end - start - needle + hits) / (end - start))
    return np.stack(columns, 1)


def layer_table(found: FilterTrials, selections: Selections, every: Sequence[Kept]) -> pl.DataFrame:
    """One row per k and layer: what is kept of needle and answer with its interval, what random sets keep, how far the
    layer is above them, and how much of the prompts it sees."""
    clusters = clusters_of(found.names)
    sizes = np.array([len(t.ids) for t in found.trials])
    return pl.concat([_rows(kept, clusters, selections, sizes) for kept in every])


def _rows(kept: Kept, clusters: Clusters, selections: Selections, sizes: np.ndarray) -> pl.DataFrame:
    layers = kept.needle.shape[1]
    low, high = steady_share_interval(kept.needle, clusters)
    answer_low, answer_high = steady_share_interval(kept.answer, clusters)
    above = kept.needle - kept.by_chance[:, None]
    above_low, above_high = mean_interval(above, clusters)
    p = false_discovery(p_of_zero(above, clusters))
    mean = above.mean(0)
    drawn_low, drawn_high = crossed_share_interval(kept.drawn, clusters)
    seen = selections.seen
    return pl.DataFrame(
        {
            "layer": range(layers),
            "needle_recall": kept.needle.mean(0),
            "answer_kept": kept.answer.mean(0),
            "k": [kept.k] * layers,
            "ci_low": low,
            "ci_high": high,
            "answer_low": answer_low,
            "answer_high": answer_high,
            "recall_by_chance": [float(kept.by_chance.mean())] * layers,
            "answer_by_chance": [float(kept.answer_by_chance.mean())] * layers,
            "recall_drawn": [float(kept.drawn.mean())] * layers,
            "drawn_low": [drawn_low] * layers,
            "drawn_high": [drawn_high] * layers,
            "above_chance": mean,
            "above_low": above_low,
            "above_high": above_high,
            "p_adjusted": p,
            "finds": (np.nan_to_num(p, nan=1.0) < RATE) & (mean >= LEAST),
            "sees_all": (seen == sizes[:, None]).all(0),
            "sees": seen.min(0),
            "n": [clusters.n] * layers,
            "rows": [clusters.rows] * layers,
        },
        schema_overrides={"layer": pl.Int64, "k": pl.Int64, "n": pl.Int64, "rows": pl.Int64},
    ).with_columns(pl.col(pl.Float64).fill_nan(None))


def place_table(found: FilterTrials, every: Sequence[Kept]) -> pl.DataFrame:
    """The recall by where the needle stands and how long the prompt is: one row per k, layer, length and depth."""
    where = pl.DataFrame({"length": [t.length for t in found.trials], "depth": [float(t.depth) for t in found.trials]})
    frames = []
    for kept in every:
        for layer in range(kept.needle.shape[1]):
            own = where.with_columns(
                pl.lit(kept.k, pl.Int64).alias("k"),
                pl.lit(layer, pl.Int64).alias("layer"),
                pl.Series("needle_recall", kept.needle[:, layer]),
                pl.Series("answer_kept", kept.answer[:, layer]),
            )
            frames.append(own)
    keys = ("k", "layer", "length", "depth")
    mean = (pl.col("needle_recall").mean(), pl.col("answer_kept").mean(), pl.len().cast(pl.Int64).alias("rows"))
    return pl.concat(frames).group_by(keys, maintain_order=True).agg(*mean).sort(keys)
