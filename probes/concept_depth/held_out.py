"""Rows scored by probes that have not seen them: folds of a set, of the same with its labels shuffled, and control
tasks, all in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.concept_depth import linear_probe, mean_difference, multinomial_probe
from probes.concept_depth.linear_probe import LinearProbes
from probes.concept_depth.many_fits import ManyFits
from probes.concept_depth.multinomial_probe import MultinomialProbes

AT_ONCE = 512  # problems whose scores of all rows are held together

Probes = LinearProbes | MultinomialProbes
Fit = Callable[..., ManyFits]  # (features [L][n, d], labels [q, n], fitted [q, n], keep=)
FITS: dict[str, tuple[Fit, Fit]] = {
    "logistic": (linear_probe.fit_many, multinomial_probe.fit_many),
    "mean_difference": (mean_difference.fit_many, mean_difference.nearest_means),
}  # by `classifier`: of two classes, of more


@dataclass(frozen=True, eq=False)
class Problem:
    """Labels [n] of all rows, and the rows to fit on and to test on."""

    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class Solved:
    """Of each problem the scores of its test rows, [L, rows] (of k > 2 classes [L, rows, k]); iterations and error [q,
    L]; the probes of the first."""

    scores: list[np.ndarray]
    iterations: np.ndarray
    error: np.ndarray
    first: Probes


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows scored by probes that have not seen them: scores [L, rows] (of k > 2 classes [L, rows, k]), fold after fold;
    the probes of the first fold; the most Newton steps and the largest error of any fold, each [L]."""

    scores: np.ndarray
    probes: Probes
    iterations: np.ndarray
    error: np.ndarray


def folds_of(labels: np.ndarray, tests: Sequence[np.ndarray]) -> list[Problem]:
    """Of each part that is tested, the problem of fitting on the rows outside of it."""
    return [Problem(labels, np.delete(np.arange(len(labels)), test), test) for test in tests]


def solve(
    features: Sequence[torch.Tensor],
    problems: Sequence[Problem],
    fit: Fit = linear_probe.fit_many,
    *,
    told: Callable[[int], None] = lambda done: None,
) -> Solved:
    """Probes of every layer, features [L][n, d], for every problem. `told(done)`: is told how many are done."""
    scores, iterations, error, first = [], [], [], None
    for start in range(0, len(problems), AT_ONCE):
        told(start)
        block = problems[start : start + AT_ONCE]
        labels, fitted = np.stack([one.labels for one in block]), np.zeros((len(block), len(features[0])), dtype=bool)
        for number, one in enumerate(block):
            fitted[number, one.train] = True
        found = fit(features, labels, fitted, keep=int(start == 0))
        several = found.scores.shape[-1] > 1
        scores += [(own if several else own[..., 0])[:, one.test] for own, one in zip(found.scores, block)]
        iterations.append(found.iterations)
        error.append(found.error)
        if first is None:
            first = (multinomial_probe if several else linear_probe).probes_of(found)
    assert first is not None
    return Solved(scores, np.concatenate(iterations), np.concatenate(error), first)


def score_held_out(
    features: Sequence[torch.Tensor],
    labels: np.ndarray,
    tests: Sequence[np.ndarray],
    *,
    fit: Fit = linear_probe.fit_many,
) -> HeldOut:
    """Fit a probe a layer on the rows outside of each of `tests`, and score those inside."""
    return held_out_of(solve(features, folds_of(labels, tests), fit), len(tests))


def courses_of(scores: Sequence[np.ndarray], folds: int) -> list[np.ndarray]:
    """Of each labelling the scores of all its test rows, fold after fold."""
    return [np.concatenate(scores[start : start + folds], axis=1) for start in range(0, len(scores), folds)]


def held_out_of(solved: Solved, folds: int) -> HeldOut:
    """What the first so many problems, the folds of a set, come to."""
    return HeldOut(
        np.concatenate(solved.scores[:folds], axis=1),
        solved.first,
        solved.iterations[:folds].max(0),
        solved.error[:folds].max(0),
    )
