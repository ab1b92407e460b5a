"""Intervals of a similarity to the mean of a few texts: how often they hold what other texts give on average."""

import numpy as np
import pytest

from workbench.stats.jackknife import deletions, half_sample_interval, half_samples, jackknife_interval

WIDTH = 60


def sparse_texts(rng, n):
    """Mean feature vectors [n, WIDTH] of texts that each have features of their own mixture and length."""
    common = np.concatenate([np.full(8, 6.0), np.full(12, 1.5), np.full(WIDTH - 20, 0.2)])
    mixture = rng.gamma(0.6, size=(n, WIDTH)) * common
    mixture /= mixture.sum(1, keepdims=True)
    length = rng.integers(5, 40, n)
    counts = rng.multinomial(length * 4, mixture)
    return counts * rng.gamma(30.0, 0.1, counts.shape) / length[:, None]


def jaccard(z, p):
    return np.minimum(z, p).sum(-1) / np.maximum(z, p).sum(-1)


@pytest.fixture(scope="module")
def world():
    """Many texts of a target, and six rows of a pool: three like them, three with their features exchanged."""
    rng = np.random.default_rng(0)
    some = sparse_texts(rng, 6)
    some[3:] = rng.permuted(some[3:], axis=1)
    return sparse_texts(rng, 20_000), some


@pytest.mark.parametrize("n", [5, 8, 12, 30])
def test_intervals_hold_the_score_that_other_texts_give_on_average(world, n):
    texts, pool = world
    rng, alone = np.random.default_rng(n), deletions(np.zeros(n), np.random.default_rng(0))
    means = texts[rng.integers(0, len(texts), (3000, n))].mean(1)
    truth = np.array([jaccard(z, means).mean() for z in pool])
    held = np.zeros((500, len(pool)), bool)
    for one in held:
        drawn = texts[rng.integers(0, len(texts), n)]
        value = jaccard(pool, drawn.mean(0))
        low, high = jackknife_interval(
            value, jaccard(pool[:, None], alone.kept @ drawn / alone.kept.sum(1, keepdims=True)), alone
        )
        assert ((low < value) & (value < high)).all()
        one[:] = (low <= truth) & (truth <= high)
    assert 0.92 <= held.mean() <= 0.98
    assert 0.89 <= held.mean(0).min()


def test_the_bootstrap_lies_below_the_score_that_it_is_of(world):
    """Why the interval is what it is: a resample of sparse vectors is sparser than they are."""
    texts, pool = world
    rng, above = np.random.default_rng(1), []
    for _ in range(50):
        drawn = texts[rng.integers(0, len(texts), 8)]
        again = rng.multinomial(8, np.full(8, 1 / 8), 100) @ drawn / 8
        above.append(jaccard(pool, drawn.mean(0)) > np.median(jaccard(pool[:, None], again), axis=1))
    assert np.mean(above) > 0.8


def test_groups_of_texts_left_out_together_hold_the_truth_too(world):
    texts, pool = world
    rng = np.random.default_rng(2)
    means = texts[rng.integers(0, len(texts), (2000, 43))].mean(1)
    truth, held = np.array([jaccard(z, means).mean() for z in pool]), []
    for _ in range(300):
        drawn = texts[rng.integers(0, len(texts), 43)]
        some = deletions(np.zeros(43), rng, most=10)
        assert some.n == 10 and sorted(np.bincount(some.group)) == [4] * 7 + [5] * 3
        left = some.kept @ drawn / some.kept.sum(1, keepdims=True)
        low, high = jackknife_interval(jaccard(pool, drawn.mean(0)), jaccard(pool[:, None], left), some)
        held.append((low <= truth) & (truth <= high))
    assert 0.92 <= np.mean(held) <= 0.98


def test_of_a_mean_it_is_students_t():
    from workbench.stats.clusters import cluster_mean

    x = np.random.default_rng(3).normal(size=9)
    alone = deletions(np.zeros(9), np.random.default_rng(0))
    low, high = jackknife_interval(np.array([x.mean()]), ((x.sum() - x) / 8)[None], alone)
    known = cluster_mean(x, np.arange(9))
    assert (low[0], high[0]) == pytest.approx((known.low, known.high))


def test_there_is_no_interval_of_four_texts_nor_of_a_number_that_hangs_on_none():
    rng = np.random.default_rng(4)
    for n, there in ((1, False), (4, False), (5, True)):
        found = deletions(np.zeros(n), rng)
        low, _ = jackknife_interval(np.zeros(1), rng.normal(size=(1, found.n)), found)
        assert np.isfinite(low).all() == there
    alone = deletions(np.zeros(8), rng)
    assert np.isnan(jackknife_interval(np.zeros(2), np.zeros((2, 8)), alone)).all()


def test_the_best_of_several_means_has_an_interval_where_its_own_texts_are_five():
    found = deletions(np.array([0, 0, 0, 0, 0, 1, 1, 2]), np.random.default_rng(5))
    assert found.n == 7 and found.group[-1] == -1 and found.stratum.tolist() == [0] * 5 + [1] * 2
    without = np.random.default_rng(6).normal(size=(3, 7))
    low, _ = jackknife_interval(np.zeros(3), without, found, used=np.array([0, 1, 2]))
    assert np.isfinite(low).tolist() == [True, False, False]


@pytest.mark.parametrize("n", [5, 8, 12, 30])
def test_random_halves_hold_a_mean_as_often_as_students_t_does(n):
    rng = np.random.default_rng(n)
    held = []
    for _ in range(400):
        x = rng.exponential(size=(n, 3))
        halves = x[half_samples(n, 100, rng)].mean(1).T
        low, high = half_sample_interval(x.mean(0), halves, n)
        held.append((low <= 1) & (1 <= high))
    assert 0.84 <= np.mean(held) <= 0.98


def test_halves_are_of_different_texts_and_of_four_there_is_no_interval():
    some = half_samples(11, 50, np.random.default_rng(0))
    assert some.shape == (50, 5) and all(len(set(row)) == 5 for row in some.tolist()) and len(np.unique(some)) == 11
    assert np.isnan(half_sample_interval(np.ones(1), np.arange(50.0)[None], 4)).all()
    assert np.isnan(half_sample_interval(np.ones(1), np.ones((1, 50)), 12)).all()
