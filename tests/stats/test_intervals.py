"""Intervals and correlations against scipy, closed forms and the obvious loop."""

import numpy as np
import pytest
from scipy import stats

from workbench.core.errors import InputError
from workbench.stats import intervals as st


def rng(seed=0):
    return np.random.default_rng(seed)


def test_bootstrap_mean_matches_the_loop_over_the_same_resamples():
    values = rng(1).normal(size=(17, 3))
    low, high = st.bootstrap_mean(values, draws=200, rng=rng(5))
    counts = np.concatenate(list(st.resamples(17, 200, int(rng(5).integers(0, 2**63)))))
    means = [np.repeat(values, row.astype(int), axis=0).mean(0) for row in counts]
    np.testing.assert_allclose(low, np.percentile(means, 2.5, axis=0), atol=1e-12)
    np.testing.assert_allclose(high, np.percentile(means, 97.5, axis=0), atol=1e-12)


def test_chunks_do_not_change_an_interval(monkeypatch):
    values = rng(1).normal(size=(40, 7))
    whole = st.bootstrap_mean(values, draws=300, rng=rng(2))
    rho = st.spearman(values[:, 0], values[:, 1], draws=300, rng=rng(2))
    monkeypatch.setattr(st, "CHUNK_ELEMENTS", 97)
    np.testing.assert_allclose(st.bootstrap_mean(values, draws=300, rng=rng(2)), whole, rtol=1e-12, atol=1e-15)
    assert st.spearman(values[:, 0], values[:, 1], draws=300, rng=rng(2)).low == pytest.approx(rho.low, abs=1e-12)


def test_whole_clusters_are_resampled_and_every_resample_has_as_many_as_there_are():
    clusters = np.array(["b", "a", "b", "c", "a", "b"])
    counts = st.resample_counts(6, 500, rng(3), clusters=clusters)
    assert (counts[:, [0, 0, 1]] == counts[:, [2, 5, 4]]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()
    assert set(counts[:, 3]) == {0, 1, 2, 3}


def test_both_ways_to_draw_counts_have_the_same_distribution():
    ways = [draw(4, 40_000, rng(2)) for draw in (st.resample_counts, st.multinomial_counts)]
    for counts in ways:
        assert counts.shape == (40_000, 4) and counts.dtype == np.float64 and (counts.sum(1) == 4).all()
    shares = [[(counts == k).mean(0) for k in range(5)] for counts in ways]
    np.testing.assert_allclose(*shares, atol=0.012)


def test_ends_are_values_that_were_drawn_where_that_is_asked():
    values = np.array([0.0, 1.0, 2.0, 10.0])
    assert st.percentiles(values, 0.5) == (0.75, 4.0)
    assert st.percentiles(values, 0.5, of_the_values=True) == (1.0, 2.0)


def test_bootstrap_mean_agrees_with_the_normal_interval_and_covers_the_truth():
    covered, trials = 0, 200
    for seed in range(trials):
        values = rng(seed).normal(3.0, 2.0, size=80)
        low, high = st.bootstrap_mean(values, draws=400, rng=rng(seed + 1000))
        covered += low <= 3.0 <= high
    assert 0.89 <= covered / trials <= 0.985
    values = rng(7).normal(3.0, 2.0, size=2000)
    low, high = st.bootstrap_mean(values, draws=4000, rng=rng(8))
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(2000), rel=0.06)


def test_cluster_bootstrap_is_wider_when_items_of_a_cluster_agree():
    effect = rng(1).normal(size=30)
    clusters = np.repeat(np.arange(30), 20)
    values = effect[clusters] + 0.1 * rng(2).normal(size=600)
    low, high = st.cluster_bootstrap_mean(values, clusters, draws=800, rng=rng(3))
    naive_low, naive_high = st.bootstrap_mean(values, draws=800, rng=rng(3))
    assert high - low > 3 * (naive_high - naive_low)
    one_each = st.cluster_bootstrap_mean(values, np.arange(600), draws=800, rng=rng(3))
    assert one_each == pytest.approx((naive_low, naive_high), abs=1e-12)


def test_clusters_weigh_as_they_are_large():
    """One item of 0 in one cluster, nine of 1 in the other: the resamples are 0, 0.9 (every other one) and 1."""
    values, clusters = np.array([0.0] + [1.0] * 9), np.array([7] + [3] * 9)
    assert st.cluster_bootstrap_mean(values, clusters, level=0.4, rng=rng(1)) == pytest.approx((0.9, 0.9))
    drawn = st.clustered_draws(values[:, None], clusters, draws=400, rng=rng(2))
    assert set(drawn.ravel().round(12)) == {0.0, 0.9, 1.0} and 0.4 < (drawn == 0.9).mean() < 0.6


def test_a_correlation_that_most_resamples_do_not_have_gets_no_interval():
    """Where either variable has one odd value among equal ones, two resamples of three do not vary in both."""
    x, y = np.eye(12)[0], np.eye(12)[1]
    for found in (st.pearson(x, y, rng=rng(3)), st.spearman(x, y, rng=rng(3))):
        assert found.value == pytest.approx(-1 / 11) and np.isnan(found.low) and np.isnan(found.high)
    both = st.pearson(x, x, rng=rng(3))  # varies in two of three resamples
    assert (both.value, both.low, both.high) == pytest.approx((1.0, 1.0, 1.0))


def test_clustered_draws_are_those_of_the_cluster_bootstrap_column_by_column():
    values, clusters = rng(1).normal(size=(40, 3)), np.repeat(np.arange(8), 5)
    drawn = st.clustered_draws(values, clusters, draws=400, rng=rng(2))
    assert drawn.shape == (400, 3)
    for column in range(3):
        low, high = np.quantile(drawn[:, column], [0.025, 0.975])
        assert (low, high) == pytest.approx(
            st.cluster_bootstrap_mean(values[:, column], clusters, draws=400, rng=rng(2)), abs=1e-12
        )


@pytest.mark.parametrize("k,n", [(0, 10), (1, 10), (5, 10), (10, 10), (586, 1024), (3, 7)])
def test_wilson_equals_scipy(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert st.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_on_arrays_and_on_no_trials():
    low, high = st.wilson([0, 3, 0], [5, 5, 0])
    assert low[0] == 0 and np.isnan(low[2]) and np.isnan(high[2])
    assert (low[1], high[1]) == pytest.approx(st.wilson(3, 5))
    with pytest.raises(InputError):
        st.wilson(6, 5)


def test_rate_difference_equals_newcombes_published_example():
    # Newcombe 1998, table II: 56/70 - 48/80, method 10: 0.0524 to 0.3339
    estimate = st.rate_difference(56, 70, 48, 80)
    assert estimate.value == pytest.approx(0.2)
    assert (estimate.low, estimate.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert np.isnan(st.rate_difference(0, 0, 1, 2).value)


def test_correlations_equal_scipy_with_and_without_ties():
    x = rng(1).integers(0, 5, size=60).astype(float)
    y = x + rng(2).integers(0, 4, size=60)
    assert st.pearson(x, y, rng=rng()).value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert st.spearman(x, y, rng=rng()).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("name,reference", [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_correlation_intervals_equal_the_loop_over_the_same_resamples(name, reference):
    x = rng(1).integers(0, 6, size=25).astype(float)
    y = x + rng(2).normal(size=25)
    estimate = getattr(st, name)(x, y, draws=150, rng=rng(3))
    counts = np.concatenate(list(st.resamples(25, 150, int(rng(3).integers(0, 2**63)))))
    values = [reference(np.repeat(x, row.astype(int)), np.repeat(y, row.astype(int))).statistic for row in counts]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-10)


def test_nothing_varies_or_something_is_missing_gives_nan_not_a_number():
    x = np.arange(10.0)
    assert np.isnan(st.pearson(x, np.full(10, 0.1), rng=rng()).value)
    assert np.isnan(st.spearman(np.full(10, 0.1), x, rng=rng()).low)
    assert np.isnan(st.pearson(x, np.where(x == 3, np.nan, x), rng=rng()).value)
    low, high = st.bootstrap_mean(np.array([[1.0, 2.0], [np.nan, 4.0]]), rng=rng())
    assert np.isnan(low[0]) and np.isnan(high[0]) and low[1] == 2 and high[1] == 4


def test_too_few_items_are_refused_and_one_item_has_no_width():
    with pytest.raises(InputError, match="at least 1"):
        st.bootstrap_mean(np.array([]), rng=rng())
    with pytest.raises(InputError, match="at least 2"):
        st.pearson([1.0], [1.0], rng=rng())
    assert st.bootstrap_mean(np.array([4.0]), rng=rng()) == (4.0, 4.0)
    with pytest.raises(InputError, match="between 0 and 1"):
        st.bootstrap_mean(np.arange(4.0), level=95, rng=rng())
