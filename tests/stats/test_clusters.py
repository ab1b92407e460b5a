"""Intervals of clustered rows: how often they hold the truth, and what they say where there is little to say."""

import numpy as np
import pytest
from scipy import stats

from workbench.core.errors import InputError
from workbench.stats import clusters as c
from workbench.stats.intervals import cluster_bootstrap_mean, wilson

TIMES = 4000  # simulated experiments, one a column


def names_of(sizes):
    return c.clusters_of(np.repeat(np.arange(len(sizes)), sizes))


def held(ends, truth) -> float:
    low, high = ends
    return float(np.mean((low <= truth + 1e-12) & (truth <= high + 1e-12)))


def normal_rows(found, rng, *, between=1.0, times=TIMES):
    return between * rng.normal(size=(found.n, times))[found.index] + rng.normal(size=(found.rows, times))


def answers(found, rng, share, alike, *, times=TIMES):
    """0 and 1 of that share; `alike`: correlation of two rows of a cluster (beta-binomial)."""
    a = (1 - alike) / alike
    own = rng.beta(share * a, (1 - share) * a, size=(found.n, times))[found.index]
    return (rng.random((found.rows, times)) < own).astype(float)


@pytest.mark.parametrize("clusters", [5, 8, 12, 30])
@pytest.mark.parametrize("rows", [1, 4, 10])
def test_intervals_of_means_hold_the_truth(clusters, rows):
    found, rng = names_of([rows] * clusters), np.random.default_rng([clusters, rows])
    assert 0.935 <= held(c.mean_interval(normal_rows(found, rng), found), 0.0) <= 0.965


@pytest.mark.parametrize("clusters", [5, 8, 12, 30])
@pytest.mark.parametrize("rows", [1, 4, 10])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_intervals_of_shares_hold_the_truth(clusters, rows, share):
    found, rng = names_of([rows] * clusters), np.random.default_rng([clusters, rows, round(10 * share)])
    most = 0.98 if clusters > 5 else 0.99  # of five clusters shares come in steps, and so does coverage
    for alike in (0.05, 0.3):
        assert 0.92 <= held(c.share_interval(answers(found, rng, share, alike), found), share) <= most


def test_clusters_of_unequal_size_are_held_too():
    found, rng = names_of([1, 2, 2, 3, 4, 5, 6, 8, 9, 12]), np.random.default_rng(1)
    assert 0.92 <= held(c.mean_interval(normal_rows(found, rng), found), 0.0) <= 0.98
    assert 0.92 <= held(c.share_interval(answers(found, rng, 0.6, 0.2), found), 0.6) <= 0.98


def test_the_percentile_bootstrap_does_not_hold_with_few_clusters():
    """Why the rules are what they are: the same simulation, with what was used before."""
    found, rng = names_of([4] * 5), np.random.default_rng(0)
    rows = normal_rows(found, rng, times=400)
    ends = [cluster_bootstrap_mean(column, found.index, draws=400, rng=rng) for column in rows.T]
    assert held(np.array(ends).T, 0.0) < 0.9


def test_with_one_row_a_cluster_they_are_students_and_wilsons():
    rng = np.random.default_rng(2)
    values, rows = rng.normal(size=9), np.arange(9)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    found = c.cluster_mean(values, rows)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high)) and (found.n, found.rows) == (9, 9)
    share = c.cluster_share(np.array([1, 1, 1, 0, 1, 0, 1]), np.arange(7))
    assert (share.low, share.high) == pytest.approx(wilson(5, 7))


def test_of_clusters_of_one_size_only_their_means_count():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(6, 5))
    expected = stats.ttest_1samp(values.mean(1), 0).confidence_interval()
    found = c.cluster_mean(values.ravel(), np.repeat(np.arange(6), 5))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high)) and (found.n, found.rows) == (6, 30)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_of_none_or_all_has_an_interval_with_a_width_that_counts_clusters_not_rows(value):
    few = c.cluster_share(np.full(600, value), np.repeat(np.arange(6), 100))
    assert (few.value, few.n, few.rows) == (value, 6, 600)
    assert (few.low, few.high)[int(value)] == value and few.high - few.low > 0.3
    of_six = c._score_interval(np.array(value), np.array(6.0), np.array(c.student_quantile(0.975, 5)))
    assert [few.low, few.high] == pytest.approx([float(end) for end in of_six])


@pytest.mark.parametrize("size", [1e-3, 1e-12, 1e-40])
def test_a_very_small_share_has_no_end_below_zero_and_lies_within_its_ends(size):
    values = size * (1 + np.arange(10.0))
    low, high = c.share_interval(values, names_of([1] * 10))
    assert 0 < low < values.mean() < high
    assert low == pytest.approx(values.mean() ** 2 / high, rel=0.01)  # the two ends of Wilson's multiply to this


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_below_five_clusters_there_is_no_interval(clusters):
    names = np.repeat(np.arange(clusters), 10)
    values = np.random.default_rng(0).random(10 * clusters)
    for found in (c.cluster_mean(values, names), c.cluster_share(values, names)):
        assert found.value == pytest.approx(values.mean()) and np.isnan([found.low, found.high]).all()
    assert np.isnan(c.p_of_zero(values, c.clusters_of(names)))
    assert np.isnan(c.crossed_interval(np.stack([values, values]), c.clusters_of(names))).all()


def test_draws_that_differ_are_part_of_the_interval():
    """Five random sets of heads, of which one breaks the model: 600 rows say little of what random sets do."""
    rows = c.clusters_of(np.repeat(np.arange(30), 20))
    rates = np.array([0.35, 1, 1, 1, 1])
    values = (np.random.default_rng(0).random((5, 600)) < rates[:, None]).astype(float)
    low, high = c.crossed_interval(values, rows)
    alone = c.share_interval(values.mean(0), rows)
    assert alone[1] - alone[0] < 0.05 and high - low > 0.4 and low < values.mean() < high


@pytest.mark.parametrize("of_draws", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("draws", "clusters"), [(5, 12), (20, 12), (20, 5)])
def test_intervals_over_draws_and_clusters_hold_the_truth(draws, clusters, of_draws):
    found, rng = names_of([3] * clusters), np.random.default_rng([draws, clusters, round(10 * of_draws)])
    inside = 0
    for _ in range(500):
        values = of_draws * rng.normal(size=(draws, 1)) + 0.5 * rng.normal(size=found.n)[found.index]
        inside += held(c.crossed_interval(values + rng.normal(size=(draws, found.rows)), found), 0.0)
    assert 0.92 <= inside / 500 <= 0.99


def test_p_is_even_under_the_null_and_students_own():
    found, rng = names_of([3] * 6), np.random.default_rng(5)
    values = normal_rows(found, rng)
    p = c.p_of_zero(values, found)
    assert 0.04 < (p < 0.05).mean() < 0.06 and 0.45 < np.median(p) < 0.55
    expected = stats.ttest_1samp(values[:, 0].reshape(6, 3).mean(1), 0).pvalue
    assert p[0] == pytest.approx(expected) and c.p_of_zero(np.zeros((18, 2)), found).tolist() == [1, 1]


def test_the_false_discovery_rate_is_kept_over_many_heads():
    """1,024 heads of which 24 have an effect: below 0.05 a twentieth of the finds are wrong, at most."""
    found, rng = names_of([1] * 12), np.random.default_rng(6)
    wrong, power = [], []
    for _ in range(60):
        values = rng.normal(size=(12, 1024))
        values[:, :24] += 3
        below = c.false_discovery(c.p_of_zero(values, found)) < 0.05
        wrong.append(below[24:].sum() / max(below.sum(), 1))
        power.append(below[:24].mean())
    assert np.mean(wrong) < 0.065 and np.mean(power) > 0.9


def test_adjusted_p_is_benjamini_and_hochbergs_by_hand():
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, 0.5]])
    flat = sorted(p[~np.isnan(p)])
    expected = {x: min(flat[j] * len(flat) / (j + 1) for j in range(i, len(flat))) for i, x in enumerate(flat)}
    found = c.false_discovery(p)
    assert np.isnan(found[0, 2])
    assert all(found[i] == pytest.approx(expected[p[i]]) for i in np.ndindex(p.shape) if not np.isnan(p[i]))
    assert (c.false_discovery(p, dependent=True) >= found)[~np.isnan(p)].all()


def test_bad_input_is_one_sentence():
    with pytest.raises(InputError, match="at least 1"):
        c.clusters_of(np.array([]))
    with pytest.raises(InputError, match="between 0 and 1"):
        c.cluster_share(np.array([0.5, 1.2, 0, 0, 0]), np.arange(5))
    with pytest.raises(InputError, match="every value needs one"):
        c.mean_interval(np.zeros(4), c.clusters_of(np.arange(5)))
