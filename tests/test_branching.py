"""The estimators equal what the definitions say, the official one equals a plain transcription of its description."""

import numpy as np
import pytest

from workbench.branching import Profile, enough, interval, log_bf, over_prompts, prefix_curve, resampled, window_curve


def profile(lengths, seed=0, switch=0.0):
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    N = lengths.max()
    alive = np.arange(N) < lengths[..., None]
    values = [np.where(alive, rng.gamma(2, 0.5, alive.shape), np.nan) for _ in range(2)]
    return Profile(lengths, values[0], -values[1], values[0] + switch, -values[1])


def official(entropies, logliks):
    """The description in the methods page, one sample and one position after another."""

    def condense(rows):
        limit = int(np.quantile([len(r) for r in rows], 0.95))
        out = []
        for i in range(limit):
            alive = [r[i] for r in rows if len(r) >= i + 1]
            if len(alive) <= 3:
                break
            out.append(np.mean(alive))
        return out

    entropy = np.cumsum(condense(entropies))
    loglik = condense([np.cumsum(r) / np.arange(1, len(r) + 1) for r in logliks])
    return entropy[-1] / len(entropy) if len(entropy) <= 50 else -loglik[-1]


@pytest.mark.parametrize("high", [12, 49, 51, 120])
def test_compat_equals_the_official_procedure_also_in_resamples(high):
    rng = np.random.default_rng(high)
    p = profile(rng.integers(1, high, (3, 50)), seed=high)
    rows = lambda x, i, members: [x[i, m, : p.lengths[i, m]] for m in members]  # noqa: E731
    counts = rng.multinomial(50, np.full(50, 1 / 50), size=4).astype(float)
    found = log_bf(p, "compat", counts=np.concatenate([np.ones((1, 50)), counts]))
    for i in range(3):
        for d in range(5):
            members = np.arange(50) if d == 0 else np.repeat(np.arange(50), counts[d - 1].astype(int))
            assert found[i, d] == pytest.approx(official(rows(p.entropy_top, i, members), rows(p.logprob_top, i, members)), abs=1e-9)
    curve = prefix_curve(p, "compat")
    for i in range(3):
        assert curve[i][np.isfinite(curve[i])][-1] == pytest.approx(found[i, 0])


def test_pooled_rates_weigh_tokens_or_samples():
    p = Profile(np.array([[1, 3]]), *(np.array([[[2.0, np.nan, np.nan], [1.0, 1.0, 1.0]]]) * s for s in (1, -1, 1, -1)))
    assert log_bf(p, "entropy")[0, 0] == pytest.approx(5 / 4)
    assert log_bf(p, "entropy", pool="samples")[0, 0] == pytest.approx(3 / 2)
    assert log_bf(p, "nll")[0, 0] == pytest.approx(5 / 4)
    np.testing.assert_allclose(prefix_curve(p, "entropy")[0], [3 / 2, 4 / 3, 5 / 4])
    np.testing.assert_allclose(prefix_curve(p, "nll", pool="samples")[0], [3 / 2, 3 / 2, 3 / 2])
    late = p.without_first(1)
    assert log_bf(late, "entropy")[0, 0] == pytest.approx(1.0) and late.lengths.tolist() == [[0, 2]]
    assert log_bf(late, "entropy", pool="samples")[0, 0] == pytest.approx(1.0)


def test_the_last_prefix_is_the_prompts_branching_factor():
    p = profile(np.random.default_rng(3).integers(1, 30, (4, 9)))
    for estimator in ("entropy", "nll"):
        for pool in ("tokens", "samples"):
            np.testing.assert_allclose(prefix_curve(p, estimator, pool=pool)[:, -1], log_bf(p, estimator, pool=pool)[:, 0])


def test_windows_average_the_samples_that_last_through_them():
    p = profile([[4, 4, 2]], seed=5)
    found = window_curve(p, 2, least=2)
    first = np.exp(p.entropy[0, :, :2].mean(1)).mean()
    second = np.exp(p.entropy[0, :2, 2:4].mean(1)).mean()
    np.testing.assert_allclose(found, [[first, second]])
    assert np.isnan(window_curve(p, 2, least=3)[0, 1])
    assert np.isnan(window_curve(p, 3)[0, 1])


def test_intervals_cover_the_truth_and_shrink_with_samples():
    truth, covered = np.exp(1.0), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.gamma(2, 0.5, (1, 40, 20))
        p = Profile(np.full((1, 40), 20), values, -values, values, -values)
        low, high = interval(resampled(p, "entropy", pool="tokens", rng=rng, draws=300)[0])
        covered += low <= truth <= high
    assert covered >= 50
    rows = enough(p, "entropy", pool="tokens", rng=rng)
    assert [r["samples"] for r in rows] == [1, 2, 3, 5, 10, 20, 30, 40]
    assert rows[0]["sd"] > 3 * rows[-1]["sd"] > 0
    np.testing.assert_allclose(rows[0]["sd"] / rows[-1]["sd"], np.sqrt(40), rtol=0.35)


def test_resampling_prompts_takes_each_draw_from_the_prompts_it_chose():
    draws = np.array([[1.0, 2.0], [10.0, 20.0]])
    np.testing.assert_allclose(over_prompts(draws, np.array([[0, 1], [1, 1]])), [5.5, 20.0])


def test_too_few_survivors_give_no_value():
    p = profile([[5, 5, 5]])
    assert np.isnan(log_bf(p, "compat")).all()
    assert interval(np.array([np.nan])) != interval(np.array([1.0]))
