"""Selectivity as Hewitt and Liang have it (arXiv 1909.03368): accuracy on the concept minus accuracy on control tasks.

A *control task* gives every word type a random label, the same wherever the type stands, so that it can be learned by
heart and in no other way (their §2). Here the type of a text is its group, where the set has groups (what a text is
about: a word, a person, a pair), else the last word of the text without its frame. Half of the types, drawn anew for
each task, are class 1 (of k classes, a k-th are of each). Fitted on 80 % of the rows and tested on the others, rows of
every type on both sides as far as it has several: only rows whose type was there to be learned count. A probe that is
as good at this as at the concept may know the texts and not the concept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.concept_depth import class_measures
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.held_out import Problem
from workbench.stats.clusters import FEWEST, student_quantile

_WORD = re.compile(r"\w+")
_REPEATED = 0.5  # share of the rows whose type another row has, below which there is little to learn by heart
_TEST = 0.2


@dataclass(frozen=True, eq=False)
class Selectivity:
    """Mean accuracy on control tasks, and the accuracy on the concept minus it with the ends of its interval, each [L];
    all NaN where the set has no control task."""

    task_accuracy: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def types_of(concept: ConceptSet) -> np.ndarray | None:
    """The word type of every text [n]; None where too few texts share theirs with another, or there are fewer than
    five types."""
    if concept.groups is not None:
        names = list(concept.groups)
    else:
        words = [re.findall(_WORD, concept.bare(row).lower()) for row in range(len(concept))]
        names = [found[-1] if found else "" for found in words]
    _, types, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if len(sizes) < FEWEST or (sizes[types] > 1).mean() < _REPEATED:
        return None
    return types


def drawn_tasks(types: np.ndarray | None, *, tasks: int, rng: np.random.Generator, classes: int = 2) -> list[Problem]:
    """Control tasks of as many classes; none where there are no types."""
    found = []
    for _ in range(tasks if types is not None else 0):
        assert types is not None
        count = int(types.max()) + 1
        labels = rng.permutation(np.arange(count) % classes)[types]
        train, test = _both_sides(types, rng)
        if len(test) and len(set(labels[train])) == classes:
            found.append(Problem(labels, train, test))
    return found


def task_accuracies(scores: Sequence[np.ndarray], tasks: Sequence[Problem], n_layers: int) -> np.ndarray:
    """Accuracy of every layer on each control task, [tasks, L], from the scores of its test rows."""
    found = [class_measures.right(own, task.labels[task.test]).mean(1) for own, task in zip(scores, tasks)]
    return np.array(found).reshape(-1, n_layers)


def selectivity(value: np.ndarray, low: np.ndarray, high: np.ndarray, tasks: np.ndarray) -> Selectivity:
    """Accuracy [L] with its interval minus the mean over control tasks [tasks, L]. The tasks are a sample, too: both
    intervals are put together as those of a difference of independent numbers (Newcombe's method 10)."""
    if not len(tasks):
        none = np.full(len(value), np.nan)
        return Selectivity(none, none, none, none)
    mean, half = tasks.mean(0), np.full(len(value), np.nan)
    if len(tasks) >= FEWEST:
        half = student_quantile(0.975, len(tasks) - 1) * tasks.std(0, ddof=1) / np.sqrt(len(tasks))
    off = value - mean
    return Selectivity(mean, off, off - np.hypot(value - low, half), off + np.hypot(high - value, half))


def _both_sides(types: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to test on: about a fifth of the rows, of types that stay among the others."""
    order = rng.permutation(len(types))
    _, first = np.unique(types[order], return_index=True)  # one row of every type is fitted on
    free = np.setdiff1d(order, order[first])
    test = rng.permutation(free)[: max(1, round(_TEST * len(types)))]
    return np.setdiff1d(np.arange(len(types)), test), np.sort(test)


def described(concept: ConceptSet, types: Sequence | np.ndarray | None) -> str:
    """What the types of a set are, for the table `sets`."""
    return "" if types is None else "group" if concept.groups is not None else "last word"
