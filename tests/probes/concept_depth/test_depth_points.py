"""Jump and converging points: the golden curves, and curves whose points are plain to see."""

import numpy as np
import pytest

from probes.concept_depth import depth_points as depth

GOLDEN = {
    "jump": ([0.5] * 4 + [0.58, 0.70, 0.82, 0.90, 0.93] + [0.95] * 11, (0.20, 0.95, 0.45, 0.45)),
    "line": (list(np.linspace(0.70, 0.74, 20)), (np.nan, 0.95, 0.05, 0.05)),
    "bell": (
        [0.5] * 8 + [0.6, 0.7, 0.78, 0.80, 0.76, 0.72, 0.69, 0.66, 0.63, 0.61, 0.59, 0.57],
        (0.40, 0.55, np.nan, 0.55),
    ),
}

POINTS = ("jump", "converge_literal", "converge_stable", "converge_after_jump")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_curves(name):
    curve, expected = GOLDEN[name]
    assert len(curve) == 20
    found = depth.points(np.array(curve))
    assert np.allclose([found[k] for k in POINTS], expected, equal_nan=True, atol=1e-12)


def test_many_curves_at_once_are_the_curves_one_by_one():
    curves = np.array([curve for curve, _ in GOLDEN.values()])
    together = depth.points(curves)
    for row, curve in enumerate(curves):
        alone = depth.points(curve)
        for name in together:
            assert np.array_equal(together[name][row], alone[name], equal_nan=True)


def test_a_step_of_exactly_ten_percent_is_a_jump():
    assert depth.points(np.array([0.5, 0.55, 0.55]))["jump"] == pytest.approx(1 / 3)
    assert np.isnan(depth.points(np.array([0.5, 0.549, 0.549]))["jump"])


def test_gaussian_shift_jumps_where_it_starts():
    # Bayes accuracy Φ(δ/2): .5 before layer 3 of 8, .9772 from it on
    found = depth.points(np.array([0.5] * 3 + [0.9772] * 5))
    assert found["jump"] == 3 / 8 and found["converge_stable"] == 4 / 8 and found["comprehension"] == 3 / 8


def test_one_layer_has_no_points():
    assert all(np.isnan(depth.points(np.array([0.6]))[k]) for k in POINTS)


def test_intervals_need_half_of_the_draws():
    draws = np.array([0.2] * 30 + [0.4] * 50 + [np.nan] * 20)
    low, high, share = depth.interval(draws)
    assert (low, high, share) == (0.2, 0.4, 0.8)
    assert np.isnan(depth.interval(np.array([0.2, np.nan, np.nan]))[0])
