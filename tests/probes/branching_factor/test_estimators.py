"""The estimators equal what the definitions say, the official one equals a plain transcription of its description."""

import numpy as np
import pytest

from probes.branching_factor.estimators import (
    Profile,
    bounds,
    enough,
    enough_samples,
    interval,
    log_bf,
    prefix_curve,
    resampled,
    window_curve,
)


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
            assert found[i, d] == pytest.approx(
                official(rows(p.entropy_top, i, members), rows(p.logprob_top, i, members)), abs=1e-9
            )
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
            np.testing.assert_allclose(
                prefix_curve(p, estimator, pool=pool)[:, -1], log_bf(p, estimator, pool=pool)[:, 0]
            )


def test_windows_average_the_samples_that_last_through_them():
    p = profile([[4, 4, 2]], seed=5)
    found = window_curve(p, 2, least=2)
    first = np.exp(p.entropy[0, :, :2].mean(1)).mean()
    second = np.exp(p.entropy[0, :2, 2:4].mean(1)).mean()
    np.testing.assert_allclose(found, [[first, second]])
    assert np.isnan(window_curve(p, 2, least=3)[0, 1])
    # the last window of 3 is one token wide, as the longest samples are 4 long
    np.testing.assert_allclose(
        window_curve(p, 3, least=2), [[np.exp(p.entropy[0, :2, :3].mean(1)).mean(), np.exp(p.entropy[0, :2, 3]).mean()]]
    )


def test_percentile_intervals_cover_the_truth():
    truth, covered = np.exp(1.0), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.gamma(2, 0.5, (1, 40, 20))
        p = Profile(np.full((1, 40), 20), values, -values, values, -values)
        low, high = interval(resampled(p, "entropy", pool="tokens", rng=rng, draws=300)[0])
        covered += low <= truth <= high
    assert covered >= 50


def jackknifed(sums, lengths):
    """log BF of one prompt, one sample left out after another: the rate freed of its bias, less half its variance."""
    M = len(sums)
    rate = sums.sum() / lengths.sum()
    without = np.array([(sums.sum() - sums[m]) / (lengths.sum() - lengths[m]) for m in range(M)])
    variance = (M - 1) / M * ((without - without.mean()) ** 2).sum()
    return max(M * rate - (M - 1) * without.mean() - variance / 2, 0)


def test_the_correction_leaves_one_sample_out_after_another():
    p = profile(np.random.default_rng(2).integers(1, 30, (4, 9)))
    found = log_bf(p, "entropy", bias="jackknife")[:, 0]
    np.testing.assert_allclose(found, [jackknifed(np.nansum(p.entropy[i], -1), p.lengths[i]) for i in range(4)])
    alike = log_bf(p, "nll", pool="samples", bias="jackknife")[:, 0]
    np.testing.assert_allclose(alike, [jackknifed(np.nanmean(-p.logprob[i], -1), np.ones(9)) for i in range(4)])
    # a resample is corrected as the samples it holds would be, repeats included
    counts = np.array([[2, 0, 1, 1, 3, 0, 1, 0, 1.0]])
    members = np.repeat(np.arange(9), counts[0].astype(int))
    again = log_bf(p, "entropy", bias="jackknife", counts=counts)[:, 0]
    np.testing.assert_allclose(
        again, [jackknifed(np.nansum(p.entropy[i], -1)[members], p.lengths[i][members]) for i in range(4)]
    )
    np.testing.assert_allclose(prefix_curve(p, "entropy", bias="jackknife")[:, -1], found)
    cut = Profile(
        *(
            v[:, :, :4] if v.ndim == 3 else np.minimum(v, 4)
            for v in (p.lengths, p.entropy, p.logprob, p.entropy_top, p.logprob_top)
        )
    )
    np.testing.assert_allclose(
        prefix_curve(p, "entropy", bias="jackknife")[:, 3], log_bf(cut, "entropy", bias="jackknife")[:, 0]
    )
    # nothing to correct: one sample, the official estimator, a rate that does not vary
    one = profile([[7]])
    assert log_bf(one, "entropy", bias="jackknife") == log_bf(one, "entropy")
    many = profile(np.full((1, 6), 20))
    np.testing.assert_array_equal(log_bf(many, "compat", bias="jackknife"), log_bf(many, "compat"))
    flat = Profile(np.full((1, 5), 3), *(np.full((1, 5, 3), v) for v in (0.7, -0.7, 0.7, -0.7)))
    assert log_bf(flat, "entropy", bias="jackknife")[0, 0] == pytest.approx(0.7)


def survivors(P, M, rng):
    """One sample in five goes on for 80 tokens without a choice, the others end after 10 tokens of four choices
    (methods page, 7c)."""
    long = rng.random((P, M)) < 0.2
    lengths = np.where(long, 81, 11)
    first = np.arange(81) == 0
    entropy = np.where(first, np.log(5), np.where(long[..., None], 0.0, np.log(4) * (np.arange(81) < 10)))
    entropy = np.where(np.arange(81) < lengths[..., None], entropy, np.nan)
    return Profile(lengths, entropy, -entropy, entropy, -entropy), np.exp(
        (np.log(5) + 0.8 * 9 * np.log(4)) / (0.2 * 81 + 0.8 * 11)
    )


def zipf_draws(P, M, rng):
    """Five independent draws from Zipf over 32 tokens: what the likelihood estimator sees."""
    p = 1 / np.arange(1, 33)
    p /= p.sum()
    logprob = np.log(p[rng.choice(32, (P, M, 5), p=p)])
    return Profile(np.full((P, M), 5), -logprob, logprob, -logprob, logprob), np.exp(-(p * np.log(p)).sum())


def test_how_many_samples_are_enough_knows_the_bias_of_few():
    rng = np.random.default_rng(5)
    p, truth = survivors(40, 50, rng)
    plain = enough(p, "entropy", pool="tokens", bias="plain", rng=rng)
    assert [r["samples"] for r in plain] == [1, 2, 3, 5, 10, 20, 30, 50]
    for row in plain[:-1]:  # what runs with so many samples give
        fresh = np.array(
            [np.exp(log_bf(survivors(40, row["samples"], rng)[0], "entropy")[:, 0]).mean() for _ in range(60)]
        )
        assert row["bf"] == pytest.approx(fresh.mean(), rel=0.05)
        assert row["sd"] == pytest.approx(fresh.std(), rel=0.5)
        error = np.sqrt(((fresh - truth) ** 2).mean()) / truth
        assert row["relative_error"] == pytest.approx(error, rel=0.35, abs=0.02)
    assert plain[4]["relative_error"] > 0.15  # the scatter alone would be 5 %
    corrected = enough(p, "entropy", pool="tokens", rng=rng)
    assert corrected[4]["relative_error"] < 0.6 * plain[4]["relative_error"]
    assert enough_samples(plain) in (None, 30, 50) and enough_samples(corrected) in (10, 20)
    few = enough(survivors(3, 4, rng)[0], "entropy", pool="tokens", rng=rng)
    assert all(np.isnan(r["relative_error"]) for r in few) and enough_samples(few) is None
    alone = enough(survivors(3, 1, rng)[0], "entropy", pool="tokens", rng=rng)
    assert len(alone) == 1 and np.isnan(alone[0]["sd"]) and enough_samples(alone) is None
    rows = [{"samples": m, "relative_error": e} for m, e in ((5, 0.04), (10, 0.06), (20, 0.03), (30, 0.02))]
    assert enough_samples(rows) == 20  # 5 was luck


def test_the_scatter_at_fewer_samples_is_that_of_runs_that_share_none():
    """Subsets of the same samples overlap; the standard error of m fresh ones is s / √m."""
    rng = np.random.default_rng(6)
    values = 1 + 0.05 * rng.normal(size=(1, 50, 1))
    p = Profile(np.ones((1, 50), int), values, -values, values, -values)
    rows = {r["samples"]: r for r in enough(p, "entropy", pool="tokens", bias="plain", rng=rng, draws=4000)}
    assert {1, 10, 20, 30} < set(rows)
    for m, row in rows.items():
        bf, spread = np.exp(values.mean()), values.std(ddof=1) / np.sqrt(m)
        assert row["sd"] == pytest.approx(bf * spread, rel=0.06), m
        np.testing.assert_allclose(
            [row["ci_low"], row["ci_high"]], row["bf"] + np.array([-1.96, 1.96]) * bf * spread, rtol=0.02
        )


def test_no_branching_factor_is_below_one():
    """Where one sample in six has all the entropy, what is taken off for its variance is more than the rate."""
    values = np.array([0.0] * 5 + [20.0])[None, :, None]
    p = Profile(np.ones((1, 6), int), values, -values, values, -values)
    assert log_bf(p, "entropy")[0, 0] == pytest.approx(20 / 6) and log_bf(p, "entropy", bias="jackknife")[0, 0] == 0
    assert bounds(np.linspace(0.5, 3, 1001)) == pytest.approx((1.0, 2.9375))
    assert bounds(np.linspace(0.2, 0.8, 11)) == (1.0, 1.0)


def test_too_few_survivors_give_no_value():
    p = profile([[5, 5, 5]])
    assert np.isnan(log_bf(p, "compat")).all()
    assert interval(np.array([np.nan])) != interval(np.array([1.0]))
