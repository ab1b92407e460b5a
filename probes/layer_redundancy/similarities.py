"""From sums over the tokens of texts to similarities: pooled over tokens or over texts, with intervals over texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.layer_redundancy.config import Config
from probes.layer_redundancy.stream_pairs import SUMS, StreamPair
from workbench.stats.clusters import FEWEST, student_quantile

LEAST_CHANGE = 0.1  # of the length, below which a module is not said to rescale
MEASURES = {
    "all": "importance",
    "without_first": "importance_without_first",
    "without_sinks": "importance_without_sinks",
}


def of_sums(sums: np.ndarray, name: str) -> np.ndarray:
    """One of the sums, [..., texts]."""
    return sums[..., SUMS.index(name)]


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Pooled over tokens: Σ top / Σ bottom over texts [..., texts]; NaN where nothing counts."""
    total = bottom.sum(-1)
    return np.divide(top.sum(-1), total, out=np.full(np.shape(total), np.nan), where=total > 0)


def ratio_interval(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of `ratio`: Student's t of the variance between texts, which are the clusters of the tokens
    (`workbench.stats.clusters.mean_interval` of the tokens, from their sums). NaN below five texts."""
    mean, n = ratio(top, bottom), top.shape[-1]
    if n < FEWEST:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    off = top - mean[..., None] * bottom
    total, squares = bottom.sum(-1), (bottom**2).sum(-1)
    variance = (off**2).sum(-1) * n / (n - 1) / total**2
    freedom = total**2 / squares - 1
    quantile = np.vectorize(lambda f: student_quantile(0.975, f))(freedom)
    half = quantile * np.sqrt(variance)
    return mean - half, mean + half


def deciding(sums: np.ndarray, config: Config) -> np.ndarray:
    """1 − similarity [pairs] by which modules are ranked, as the config asks for it."""
    name = MEASURES[config.tokens]
    top, bottom = of_sums(sums, name), of_sums(sums, name.replace("importance", "tokens"))
    if config.pooling == "tokens":
        return ratio(top, bottom)
    return _mean_of_texts(top, bottom)


def _mean_of_texts(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    each = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    there = ~np.isnan(each)
    count = there.sum(-1)
    total = np.where(there, each, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(np.shape(count), np.nan), where=count > 0)


def layer_table(pairs: Sequence[StreamPair], sums: np.ndarray, held_out: np.ndarray, config: Config) -> pl.DataFrame:
    """The table `layers`; `sums` [pairs, texts, …] of the texts that decide, `held_out` of the others."""
    top, bottom = of_sums(sums, "importance"), of_sums(sums, "tokens")
    importance, (low, high) = ratio(top, bottom), ratio_interval(top, bottom)
    other, other_bottom = of_sums(held_out, "importance"), of_sums(held_out, "tokens")
    other_low, other_high = ratio_interval(other, other_bottom)
    there, null = of_sums(sums, "tokens_with_stream"), ratio(of_sums(sums, "null"), bottom)
    change, scale = (ratio(of_sums(sums, name), there) for name in ("norm_change", "scale"))
    columns = {
        "component": [pair.component for pair in pairs],
        "layer": [pair.layer for pair in pairs],
        "similarity": 1 - importance,
        "importance": importance,
        "ci_low": 1 - high,
        "ci_high": 1 - low,
        "without_first": 1 - _of(sums, "without_first"),
        "without_sinks": 1 - _of(sums, "without_sinks"),
        "text_mean": 1 - _mean_of_texts(top, bottom),
        "null": null,
        "norm_change": change,
        "scale": scale,
        "rescales": rescales(importance, scale),
        "held_out": 1 - ratio(other, other_bottom),
        "held_out_low": 1 - other_high,
        "held_out_high": 1 - other_low,
        "deciding": 1 - deciding(sums, config),
        "texts": [sums.shape[1]] * len(pairs),
        "tokens": bottom.sum(-1).astype(np.int64),
    }
    frame = pl.DataFrame(columns).with_columns(pl.selectors.float().fill_nan(None))
    rank = pl.col("deciding").rank("ordinal", descending=True).over("component").cast(pl.Int64)
    return frame.with_columns(rank.alias("rank"))


def _of(sums: np.ndarray, which: str) -> np.ndarray:
    name = MEASURES[which]
    return ratio(of_sums(sums, name), of_sums(sums, name.replace("importance", "tokens")))


def rescales(importance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Whether a module changes the length of the stream by at least a tenth and by more than it turns it: what a cosine
    does not show."""
    cosine = np.clip(1 - importance, -1, 1)
    turn = np.sqrt(np.maximum(1 - cosine**2, 0)) / np.maximum(cosine, 1e-12)
    by = np.abs(scale - 1)
    return (by >= LEAST_CHANGE) & (by > turn)
