"""How far two sets of answers lie apart, and how far sets of that size lie apart by chance."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

SHUFFLES = 999
SMOOTHING = 0.5  # added to the count of every answer that either set has: no answer is impossible


@dataclass(frozen=True)
class AnswerShift:
    """``value``: KL(replaced ‖ kept) in nats. ``null``: its mean where the answers of both sets are dealt out anew, as
    they could be if the sets were of one distribution; ``p``: how often it then is as large."""

    value: float
    null: float
    p: float


def answer_shift(replaced: Sequence[Hashable], kept: Sequence[Hashable], rng: np.random.Generator) -> AnswerShift:
    """The shift from the answers that were ``kept`` to those where something was ``replaced``; NaN where one of the two
    is empty."""
    if not len(replaced) or not len(kept):
        return AnswerShift(np.nan, np.nan, np.nan)
    kinds = {answer: i for i, answer in enumerate(dict.fromkeys([*replaced, *kept]))}
    counts = [np.bincount([kinds[answer] for answer in own], minlength=len(kinds)) for own in (replaced, kept)]
    both = counts[0] + counts[1]
    dealt = rng.multivariate_hypergeometric(both, len(replaced), size=SHUFFLES)
    value, null = float(divergence(counts[0], counts[1])), divergence(dealt, both - dealt)
    p = float((1 + (null >= value - 1e-12).sum()) / (1 + SHUFFLES))
    return AnswerShift(value, float(null.mean()), p)


def divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KL of two distributions [...] in nats, from counts of answers [..., answers] with half a count added to each."""
    p, q = (counts + SMOOTHING for counts in (np.asarray(first, np.float64), np.asarray(second, np.float64)))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * np.log(p / q)).sum(-1)
