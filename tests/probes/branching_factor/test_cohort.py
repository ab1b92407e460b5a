"""The window curve of one cohort: it has the same samples in every window, and a direction only where there is one."""

import numpy as np
import pytest

from probes.branching_factor.cohort import Cohort, cohort_of, course_of, words_of
from probes.branching_factor.estimators import Profile, window_curve


def world(P, M, lengths, entropy_at, rng, noise=0.1):
    """Samples of given ``lengths`` [P, M] whose step entropies scatter about ``entropy_at`` (a function of prompt and
    position)."""
    N = lengths.max()
    mean = np.array([[entropy_at(p, t) for t in range(N)] for p in range(P)])
    values = np.maximum(mean[:, None] + noise * rng.normal(size=(P, M, N)), 0)
    values = np.where(np.arange(N) < lengths[..., None], values, np.nan)
    return Profile(lengths, values, -values, values, -values)


def answers_and_stories(rng, M=10):
    """Half of the prompts end after 10 tokens with few choices, half go on for 40 with more: no output ever rises."""
    lengths = np.where(np.arange(16)[:, None] < 8, 10, 40) * np.ones((1, M), int)
    return world(16, M, lengths, lambda p, t: 0.5 if p < 8 else 1.5, rng)


def test_a_curve_that_rises_since_short_answers_end_is_flat_over_its_cohort():
    rng = np.random.default_rng(0)
    profile = answers_and_stories(rng)
    windows = np.nanmean(window_curve(profile, 5), axis=0)
    assert windows[0] < 3.3 and windows[2] > 4.2  # what the windows over whatever still goes on show
    found = cohort_of(profile, 5, range(16))
    assert (found.tokens, found.prompts, found.samples) == (40, 8, 80)
    assert np.isnan(found.curve[:8]).all() and np.ptp(found.curve[8:].mean(0)) < 0.2
    course = course_of(found, 5, range(16), rng)
    assert words_of(course.slope.value, course.p, course.p_order).startswith("—")


def test_the_cohort_is_the_samples_that_last_and_its_curve_their_means():
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 40, (9, 10))
    profile = world(9, 10, lengths, lambda p, t: 1 + 0.1 * p, rng)
    found = cohort_of(profile, 5, range(9), tokens=22)
    assert found.tokens == 20
    kept = [(p, np.flatnonzero(lengths[p] >= 20)) for p in range(9)]
    kept = [(p, own) for p, own in kept if len(own) >= 2]
    assert found.prompts == len(kept) and found.samples == sum(len(own) for _, own in kept)
    for p, own in kept:
        slow = [np.mean([np.exp(profile.entropy[p, m, w : w + 5].mean()) for m in own]) for w in range(0, 20, 5)]
        np.testing.assert_allclose(found.curve[p], slow)
    # without a horizon: the one at which most tokens are in the cohort
    sizes = {}
    for w in range(2, lengths.max() // 5 + 1):
        there = lengths >= 5 * w
        there &= (there.sum(1) >= 2)[:, None]
        if there.any(1).sum() >= 5:
            sizes[5 * w] = there.sum() * 5 * w
    assert cohort_of(profile, 5, range(9)).tokens == max(sizes, key=sizes.get)


def test_fewer_than_five_prompts_or_two_windows_are_no_cohort():
    rng = np.random.default_rng(2)
    profile = world(6, 5, np.full((6, 5), 20), lambda p, t: 1.0, rng)
    assert cohort_of(profile, 5, range(6)).tokens == 20
    assert cohort_of(profile, 5, [0, 1, 2, 3, 3, 3]).tokens == 0  # the same prompt twice is one
    assert cohort_of(profile, 15, range(6)).tokens == 0 and cohort_of(profile, 5, range(6), tokens=25).tokens == 0
    empty = cohort_of(profile, 5, range(6), tokens=9)
    course = course_of(empty, 5, range(6), rng)
    assert empty.curve.shape == (6, 0) and np.isnan(course.p)
    assert words_of(None, None, None) == words_of(course.slope.value, course.p, course.p_order)
    one = world(6, 1, np.full((6, 1), 20), lambda p, t: 1.0, rng)
    assert cohort_of(one, 5, range(6)).tokens == 0  # one sample of a prompt is too few to say how long it goes


def said_of(entropy_at, seed, P=12):
    rng = np.random.default_rng(seed)
    profile = world(P, 6, np.full((P, 6), 40), entropy_at, rng)
    course = course_of(cohort_of(profile, 5, range(P)), 5, range(P), rng)
    return words_of(course.slope.value, course.p, course.p_order), course


def test_a_course_is_named_only_where_it_is_told_from_its_nulls():
    said, course = said_of(lambda p, t: 2.0 - 0.03 * t, 0)
    assert said == "falls" and course.slope.value == pytest.approx(-0.3, abs=0.02)
    assert course.slope.low < -0.3 + 0.03 and course.slope.high < 0 and course.slope.n == 12
    assert said_of(lambda p, t: 0.5 + 0.03 * t, 0)[0] == "rises"
    # up and down in the same way in every prompt: a slope that is told from zero, and no direction
    jagged = [1.2, 0.6, 1.9, 1.8, 1.3, 1.85, 1.35, 1.5]
    said, course = said_of(lambda p, t: jagged[t // 5], 0)
    assert course.p < 1e-4 and said == "—, up and down without a direction"
    # three windows fall in one order of six
    rng = np.random.default_rng(0)
    profile = world(12, 6, np.full((12, 6), 15), lambda p, t: 2.0 - 0.03 * t, rng)
    course = course_of(cohort_of(profile, 5, range(12)), 5, range(12), rng)
    assert words_of(course.slope.value, course.p, course.p_order) == "—, too few windows to tell a direction"


def test_prompts_that_go_either_way_are_seldom_named_a_course():
    """Slopes of any size, as often up as down: at most one in twenty is called a course."""
    rng, named = np.random.default_rng(3), 0
    for seed in range(120):
        slope = rng.normal(0, 0.02, 8)
        named += not said_of(lambda p, t, slope=slope: max(0.0, 1.5 + slope[p] * t), seed, P=8)[0].startswith("—")
    assert named <= 12  # 6 expected at most


def test_the_interval_of_the_slope_holds_the_truth_as_often_as_it_says():
    rng, held, runs = np.random.default_rng(4), 0, 400
    for _ in range(runs):
        slopes = -0.02 + 0.02 * rng.normal(size=7)
        curve = np.exp(1.5 + slopes[:, None] * np.arange(0, 40, 5) + 0.05 * rng.normal(size=(7, 8)))
        slope = course_of(Cohort(curve, 40, 7, 70), 5, range(7), rng).slope
        held += slope.low <= -0.2 <= slope.high
    assert 0.92 * runs <= held <= 0.98 * runs
