"""Shuffled labels that keep the structure of a set: what the null of a probe may know, and what it may not.

A set whose rows come in groups has far fewer independent labels than rows. Shuffled over all rows its labels lose the
groups, and folds that had both classes in proportion get more of one than the rest, which makes a probe of nothing do
worse than chance. So labels move within the parts of the split only (each fold; with a single test part, the test rows
and the others), and within what the split keeps together: a group of one class keeps one label, and the labels of such
groups change places; a group of both classes has them shuffled among its rows. Rows that the split does not keep
together are groups of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def parts_of(n: int, tests: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rows of every test part, and those that are in none."""
    rest = np.setdiff1d(np.arange(n), np.concatenate(list(tests)))
    return [*tests, *([rest] if len(rest) else [])]


def shuffle(
    labels: np.ndarray, tests: Sequence[np.ndarray], units: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """The labels [n] shuffled within the parts of the split and within the groups `units` [n] (None: every row is
    one)."""
    out = labels.copy()
    for whole, mixed in _groups(labels, tests, units):
        moved = rng.permutation(len(whole))
        for group, other in zip(whole, moved):
            out[group] = labels[whole[other][0]]
        for group in mixed:
            out[group] = labels[rng.permutation(group)]
    return out


def shuffle_numbers(
    numbers: np.ndarray, tests: Sequence[np.ndarray], units: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Numbers [n] shuffled within the parts of the split, with the structure of the groups `units` [n] (None: every row
    is one): the means of the groups change places, and what a row is off its group's mean moves within the group. So
    rows of a group stay as alike as they are, and what sets groups apart is not kept where it was."""
    out = numbers.astype(np.float64)
    for groups in _groups_by_part(numbers, tests, units):
        means = np.array([numbers[group].mean() for group in groups])
        for group, mean, own in zip(groups, means[rng.permutation(len(groups))], means):
            out[group] = mean + numbers[rng.permutation(group)] - own
    return out


def arrangements_of_numbers(numbers: np.ndarray, tests: Sequence[np.ndarray], units: np.ndarray | None) -> float:
    """In how many ways `shuffle_numbers` can lay the numbers out."""
    total = 0.0
    for groups in _groups_by_part(numbers, tests, units):
        total += _log_ways([float(numbers[group].mean()) for group in groups])
        total += sum(_log_ways(numbers[group]) for group in groups)
    return math.exp(min(total, 700.0))


def _groups_by_part(
    labels: np.ndarray, tests: Sequence[np.ndarray], units: np.ndarray | None
) -> list[list[np.ndarray]]:
    """For every part the rows of its groups."""
    names = np.arange(len(labels)) if units is None else np.unique(units, return_inverse=True)[1]
    found = []
    for part in parts_of(len(labels), tests):
        part = part[np.argsort(names[part], kind="stable")]
        found.append(np.split(part, np.flatnonzero(np.diff(names[part])) + 1))
    return found


def arrangements(labels: np.ndarray, tests: Sequence[np.ndarray], units: np.ndarray | None) -> float:
    """In how many ways `shuffle` can lay the labels out: one over it is the least p that they can tell."""
    total = 0.0
    for whole, mixed in _groups(labels, tests, units):
        total += _log_ways([labels[group[0]] for group in whole])
        total += sum(_log_ways(labels[group]) for group in mixed)
    return math.exp(min(total, 700.0))


def _groups(
    labels: np.ndarray, tests: Sequence[np.ndarray], units: np.ndarray | None
) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """For every part the rows of its groups of one label, and of those of several."""
    found = []
    for groups in _groups_by_part(labels, tests, units):
        alike = [bool((labels[group] == labels[group[0]]).all()) for group in groups]
        found.append(([g for g, same in zip(groups, alike) if same], [g for g, same in zip(groups, alike) if not same]))
    return found


def _log_ways(labels: Sequence | np.ndarray) -> float:
    """Logarithm of the number of orders of labels that differ."""
    _, counts = np.unique(np.asarray(labels), return_counts=True) if len(labels) else (None, np.zeros(0, int))
    return math.lgamma(counts.sum() + 1) - sum(math.lgamma(k + 1) for k in counts)
