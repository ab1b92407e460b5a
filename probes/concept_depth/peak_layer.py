"""The accuracy of the best layer, on rows that did not pick it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.concept_depth.set_splits import parts_in_proportion
from workbench.stats.clusters import cluster_share


def picking_parts(
    labels: np.ndarray, units: np.ndarray | None, tests: Sequence[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    """Two halves of the test rows (places in them) that take turns, whole folds each; of a single test part with whole
    groups each. `labels`, `units` [rows]: of the test rows.

    Halves, and not every fold against the others: two folds that are high in a layer by chance would each be scored in
    it because of the other, and the interval of the mean, which takes them for independent, would cover 0.81."""
    if len(tests) > 1:
        ends = np.cumsum([len(test) for test in tests])
        middle = int(ends[(len(tests) - 1) // 2])
        return [np.arange(middle), np.arange(middle, int(ends[-1]))]
    return parts_in_proportion(labels, units, 2, rng)


def picked_elsewhere(hits: np.ndarray, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The best layer of the other parts for each part [parts], and every row's hit in the layer that was picked without
    it [rows], from hits [L, rows]. A part that is alone (a single group) has no other: none of its rows counts, NaN."""
    layers, held_out = [], np.full(hits.shape[1], np.nan)
    for part in parts:
        rest = np.setdiff1d(np.arange(hits.shape[1]), part)
        if len(rest):
            layers.append(int(hits[:, rest].mean(1).argmax()))
            held_out[part] = hits[layers[-1], part]
    return np.array(layers, dtype=int), held_out


def peak(
    hits: np.ndarray,
    parts: Sequence[np.ndarray],
    clusters: np.ndarray,
    resampled: np.ndarray | None,
    control: np.ndarray,
) -> dict:
    """`peak_accuracy` with its interval over `clusters` [rows], beside the mean of the same on shuffled labels
    [shuffles]; `peak_layer`, where the whole curve is highest, with its range over resampled curves [draws, L]."""
    _, held_out = picked_elsewhere(hits, parts)
    there = ~np.isnan(held_out)
    row: dict = {"peak_accuracy": float("nan"), "peak_low": float("nan"), "peak_high": float("nan")}
    if there.any():
        found = cluster_share(held_out[there], clusters[there])
        row = {"peak_accuracy": found.value, "peak_low": found.low, "peak_high": found.high}
    low, high = (None, None)
    if resampled is not None:
        low, high = map(int, np.quantile(resampled.argmax(1), [0.025, 0.975], method="nearest"))
    return row | {
        "peak_control": float(np.mean(control)) if len(control) else float("nan"),
        "peak_layer": int(hits.mean(1).argmax()),
        "peak_layer_low": low,
        "peak_layer_high": high,
    }
