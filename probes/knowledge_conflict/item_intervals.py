"""Intervals over items: none where there are too few to say anything."""

from __future__ import annotations

import numpy as np

from probes.knowledge_conflict.config import FEW, Config
from workbench.stats.intervals import bootstrap_mean, paired_difference


def mean_interval(values: np.ndarray, config: Config, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of the mean over the first axis; NaN with fewer than FEW items."""
    if len(values) < FEW:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    return bootstrap_mean(values, draws=config.draws, rng=rng)


def difference(a: np.ndarray, b: np.ndarray, config: Config, rng: np.random.Generator) -> dict:
    """Mean of a − b over the same items, with its interval; nulls as its ends with fewer than FEW items."""
    found = paired_difference(a, b, draws=config.draws, rng=rng).as_dict()
    return found if found["n"] >= FEW else found | {"low": None, "high": None}
