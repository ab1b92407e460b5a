"""Do the layers that keep the needle hold the heads that retrieve it? Rank correlation over layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from probes.token_filter.config import Config
from probes.token_filter.layer_recall import Kept
from probes.token_filter.selection import Selections
from probes.token_filter.trials import FilterTrials
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.runs.folder import Run, open_run
from workbench.stats.clusters import FEWEST
from workbench.stats.intervals import percentiles, resample_counts

PERMUTATIONS = 2000
AGREEMENT = {
    "k": pl.Int64,
    "correlation": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "p_permutation": pl.Float64,
    "layers": pl.Int64,
    "n": pl.Int64,
    "source": pl.String,
}


def head_run(source: str) -> Run:
    """The run whose heads are compared. Raises InputError for a folder that is none, or one without scores of heads."""
    if not Path(source).is_dir():
        raise InputError(f"retrieval={source} is no folder of a run; give one, answer or none.")
    run = open_run(source)
    columns = run.table("heads").columns if "heads" in run.tables else []
    if not {"layer", "head", "score"} <= set(columns):
        raise InputError(
            f"The run {source} has no table heads with the columns layer, head and score; give a run of a probe that "
            f"scores heads."
        )
    return run


def heads_of(run: Run, layers: int, source: str) -> np.ndarray:
    """The highest score of a head of each layer, [layers]. Raises InputError for a run on a model of another depth, and
    for one whose heads have no score."""
    frame = run.table("heads").filter(pl.col("score").is_not_null() & pl.col("score").is_finite())
    of = sorted(frame["layer"].unique().to_list())
    if of != list(range(layers)):
        raise InputError(f"The run {source} scores heads of {len(of)} layers and this model has {layers}.")
    return frame.group_by("layer").agg(pl.col("score").max()).sort("layer")["score"].to_numpy().astype(np.float64)


def layer_scores(model, selections: Selections, config: Config) -> np.ndarray | None:
    """The highest retrieval score of a head of each layer, [layers]; None where none is compared."""
    if config.retrieval == "none":
        return None
    if selections.copying is not None:
        return selections.copying.mean(0).max(-1)
    return heads_of(head_run(config.retrieval), model.n_layers, config.retrieval)


def agreement_table(
    found: FilterTrials,
    selections: Selections,
    every: Sequence[Kept],
    scores: np.ndarray | None,
    whole: np.ndarray,
    config: Config,
    context: Context,
) -> pl.DataFrame:
    """Spearman's ρ over the layers that see all of every prompt, between needle recall and the highest retrieval score
    of a head, `scores` [layers]; its interval resamples needles (of a run's heads the recall alone), and
    `p_permutation` is how often layers in a random order agree as much."""
    if scores is None:
        return pl.DataFrame(schema=AGREEMENT)
    names = found.names
    needles = np.unique(names)
    rng = context.rng("agreement")
    counts = resample_counts(len(names), config.draws, rng, clusters=names)
    counts = counts / counts.sum(1, keepdims=True)
    drawn = scores[None].repeat(config.draws, 0)
    if selections.copying is not None:
        flat = selections.copying.reshape(len(names), -1)
        drawn = (counts @ flat).reshape(config.draws, *selections.copying.shape[1:]).max(-1)
    rows = []
    for kept in every:
        recall = kept.needle.mean(0)
        value = rank_correlation(recall[whole], scores[whole])
        low = high = np.nan
        if len(needles) >= FEWEST and np.isfinite(value):
            each = [rank_correlation(a[whole], b[whole]) for a, b in zip(counts @ kept.needle, drawn)]
            there = np.array(each)[np.isfinite(each)]
            if len(there) >= config.draws / 2:
                low, high = percentiles(there)
        p = _p(recall[whole], scores[whole], value, context.rng(f"permutations of {kept.k}"))
        source = "answer" if selections.copying is not None else "run"
        rows.append((kept.k, value, float(low), float(high), p, len(whole), len(needles), source))
    return pl.DataFrame(rows, schema=AGREEMENT, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ of x and y [layers], ties at their mean rank; NaN below three layers, or where one does not vary."""
    from scipy import stats

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _p(x: np.ndarray, y: np.ndarray, value: float, rng: np.random.Generator) -> float:
    """How often ρ of x and a random order of y is at least as far from zero; NaN where there is no ρ."""
    if not np.isfinite(value):
        return float("nan")
    random = np.array([rank_correlation(x, rng.permutation(y)) for _ in range(PERMUTATIONS)])
    return float((1 + (np.abs(random) >= abs(value) - 1e-12).sum()) / (1 + PERMUTATIONS))
