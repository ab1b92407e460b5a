"""Scores of heads as the official code publishes them: JSON ``{"layer-head": [score of a trial, ...], ...}``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.runs.imported import ImportedResult, PublishedFile

THRESHOLD = 0.1  # of the paper; a head that reaches it counts
LARGEST = 100_000  # layers, or heads of a layer, beyond which a key is no head
_HEAD = re.compile(r"(\d{1,9})[-.](\d{1,9})")
SCORES = ("score", "ci_low", "ci_high", "activation_frequency")


def read(file: PublishedFile) -> ImportedResult | None:
    """``heads`` and ``trial_scores`` [trials, layers, H] of such a file; None for a file that holds no such scores.

    The score of a head is the mean over its trials. It has no interval: trials of one needle are no evidence of their
    own, and the file does not say which needle a trial is of. Heads of which the file says nothing have no score, and
    trials that a head does not have are NaN. Scores above 1 stay: the official code counts steps.
    Raises InputError that names the head."""
    found = file.json
    keys = list(found) if isinstance(found, dict) else []
    if not any(_HEAD.fullmatch(key) for key in keys) or file.columns:
        if file.expected:
            raise InputError(
                f"{file.path} holds no scores of heads; retrieval scores are JSON "
                f'{{"layer-head": [score of each trial, ...]}}, and have no columns to name.'
            )
        return None
    trials = _trials(found, file)
    n_layers, n_heads = (1 + max(key[part] for key in trials) for part in (0, 1))
    scores = np.full((max(map(len, trials.values())), n_layers, n_heads), np.nan)
    for (layer, head), values in trials.items():
        scores[: len(values), layer, head] = values
    if not len(scores):
        raise InputError(f"{file.path} has no trial of any head; there is no score in it.")
    heads = _head_table(scores)
    without = heads["score"].null_count()
    where = f"of the {heads.height:,} heads up to layer {n_layers - 1} and head {n_heads - 1}"
    warnings = (f"{without} {where} have no trial in the file; they have no score.",) if without else ()
    return ImportedResult(
        tables={"heads": heads},
        arrays={"trial_scores": scores.astype(np.float32)},
        summary=_summary(heads),
        model={"layers": n_layers, "heads": n_heads},
        config={"threshold": THRESHOLD},
        warnings=warnings,
    )


def _trials(found: Mapping[str, object], file: PublishedFile) -> dict[tuple[int, int], Sequence[float]]:
    """(layer, head) -> the scores of its trials."""
    trials: dict[tuple[int, int], Sequence[float]] = {}
    for key, values in found.items():
        match = _HEAD.fullmatch(key)
        if match is None:
            raise InputError(f"{file.path}: the key '{cut(key, 40)}' is no head; keys are layer-head, such as 3-14.")
        head = (int(match[1]), int(match[2]))
        if max(head) >= LARGEST:
            raise InputError(
                f"{file.path}: the key '{key}' is no head of any model; keys are layer-head, such as 3-14."
            )
        if head in trials:
            raise InputError(f"{file.path}: the head {head[0]}-{head[1]} is there twice; keep one.")
        if not isinstance(values, list):
            raise InputError(
                f"{file.path}: the head {key} has {cut(repr(values), 40)} where the list of the scores of its trials "
                f"is needed."
            )
        for number, value in enumerate(values, 1):
            fault = _fault(value)
            if fault:
                raise InputError(
                    f"{file.path}: trial {number} of the head {key} {fault}; leave the trial out of the list, or "
                    f"repair it."
                )
        trials[head] = [float(value) for value in values]
    layers, heads = (1 + max(key[part] for key in trials) for part in (0, 1))
    if layers * heads > max(4096, 16 * len(trials)):
        raise InputError(
            f"{file.path} speaks of {len(trials)} heads among {layers} layers of {heads} heads; no model is scored so "
            f"thinly, a key must be wrong."
        )
    return trials


def _fault(value: object) -> str | None:
    """What is wrong with the score of a trial; None where nothing is."""
    if value is None:
        return "is NaN or null"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"is {cut(repr(value), 40)}, which is no number"
    try:
        number = float(value)
    except OverflowError:
        return "is too large a number"
    if not math.isfinite(number):
        return "is infinite"
    return f"is {number:g}, and a score is at least 0" if number < 0 else None


def _head_table(scores: np.ndarray) -> pl.DataFrame:
    """One row per head of scores [trials, layers, H], NaN where there is no trial."""
    _, n_layers, n_heads = scores.shape
    flat = scores.reshape(len(scores), -1)
    n = np.isfinite(flat).sum(0)
    columns = {name: np.full(flat.shape[1], np.nan) for name in SCORES}
    for size in np.unique(n[n > 0]):  # the trials of a head come first, so that heads with as many are one block
        own = n == size
        values = flat[:size, own]
        columns["score"][own] = values.mean(0)
        columns["activation_frequency"][own] = (values > 0).mean(0)
    places = {"layer": np.repeat(np.arange(n_layers), n_heads), "head": np.tile(np.arange(n_heads), n_layers)}
    return pl.DataFrame(places | columns | {"n_trials": n.astype(np.int64)}).with_columns(
        pl.col(SCORES).fill_nan(None), is_retrieval=pl.col("score").fill_nan(None) >= THRESHOLD
    )


def _summary(heads: pl.DataFrame) -> dict:
    """How many heads reach the threshold, and which are the best."""
    scored = heads.drop_nulls("score")
    over, size = int(scored["is_retrieval"].sum()), scored.height
    count: dict[str, float | int] = {"value": over, "heads": size}
    best = scored.sort("score", "layer", "head", descending=[True, False, False]).head(10)
    return {
        "trials_scored": int(scored["n_trials"].max() or 0),
        "retrieval_heads": count,
        "share_of_heads": {key: value if key == "heads" else value / size for key, value in count.items()},
        "top_heads": ", ".join(
            f"{row['layer']}.{row['head']} {row['score']:.3f}" for row in best.iter_rows(named=True) if row["score"] > 0
        ),
    }
