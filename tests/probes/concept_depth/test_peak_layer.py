"""The accuracy of the best layer is measured on rows that did not pick it."""

import numpy as np
import pytest

from probes.concept_depth.peak_layer import peak, picked_elsewhere, picking_parts


@pytest.mark.parametrize(("groups", "size"), [(60, 1), (30, 6)])
def test_the_peak_of_nothing_is_at_chance_and_its_interval_covers(groups, size):
    """24 layers of coin flips that rows of a group share in part: the highest is 0.6, the one picked elsewhere 0.5."""
    rng, highest, values, covered = np.random.default_rng(0), [], [], 0
    names = np.repeat(np.arange(groups), size)
    tests = [np.flatnonzero(names % 5 == k) for k in range(5)]
    own, empty = np.concatenate(tests), np.array([])
    parts = picking_parts(np.zeros(len(own)), None, tests, rng)
    for _ in range(400):
        hits = 0.5 * rng.standard_normal((24, groups))[:, names] + 0.87 * rng.standard_normal((24, len(names))) > 0
        row = peak(hits[:, own], parts, names[own], None, empty)
        highest.append(hits.mean(1).max())
        values.append(row["peak_accuracy"])
        covered += row["peak_low"] <= 0.5 <= row["peak_high"]
    assert np.mean(highest) > 0.57 and abs(np.mean(values) - 0.5) < 0.01
    assert 0.92 <= covered / 400 <= 0.98, covered / 400


@pytest.mark.parametrize("folds", [1, 4])
def test_every_part_is_scored_in_the_layer_that_the_others_pick(folds):
    rng = np.random.default_rng(folds)
    labels, units = np.repeat([0, 1], 20), np.repeat(np.arange(20), 2)
    tests = [np.arange(40)[k::4] for k in range(4)] if folds > 1 else [np.arange(40)]
    truth, own = labels[np.concatenate(tests)], units[np.concatenate(tests)]
    parts = picking_parts(truth, own if folds == 1 else None, tests, rng)
    assert sorted(np.concatenate(parts)) == list(range(40)) and len(parts) == 2
    hits = rng.random((3, 40)) < 0.6
    layers, held_out = picked_elsewhere(hits, parts)
    for part, layer in zip(parts, layers):
        rest = [i for i in range(40) if i not in part]
        assert layer == int(np.argmax([hits[k, rest].mean() for k in range(3)]))
        assert np.array_equal(held_out[part], hits[layer, part])
        assert folds > 1 or not set(own[part]) & set(own[rest])  # whole groups on one side


def test_a_single_group_has_no_other_rows_to_pick_on():
    parts = picking_parts(np.array([0, 1, 0, 1]), np.zeros(4), [np.arange(4)], np.random.default_rng(0))
    row = peak(np.ones((2, 4), dtype=bool), parts, np.zeros(4), None, np.array([]))
    assert np.isnan(row["peak_accuracy"]) and row["peak_layer"] == 0
