"""One pass over the pool: how similar each sample is to each target, by every method that reads the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from probes.data_selection.feature_statistics import FeatureStatistics, merge
from probes.data_selection.prototypes import Prototypes
from probes.data_selection.sample_vectors import Reader
from probes.data_selection.samples import TokenizedSamples
from workbench.models.host_copies import arrivals
from workbench.sae.sparse_rows import dense_cosine, similarity
from workbench.stats.jackknife import jackknife_interval

BOUNDS = {
    "jaccard": (0.0, 1.0),
    "containment": (0.0, 1.0),
    "cosine": (0.0, 1.0),
    "euclidean": (-np.inf, 0.0),
    "hidden": (-1.0, 1.0),
}  # of a score
Key = tuple[str, str | int]  # what a number is, and of which method or target
DRAWS_KEPT = 20_000_000  # numbers up to which the scores of every resample are kept, for `selected_share`


def score_pool(
    reader: Reader, pool: TokenizedSamples, prototypes: Prototypes, wanted: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any], TokenizedSamples]:
    """({method: scores [N, targets]}, {low, high, draws} of the main method where there are any, statistics of the
    features, the pool with its sinks not counted): equal samples are computed once, in resumable parts whose statistics
    are added up as they come. Rows in which nothing counts score NaN."""
    config, context = reader.config, reader.context
    place, rows, times = _distinct(pool)
    keep = len(rows) * len(prototypes.names) * config.resamples <= DRAWS_KEPT
    if not keep and prototypes.can_resample:
        context.warn(
            f"There is no selected_share: {len(rows):,} samples × {len(prototypes.names)} targets × {config.resamples} "
            f"resamples are too many to keep; lower resamples for it."
        )
    found: dict[str, np.ndarray] = {}
    statistics: dict[str, Any] = {}
    masks = [pool.masks[row] for row in rows]
    for number, start in enumerate(range(0, len(rows), config.chunk)):
        here = slice(start, min(start + config.chunk, len(rows)))
        part = context.part(
            f"pool {number}",
            lambda here=here: _score_part(reader, pool, rows[here], times[here], prototypes, wanted, keep),
        )
        for k, position in part.pop("sinks"):
            masks[start + k] = masks[start + k] & (np.arange(len(masks[start + k])) != position)
        for key in [key for key in part if key.startswith("row ")]:
            value = part.pop(key)
            whole = found.setdefault(key[4:], np.full((len(rows) + 1, *value.shape[1:]), np.nan, value.dtype))
            whole[here] = value
        merge(statistics, part, config.passages)
        context.progress(here.stop, len(rows), "samples")
    found = {key: value[place] for key, value in found.items()}
    resampled = {key: found[key] for key in ("low", "high", "draws") if key in found}
    kept = [masks[k] if k < len(rows) else mask for k, mask in zip(place, pool.masks)]
    left = TokenizedSamples(pool.ids, kept, pool.cut)
    return {method: found[method] for method in prototypes.by_method}, resampled, statistics, left


def _distinct(pool: TokenizedSamples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Of every row of the pool the number of its sample, [N]; the first row of each distinct sample; how often each is
    there). The number after the last is that of the rows that do not count."""
    first: dict[bytes, int] = {}
    for key, counted in zip(pool.keys, pool.counted):
        if counted:
            first.setdefault(key, len(first))
    place = np.array([first.get(key, len(first)) for key in pool.keys])
    rows = np.unique(place, return_index=True)[1][: len(first)]
    return place, rows, np.bincount(place, minlength=len(first) + 1)


def _score_part(
    reader: Reader,
    pool: TokenizedSamples,
    rows: np.ndarray,
    times: np.ndarray,
    prototypes: Prototypes,
    wanted: Sequence[int],
    keep: bool,
) -> dict[str, np.ndarray]:
    """Scores ("row METHOD") of some pool samples with their intervals ("row low", "row high") and, to `keep`, those of
    resampled examples ("row draws"), the sinks among their tokens ("sinks": [n, 2], row and position), and the
    statistics of the features on them. Rows in which nothing is left score NaN."""
    main, shape = reader.main, (len(rows), len(prototypes.names))
    reads = main in prototypes.by_method
    out = {f"row {method}": np.full(shape, np.nan) for method in prototypes.by_method}
    if reads:
        out |= {f"row {end}": np.full(shape, np.nan) for end in ("low", "high")}
    if reads and keep and prototypes.can_resample:
        out["row draws"] = np.full((*shape, reader.config.resamples), np.nan, np.float32)
    centers = None
    if reader.sae is not None:
        centers = torch.stack([prototypes.center(t) for t in range(shape[1])])
    statistics = FeatureStatistics(reader, times, wanted, centers)
    masks = [pool.masks[i] for i in rows]
    kept = [np.zeros(len(mask), bool) for mask in masks]  # of a row that comes in no batch nothing is left

    def computed() -> Iterator[tuple[tuple[list[int], list[int], list[np.ndarray]], dict[Key, torch.Tensor]]]:
        for batch in reader.read(pool.lists(rows), masks, leave_out_sinks=True):
            found: dict[Key, torch.Tensor] = {}
            for method, vector in batch.vectors.items():
                found["score", method] = _similarity(reader, vector, prototypes.by_method[method], torch.float64)
            found |= _varied(reader, batch.vectors.get(main), prototypes, "row draws" in out)
            peaks = statistics.add(batch)
            told = batch.indices, batch.rows, batch.counted
            yield told, found if peaks is None else found | {("peaks", 0): peaks}

    for (indices, where, counted), found in arrivals(computed()):
        numbers = {key: x.numpy() for key, x in found.items()}
        for i, mask in zip(indices, counted):
            kept[i] = mask
        if ("peaks", 0) in found:
            statistics.add_peaks(where, found["peaks", 0])
        for method in prototypes.by_method if indices else ():
            score = numbers["score", method]
            best = [score[:, prototypes.target == t].max(1) for t in range(shape[1])]
            out[f"row {method}"][indices] = np.stack(best, axis=1)
        for t in range(shape[1]) if reads and indices else ():
            near = numbers["score", main][:, prototypes.target == t]
            low, high = _interval(reader, near, numbers.get(("without", t)), prototypes, t)
            out["row low"][indices, t], out["row high"][indices, t] = low, high
            if "row draws" in out and prototypes.resampled[t] is not None:
                drawn = _resampled(reader, near, numbers.get(("draws", t)), prototypes.resampled[t])
                out["row draws"][indices, t] = drawn
    sinks = [(k, at) for k, mask in enumerate(masks) for at in np.flatnonzero(mask & ~kept[k])]
    out["sinks"] = np.array(sinks, np.int64).reshape(-1, 2)
    return out | statistics.found(rows, reader.config.passages)


def _similarity(reader: Reader, vector: Any, prototypes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[samples, prototypes]: as the config says of sparse vectors, the cosine of hidden states."""
    if isinstance(vector, torch.Tensor):
        return dense_cosine(vector, prototypes)
    return similarity(vector, prototypes, reader.config.similarity, dtype=dtype)


def _varied(reader: Reader, vector: Any, prototypes: Prototypes, draws: bool) -> dict[Key, torch.Tensor]:
    """The largest similarity of some samples to a target's prototypes, [samples, …]: without each group of its
    examples ("without") and, for `draws`, under each resample of them, where these have prototypes of their own."""
    if vector is None:
        return {}
    wanted: dict[Key, torch.Tensor] = {}
    for t in range(len(prototypes.names)):
        if prototypes.without[t] is not None:
            wanted["without", t] = prototypes.without[t]
        if draws and reader.config.prototype != "max" and prototypes.resampled[t] is not None:
            wanted["draws", t] = prototypes.resampled[t]
    found = {}
    for key, again in wanted.items():  # [ways, P of the target, width]
        near = _similarity(reader, vector, again.flatten(0, 1), again.dtype)
        found[key] = near.view(len(near), *again.shape[:2]).amax(2)
    return found


def _interval(
    reader: Reader, near: np.ndarray, again: np.ndarray | None, prototypes: Prototypes, target: int
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of the scores of some samples for one target, [samples] each, from the scores `again` [samples,
    groups] where some of its examples are left out; `near` [samples, P of the target]: the similarities to the
    prototypes as they are."""
    if again is None:
        return np.full(len(near), np.nan), np.full(len(near), np.nan)
    low, high = jackknife_interval(near.max(1), again, prototypes.left_out[target], used=near.argmax(1))
    least, most = BOUNDS["hidden" if reader.main == "hidden" else reader.config.similarity]
    return np.maximum(low, least), np.minimum(high, most)


def _resampled(reader: Reader, near: np.ndarray, again: np.ndarray | None, drawn: Any) -> np.ndarray:
    """Scores [samples, B] for one target under every resample of its examples; `near` [samples, P of the target]: the
    similarities to the prototypes as they are, of which `drawn` [B, P] takes some with prototype=max."""
    if again is not None:
        return again
    return np.stack([near[:, some > 0].max(1) for some in drawn], axis=1)
