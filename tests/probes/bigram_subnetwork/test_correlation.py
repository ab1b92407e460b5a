"""Correlations over texts: r is Pearson's, intervals are of texts that are resampled whole."""

import numpy as np
import pytest
from scipy.stats import pearsonr

from probes.bigram_subnetwork.correlation import correlations, finite, mean_over_draws, pearson
from probes.bigram_subnetwork.stability import is_stable


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    text = np.repeat(np.arange(12), rng.integers(3, 30, 12))
    known = rng.gamma(2, 2, len(text)) + 0.3 * text
    said = [known + rng.normal(0, noise, len(text)) for noise in (0.5, 3, 3)]
    return said, known, text


def test_r_and_its_interval_are_those_of_the_slow_way(drawn):
    said, known, text = drawn
    found = correlations(said, known, text, draws=300, rng=np.random.default_rng(1))
    np.testing.assert_allclose(found.value, [pearsonr(one, known).statistic for one in said], atol=1e-12)
    rng, slow = np.random.default_rng(1), []
    for picks in rng.integers(0, 12, (300, 12)):
        rows = np.concatenate([np.flatnonzero(text == pick) for pick in picks])
        slow.append([pearsonr(one[rows], known[rows]).statistic for one in said])
    np.testing.assert_allclose(found.drawn, slow, atol=1e-9)
    low, high = found.interval(found.drawn[:, 0])
    assert (low, high) == pytest.approx(np.percentile(np.array(slow)[:, 0], [2.5, 97.5]), abs=1e-9)


def test_below_five_texts_there_is_no_interval(drawn):
    said, known, text = drawn
    few = text < 4
    found = correlations([said[0][few]], known[few], text[few], draws=200, rng=np.random.default_rng(0))
    assert np.isfinite(found.value[0]) and np.isnan(found.interval(found.drawn[:, 0])).all()


def test_draws_of_a_random_choice_are_part_of_the_interval_of_their_mean():
    rng = np.random.default_rng(0)
    text = np.repeat(np.arange(40), 30)
    known = rng.normal(0, 1, len(text))
    said = [known + rng.normal(0, noise, len(text)) for noise in (0.1, 0.3, 1, 3, 10)]
    found = correlations(said, known, text, draws=500, rng=rng)
    both = np.subtract(*found.interval(mean_over_draws(found, range(5), rng))[::-1])
    texts_alone = np.subtract(*found.interval(found.drawn.mean(1))[::-1])
    assert both > 5 * texts_alone


def test_what_says_the_same_of_every_token_has_no_correlation_and_what_is_known_must_vary():
    known = np.arange(20.0)
    assert pearson(np.full(20, 2.5) + 1e-8 * known, known) == 0
    assert np.isnan(pearson(known, np.ones(20)))


def test_infinite_surprisals_take_the_largest_finite_one():
    assert finite(np.array([1.0, np.inf, 3.0])).tolist() == [1, 3, 3]


def test_with_a_surprisal_that_is_nan_there_is_no_correlation(drawn):
    said, known, text = drawn
    broken = said[0].copy()
    broken[3] = np.nan
    found = correlations([said[0], broken], known, text, draws=200, rng=np.random.default_rng(0))
    assert np.isnan(found.value).tolist() == [False, True]
    assert np.isnan(found.interval(found.drawn[:, 1])).all()


def test_coverage_of_the_interval_by_simulation():
    """r of texts with differences of their own, against what very many texts give."""
    rng, truth, held = np.random.default_rng(5), None, 0

    def texts(n):
        shift = rng.normal(0, 1, n)[:, None]
        known = shift + rng.normal(0, 1, (n, 20))
        return (known + 0.5 * rng.normal(0, 1, (n, 1)) + rng.normal(0, 1, (n, 20))).ravel(), known.ravel()

    truth = pearson(*texts(20_000))
    for _ in range(150):
        said, known = texts(30)
        found = correlations([said], known, np.repeat(np.arange(30), 20), draws=300, rng=rng)
        low, high = found.interval(found.drawn[:, 0])
        held += low <= truth <= high
    assert 0.88 <= held / 150 <= 1


def test_a_spike_that_does_not_come_back_is_unstable():
    calm = 3 * np.exp(-np.arange(300) / 50) + 1
    assert is_stable(calm)
    spike = calm.copy()
    spike[150:160] += 2
    assert is_stable(spike)  # it came back
    spike[150:] += 2
    assert not is_stable(spike)
    late = calm.copy()
    late[-3] += 2  # too late to come back in time
    assert not is_stable(late)
    assert not is_stable(np.array([1.0, np.nan]))
