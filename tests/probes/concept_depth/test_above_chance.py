"""What is said of a curve holds where the truth is known: null curves give no findings, planted ones theirs."""

import numpy as np
import pytest

from probes.concept_depth.above_chance import (
    CEILING,
    FOUND,
    HAS_NONE,
    LEVEL,
    NEVER,
    NOT_JUDGED,
    NULL_TOO,
    UNSURE,
    above_chance,
    p_of_rank,
)
from probes.concept_depth.depth_points import POINTS, row_of_points
from workbench.stats.clusters import false_discovery

MANY = 1e9  # ways to shuffle


def courses(n, *, groups, layers=8, draws=1, rng, p=0.5):
    """Accuracies of guesses over layers [draws, layers]: rows of a group agree within a layer, layers with each
    other."""
    size = n // groups
    shared = rng.standard_normal((draws, groups, 1)) * 0.6 + rng.standard_normal((draws, groups, layers)) * 0.8
    own = rng.standard_normal((draws, groups, layers, size))
    from scipy.stats import norm

    return (0.7 * shared[..., None] + 0.71 * own < norm.ppf(p)).mean((1, 3))


@pytest.mark.parametrize(("n", "groups"), [(60, 60), (120, 12), (600, 100)])
def test_null_curves_are_never_above_chance_but_for_one_in_twenty(n, groups):
    """Where the paper's rule fires in up to all of them."""
    rng, found, points, by_rule, singles = np.random.default_rng(n), 0, 0, 0, []
    for _ in range(400):
        both = courses(n, groups=groups, draws=21, rng=rng)
        judged = above_chance(both[0], both[1:], MANY)
        row = row_of_points(both[0], None, both[1:], judged)
        found += judged.above.any()
        points += any(np.isfinite(row[name]) for name in POINTS)
        by_rule += np.isfinite(row["jump_by_rule"])
        singles.append((judged.p < 0.05).mean())
    assert found / 400 < 0.075 and points / 400 < 0.075, (found, points)
    assert 0.02 < np.mean(singles) < 0.075, np.mean(singles)  # each p by itself holds what it says
    assert by_rule > 3 * points or n == 600


def test_a_curve_that_rises_from_chance_is_found_where_it_rises():
    """Hits of 200 independent rows, 0.5 and from layer 3 on 0.8."""
    rng, right, jumped = np.random.default_rng(0), 0, 0
    for _ in range(60):
        control = rng.binomial(200, 0.5, (20, 8)) / 200
        curve = np.concatenate([rng.binomial(200, 0.5, 3), rng.binomial(200, 0.8, 5)]) / 200
        judged = above_chance(curve, control, MANY)
        row = row_of_points(curve, None, control, judged)
        right += judged.above[3:].all() and not judged.above[:3].any()
        jumped += row["jump"] == 3 / 8 and row["jump_says"] == FOUND and row["jump_p"] <= 0.05
        assert np.isnan(row["jump_low"])  # too few clusters to resample: no interval
    assert right > 45 and jumped > 25  # a chance step of 10 % before the rise hides it (the rule takes the first)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([0.5, 0.51, 0.5, 0.5], NEVER),
        ([1.0, 1.0, 1.0, 1.0], CEILING),
        ([0.8, 0.81, 0.8, 0.8], CEILING),
        ([0.95, 0.92, 0.99, 0.95], CEILING),
        ([0.5, 0.53, 0.57, 0.62], HAS_NONE),
        ([0.5, 0.8, 0.8, 0.8], FOUND),
        ([0.45, 0.5, 0.5, 0.8], NULL_TOO),
    ],
)
def test_words_say_why_there_is_no_jump(curve, expected):
    control = 0.5 + 0.02 * np.random.default_rng(0).standard_normal((20, 4))
    control[0] = [0.5, 0.45, 0.51, 0.5]  # one shuffled course jumps by 13 %
    if expected == FOUND:
        curve = np.array(curve)
    row = row_of_points(np.array(curve), None, control, above_chance(np.array(curve), control, MANY))
    assert row["jump_says"] == expected
    assert np.isfinite(row["jump"]) == (expected == FOUND)
    assert row["converge_stable_says"] == (expected if expected in (NEVER, CEILING) else row["converge_stable_says"])


@pytest.mark.parametrize("having, says", [(90, UNSURE), (96, FOUND)])
def test_a_jump_that_resampled_groups_do_not_keep_is_not_printed(having, says):
    curve, control = np.array([0.5, 0.8, 0.8, 0.8]), 0.5 + 0.01 * np.random.default_rng(0).standard_normal((20, 4))
    resampled = np.repeat([[0.5, 0.8, 0.8, 0.8], [0.75, 0.8, 0.8, 0.8]], [having, 100 - having], axis=0)
    row = row_of_points(curve, resampled, control, above_chance(curve, control, MANY))
    assert row["jump_says"] == says and row["jump_share"] == having / 100 and row["jump_by_rule"] == 0.25
    assert np.isfinite([row["jump"], row["jump_low"], row["jump_high"]]).tolist() == [says == FOUND] * 3
    unjudged = row_of_points(curve, resampled, control[:3], above_chance(curve, control[:3], MANY))
    assert unjudged["jump_says"] == (UNSURE if says == UNSURE else NOT_JUDGED)


def test_few_shuffles_judge_nothing_and_leave_the_rule():
    curve, control = np.array([0.5, 0.8, 0.8, 0.8]), np.full((3, 4), 0.5)
    judged = above_chance(curve, control, MANY)
    row = row_of_points(curve, None, control, judged)
    assert not judged.judged and not judged.above.any()
    assert row["jump"] == row["jump_by_rule"] == 0.25 and row["jump_says"] == NOT_JUDGED


def test_p_is_no_less_than_the_number_of_ways_to_shuffle_allows():
    """Six groups of one class, in threes: 20 arrangements, so nothing is surer than 1 in 20."""
    control = 0.5 + 0.01 * np.random.default_rng(0).standard_normal((20, 3))
    judged = above_chance(np.ones(3), control, 20)
    assert (judged.p == 0.05).all() and not judged.above.any()
    assert above_chance(np.ones(3), control, 200).above.all()


def test_p_is_the_slow_one_and_adjusted_over_layers():
    from scipy import stats

    rng = np.random.default_rng(1)
    control, value = rng.normal(0.5, 0.03, (25, 5)), np.array([0.5, 0.55, 0.6, 0.7, 0.52])
    judged = above_chance(value, control, MANY)
    for layer in range(5):
        own = control[:, layer]
        t = (value[layer] - own.mean()) / (own.std(ddof=1) * np.sqrt(1 + 1 / 25))
        assert judged.p[layer] == pytest.approx(max(1 / MANY, 1 - stats.t.cdf(t, 24)), abs=1e-12)
    assert np.allclose(judged.p_adjusted, false_discovery(judged.p))
    assert judged.above.tolist() == [
        (q < LEVEL) and (v - c >= 0.05) for q, v, c in zip(judged.p_adjusted, value, control.mean(0))
    ]
    assert p_of_rank(0.6, np.array([0.5, 0.6, 0.7])) == 3 / 4


def test_the_least_effect_keeps_what_is_sure_but_small_from_being_a_finding():
    control = np.random.default_rng(0).normal(0.5, 0.002, (20, 2))
    assert above_chance(np.array([0.53, 0.56]), control, MANY).above.tolist() == [False, True]
