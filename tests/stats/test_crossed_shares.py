"""Intervals of shares whose random draws are a sample too: coverage where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.stats.clusters import clusters_of, crossed_interval, share_interval
from workbench.stats.crossed_shares import (
    crossed_share_interval,
    p_above,
    share_difference_interval,
    steady_share_interval,
)


def shares(rng, *, level, clusters, rows, draws, by_cluster=0.8, by_draw=0.8):
    """0/1 outcomes [draws, clusters × rows] whose log-odds vary by cluster and by draw."""
    odds = np.log(level / (1 - level)) + by_cluster * rng.normal(size=(1, clusters, 1))
    odds = odds + by_draw * rng.normal(size=(draws, 1, 1))
    return (rng.random((draws, clusters, rows)) < 1 / (1 + np.exp(-odds))).astype(float).reshape(draws, -1)


def truth(level, by_cluster=0.8, by_draw=0.8):
    rng = np.random.default_rng(9)
    odds = np.log(level / (1 - level)) + np.hypot(by_cluster, by_draw) * rng.normal(size=400_000)
    return float((1 / (1 + np.exp(-odds))).mean())


@pytest.mark.parametrize(("clusters", "draws"), [(6, 20), (12, 20), (30, 20), (12, 5)])
@pytest.mark.parametrize("level", [0.5, 0.85])
def test_a_share_over_clusters_and_draws_is_held(clusters, draws, level):
    rng, true = np.random.default_rng(clusters), truth(level)
    names = clusters_of(np.repeat(np.arange(clusters), 5))
    found = [
        crossed_share_interval(shares(rng, level=level, clusters=clusters, rows=5, draws=draws), names)
        for _ in range(400)
    ]
    assert 0.92 <= np.mean([low <= true <= high for low, high in found]) <= 0.99
    assert all(0 <= low < high <= 1 for low, high in found)


def test_what_one_draw_of_five_breaks_is_not_known_to_a_percent():
    """Recall of 0.35, 1, 1, 1, 1 under five random masks was printed as 0.87 [0.863, 0.880]."""
    values = np.ones((5, 60))
    values[0, :39] = 0
    low, high = crossed_share_interval(values, clusters_of(np.repeat(np.arange(6), 10)))
    assert low < 0.62 and 0.95 < high <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_or_nothing_has_a_width_and_is_that_of_the_clusters(value):
    clusters = clusters_of(np.repeat(np.arange(6), 10))
    low, high = crossed_share_interval(np.full((20, 60), value), clusters)
    assert (low, high) == pytest.approx([float(end) for end in share_interval(np.full(60, value), clusters)])
    assert high - low > 0.3


def test_a_share_next_to_its_end_is_not_known_better_than_one_at_it():
    clusters, values = clusters_of(np.repeat(np.arange(12), 20)), np.zeros((240, 4))
    values[:3, 1] = 0.125  # of one cluster
    values[::20, 2] = 0.125  # a little in each
    values[:, 3] = 1 - values[:, 1]
    low, high = steady_share_interval(values, clusters)
    assert high[0] == pytest.approx(float(share_interval(values, clusters)[1][0]))
    assert high[0] < high[1] < high[0] + 0.01 and 1 - low[3] == pytest.approx(high[1]) and low[1] > 0
    assert high[2] < 0.1  # twelve clusters say how much their rows agree
    assert (low[0], float(steady_share_interval(1 - values, clusters)[1][0])) == (0, 1)


def test_below_five_clusters_and_for_one_draw_there_is_none():
    assert np.isnan(
        crossed_share_interval(np.random.default_rng(0).random((20, 8)), clusters_of(np.arange(8) // 2))
    ).all()
    assert np.isnan(crossed_share_interval(np.random.default_rng(0).random((1, 8)), clusters_of(np.arange(8)))).all()


def test_near_a_half_it_is_the_crossed_interval():
    values = shares(np.random.default_rng(3), level=0.5, clusters=40, rows=5, draws=20, by_draw=0.1, by_cluster=0.1)
    clusters = clusters_of(np.repeat(np.arange(40), 5))
    assert crossed_share_interval(values, clusters) == pytest.approx(crossed_interval(values, clusters), abs=0.01)


@pytest.mark.parametrize("clusters", [6, 12, 30])
@pytest.mark.parametrize(("first", "second"), [(0.1, 0.9), (0.7, 0.7)])
def test_a_difference_of_two_shares_of_the_same_rows_is_held(clusters, first, second):
    rng, true = np.random.default_rng(clusters), truth(first, 0.8, 0.0) - truth(second)
    names = clusters_of(np.repeat(np.arange(clusters), 5))
    held = []
    for _ in range(400):
        same = 0.8 * rng.normal(size=(clusters, 1))  # a cluster that is hard is hard for both
        odds = [np.log(p / (1 - p)) + same for p in (first, second)]
        one = rng.random((clusters, 5)) < 1 / (1 + np.exp(-odds[0]))
        each = odds[1] + 0.8 * rng.normal(size=(20, 1, 1))
        other = rng.random((20, clusters, 5)) < 1 / (1 + np.exp(-each))
        low, high = share_difference_interval(one.reshape(-1) * 1.0, other.reshape(20, -1) * 1.0, names)
        held.append(low <= true <= high)
    assert 0.92 <= np.mean(held) <= 0.995


def test_a_difference_of_minus_one_has_a_width_and_lies_below_zero():
    clusters = clusters_of(np.repeat(np.arange(6), 5))
    low, high = share_difference_interval(np.zeros(30), np.ones((20, 30)), clusters)
    assert low == -1 and -0.5 < high < 0
    assert np.isnan(share_difference_interval(np.zeros(8), np.ones((20, 8)), clusters_of(np.arange(8) // 2))).all()


def test_the_p_of_a_share_says_what_its_interval_says():
    rng = np.random.default_rng(5)
    clusters, values = clusters_of(np.repeat(np.arange(12), 4)), rng.random((48, 30)) * np.linspace(0, 1, 30)
    p, (low, _) = p_above(values, 0.2, clusters), share_interval(values, clusters)
    assert ((p <= 0.025) == (low > 0.2)).mean() > 0.95 and (p[values.mean(0) <= 0.2] == 1).all()
    assert np.isnan(p_above(values[:16], 0.2, clusters_of(np.arange(16) // 4))).all()


def test_heads_that_lie_at_the_threshold_are_seldom_told_from_it():
    """Twelve needles of ten trials, a thousand heads whose true score is 0.1."""
    rng, clusters = np.random.default_rng(6), clusters_of(np.repeat(np.arange(12), 10))
    rates = np.clip(0.1 + 0.05 * rng.normal(size=(12, 1, 1000)), 0, 1)
    values = (rng.random((12, 10, 1000)) < rates).astype(float).reshape(120, 1000)
    assert (p_above(values, 0.1, clusters) <= 0.025).mean() < 0.04
