"""Shuffled labels keep groups and folds, and a probe of them is at chance whatever the groups are."""

import math

import numpy as np
import pytest
import torch

from probes.concept_depth import linear_probe
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.held_out import score_held_out
from probes.concept_depth.label_shuffles import arrangements, shuffle
from probes.concept_depth.set_splits import split


def grouped(kind, rng):
    """Labels and groups: of one class each, in pairs of opposite labels, uneven and mixed, or none."""
    if kind == "whole":
        groups = np.repeat(np.arange(24), rng.integers(3, 9, 24))
        return (groups % 2).astype(int), groups
    if kind == "pairs":
        groups = np.repeat(np.arange(60), 2)
        return np.tile([0, 1], 60), groups
    if kind == "mixed":
        groups = np.repeat(np.arange(30), rng.integers(1, 9, 30))
        return rng.integers(0, 2, len(groups)), groups
    return np.tile([0, 1], 60), None


def split_of(labels, groups, how, rng):
    names = None if groups is None else tuple(map(str, groups))
    concept = ConceptSet("toy", tuple(f"text {i}" for i in range(len(labels))), labels, ("0", "1"), names)
    return split(concept, how, folds=5, rng=rng)


@pytest.mark.parametrize("kind", ["whole", "pairs", "mixed", "none"])
def test_a_shuffle_keeps_every_part_and_every_group(kind):
    rng = np.random.default_rng(0)
    labels, groups = grouped(kind, rng)
    for how in ("kfold", "paper"):
        tests, by_group = split_of(labels, groups, how, rng)
        units = groups if by_group else None
        other = shuffle(labels, tests, units, rng)
        assert not np.array_equal(other, labels)
        if kind != "whole":  # groups of one size or of both classes: as many of either class in every part as before
            singles = groups is None or kind == "pairs"
            assert not singles or all(other[t].sum() == labels[t].sum() for t in tests)
        for g in np.unique(groups) if groups is not None else ():
            own = groups == g
            if len(set(labels[own])) == 1:
                assert len(set(other[own])) == 1
            else:
                assert other[own].sum() == labels[own].sum()


def test_arrangements_are_those_that_can_be_counted():
    labels, tests = np.array([0, 0, 1, 1, 0, 1, 0, 1]), [np.arange(4), np.arange(4, 8)]
    seen = {tuple(shuffle(labels, tests, None, np.random.default_rng(k))) for k in range(500)}
    assert len(seen) == 36 == round(arrangements(labels, tests, None))
    units = np.array([0, 0, 1, 1, 2, 2, 3, 3])  # two groups of one class in the first part, two mixed in the second
    seen = {tuple(shuffle(labels, tests, units, np.random.default_rng(k))) for k in range(200)}
    assert len(seen) == 8 == round(arrangements(labels, tests, units))
    assert math.isfinite(arrangements(np.tile([0, 1], 5000), [np.arange(10000)], None))


@pytest.mark.parametrize("kind", ["whole", "pairs", "mixed", "none"])
def test_the_control_is_at_chance_where_features_know_the_groups(kind):
    """Rows of a group look alike; over many sets the mean balanced accuracy on shuffled labels is a half, that of real
    labels which the features know nothing of too, and the first spread no less than the second. With groups of one
    class dealt out by size alone the second was 0.46, and labels shuffled over all rows spread half as far as real
    ones."""
    control, real = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels, groups = grouped(kind, rng)
        shared = rng.standard_normal((200, 6))[groups] if groups is not None else 0
        x = [torch.tensor(shared + 0.5 * rng.standard_normal((len(labels), 6)))]
        tests, by_group = split_of(labels, groups, "kfold", rng)
        rows = np.concatenate(tests)

        def balanced(y, x=x, tests=tests, rows=rows):
            fitted = score_held_out(x, y, tests)
            return linear_probe.metrics(fitted.scores, y[rows])["balanced_accuracy"][0]

        real.append(balanced(labels))
        control += [balanced(shuffle(labels, tests, groups if by_group else None, rng)) for _ in range(3)]
    assert abs(np.mean(control) - 0.5) < 0.015 + 2 * np.std(control) / np.sqrt(20), np.mean(control)
    assert abs(np.mean(real) - 0.5) < 3.5 * np.std(real) / np.sqrt(20), np.mean(real)
    assert np.std(control) > 0.6 * np.std(real)
