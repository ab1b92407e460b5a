"""Intervals of branching factors hold the truth as often as they say, over prompts and over samples, and there is none
below five of them."""

import numpy as np
import pytest
from scipy import stats

from probes.branching_factor.bf_intervals import (
    curve_ends,
    mean_ends,
    paired_mean,
    prompt_ends,
    prompts_in,
    ratio_of_means,
    sample_ends,
)
from probes.branching_factor.config import Config
from probes.branching_factor.estimators import log_bf, sample_parts
from tests.probes.branching_factor.test_estimators import profile, survivors, zipf_draws


def open_ended(P, rng):
    """Prompts of one kind, whose rates scatter."""
    return np.exp(np.maximum(rng.normal(1.1, 0.3, P), 0))


def two_kinds(P, rng):
    """Questions with few answers and stories with many."""
    return np.where(rng.random(P) < 0.5, 1.5, 5.5) * rng.lognormal(0, 0.1, P)


def a_few_wide_open(P, rng):
    """Rates that are themselves skewed: a few prompts hold much of the mean."""
    return np.exp(rng.lognormal(0, 0.35, P))


def held(world, P, runs=1500):
    """How often the interval holds the truth, and how often Student's t of the values as they are does."""
    rng = np.random.default_rng(P)
    truth = world(1_000_000, rng).mean()
    values = world(runs * P, rng).reshape(runs, P)
    found = np.array([mean_ends(row, range(P)) for row in values])
    half = stats.t.ppf(0.975, P - 1) * values.std(1, ddof=1) / np.sqrt(P)
    plain = np.abs(values.mean(1) - truth) <= half
    return ((found[:, 0] <= truth) & (truth <= found[:, 1])).mean(), plain.mean()


@pytest.mark.parametrize("P", [5, 8, 12, 30])
def test_the_mean_over_prompts_is_held_as_often_as_is_said(P):
    for world in (open_ended, two_kinds):
        assert 0.92 <= held(world, P)[0] <= 0.98
    # where a few prompts hold much of the mean, few prompts cannot know it; on the log scale they know more
    logs, plain = held(a_few_wide_open, P)
    assert logs > plain and logs >= 0.87


@pytest.mark.parametrize("P", [5, 8, 12, 30])
def test_the_ratio_over_the_same_prompts_is_held_as_often_as_is_said(P):
    """Two models on the same prompts, whose values go together: the pairs make the interval narrow."""
    rng, runs = np.random.default_rng(P), 1000
    a = 1 + rng.lognormal(0, 0.5, (runs, P))
    noise = rng.lognormal(0, 0.1, (2, runs, P))
    truth = 2.0
    found = [ratio_of_means(2 * x * u, x * v, range(P)) for x, u, v in zip(a, *noise)]
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98
    widths = np.median([np.log(e.high / e.low) for e in found])
    alone = np.median([np.log(np.divide(*mean_ends(2 * x * u, range(P))[::-1])) for x, u in zip(a, noise[0])])
    assert widths < alone


@pytest.mark.parametrize("world, M", [(survivors, 20), (survivors, 50), (zipf_draws, 8), (zipf_draws, 30)])
def test_the_value_of_a_prompt_is_held_over_its_samples(world, M):
    rng = np.random.default_rng(M)
    p, truth = world(600, M, rng)
    bf = np.exp(log_bf(p, "nll", bias="jackknife")[:, 0])
    low, high = prompt_ends(p, Config(estimator="nll"), bf, rng)
    # twenty samples of which a few are long hold a little less: the long ones are too few to see their spread
    assert 0.87 <= ((low <= truth) & (truth <= high)).mean() <= 0.985


def test_an_interval_of_a_mean_is_students_t_of_what_each_prompt_brings_to_its_log():
    values = np.array([2.0, 3.0, 2.5, 4.0, 3.5, 2.2])
    half = stats.t.ppf(0.975, 5) * values.std(ddof=1) / np.sqrt(6) / values.mean()
    np.testing.assert_allclose(mean_ends(values, range(6)), values.mean() * np.exp([-half, half]))
    b = np.array([1.0, 2.0, 1.2, 1.5, 2.2, 1.1])
    brings = values / values.mean() - b / b.mean()
    half = stats.t.ppf(0.975, 5) * brings.std(ddof=1) / np.sqrt(6)
    found = ratio_of_means(values, b, range(6))
    assert found.value == pytest.approx(values.mean() / b.mean()) and found.n == 6
    np.testing.assert_allclose((found.low, found.high), found.value * np.exp([-half, half]))
    gap = paired_mean(values - b, range(6))
    np.testing.assert_allclose(
        (gap.low, gap.high), stats.t.interval(0.95, 5, (values - b).mean(), stats.sem(values - b))
    )


def test_an_interval_of_a_prompt_leaves_out_one_sample_after_another():
    p = profile(np.random.default_rng(2).integers(1, 30, (3, 9)))
    sums, lengths = sample_parts(p, "entropy", "tokens")
    value = log_bf(p, "entropy", bias="jackknife")[:, 0]
    low, high = sample_ends(value, sums, lengths)
    for i in range(3):
        without = [np.delete(sums[i], m).sum() / np.delete(lengths[i], m).sum() for m in range(9)]
        error = np.sqrt(8 / 9 * ((without - np.mean(without)) ** 2).sum())
        half = stats.t.ppf(0.975, lengths[i].sum() ** 2 / (lengths[i] ** 2).sum() - 1) * error
        np.testing.assert_allclose((low[i], high[i]), np.maximum(np.exp(value[i] + np.array([-half, half])), 1))


def test_there_is_no_interval_below_five_or_where_nothing_varies():
    few = [2.0, 3.0, 2.5, 4.0]
    assert np.isnan(mean_ends(few, range(4))).all() and np.isnan(ratio_of_means(few, few[::-1], range(4)).low)
    assert np.isfinite(mean_ends([*few, 3.0], range(5))).all()
    # rows of the same prompt are one prompt, and an undefined one is none
    assert np.isnan(mean_ends([*few, 3.0], [0, 1, 2, 3, 3])).all()
    assert np.isnan(mean_ends([*few, np.nan], range(5))).all()
    assert np.isnan(mean_ends(np.ones(9), range(9))).all() and np.isnan(paired_mean(np.zeros(9), range(9)).low)
    assert np.isnan(mean_ends(np.empty(0), [])).all() and np.isnan(paired_mean(np.array([np.nan]), [0]).value)
    p, _ = zipf_draws(3, 4, np.random.default_rng(0))
    for estimator in ("nll", "compat"):
        ends = prompt_ends(p, Config(estimator=estimator), np.full(3, 2.0), np.random.default_rng(0))
        assert np.isnan(ends).all()
    assert mean_ends([1.0, 1.0, 1.0, 1.0, 3.0], range(5))[0] == 1.0  # no branching factor is below 1


def test_a_curve_has_at_every_position_the_interval_of_the_prompts_that_are_there():
    rng = np.random.default_rng(1)
    curves = 1 + rng.gamma(2, 1, (9, 6))
    curves[:5, 4] = np.nan
    curves[:, 5] = np.nan
    low, high = curve_ends(curves, range(9))
    for t in range(6):
        np.testing.assert_array_equal((low[t], high[t]), mean_ends(curves[:, t], range(9)))
    assert np.isnan(low[4:]).all() and np.isfinite(low[:4]).all()
    assert prompts_in(curves, range(9)).tolist() == [9, 9, 9, 9, 4, 0]
    assert prompts_in(curves, [0] * 5 + [1, 2, 3, 4]).tolist() == [5, 5, 5, 5, 4, 0]
    assert curve_ends(np.empty((9, 0)), range(9))[0].shape == (0,)
