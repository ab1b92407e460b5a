"""Spectra: the golden numbers, and streamed = SVD = Gram on features whose spectrum is known."""

import numpy as np
import pytest
import torch

from probes.representation_geometry import spectra
from workbench.core.errors import InputError

GOLDEN = {
    0.25: (981.84, 982.44),
    0.5: (805.09, 805.59),
    0.75: (478.23, 478.54),
    1.0: (182.36, 182.49),
    1.25: (54.29, 54.33),
    1.5: (18.558, 18.575),
    2.0: (5.095, 5.101),
}


def law(alpha, d=1024):
    return np.arange(1, d + 1, dtype=np.float64) ** -alpha


def planted(n, sigma, seed=0, mean=0.0):
    """Gaussian samples [n, d] whose population covariance has the eigenvalues `sigma`, randomly rotated."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((len(sigma), len(sigma))))[0]
    return torch.tensor(rng.standard_normal((n, len(sigma))) * np.sqrt(sigma) @ rotation.T + mean)


def test_rankme_of_singular_values_counts_every_direction_a_little():
    """Its definition adds 1e-7 to every share: ten thousand directions without any weight are worth a sixtieth."""
    values = np.r_[1.0, np.zeros(9_999)]
    shares = values / values.sum() + 1e-7
    assert spectra.rankme_singular(values) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert spectra.rankme_singular(values) > 1.015 and spectra.rankme(values) == 1


@pytest.mark.parametrize("alpha", GOLDEN)
def test_power_laws_give_the_golden_rankme_and_their_exponent(alpha):
    exact, with_epsilon = GOLDEN[alpha]
    digits = 3 if exact < 20 else 2
    assert round(float(spectra.rankme(law(alpha))), digits) == exact
    assert round(float(spectra.rankme(law(alpha), epsilon=1e-7)), digits) == with_epsilon
    for weighted in (True, False):
        fit = spectra.power_law(law(alpha), weighted=weighted)
        assert abs(fit.alpha - alpha) < 1e-6 and fit.r2 > 1 - 1e-9


def test_the_two_definitions_of_rankme_are_different_numbers():
    assert round(float(spectra.rankme(law(1.0))), 1) == 182.4
    assert round(float(spectra.rankme_singular(np.sqrt(law(1.0)), epsilon=0)), 1) == 805.1


@pytest.mark.parametrize(
    ("alpha", "full", "truncated"), [(0.5, 3148.2, 1589.7), (1.0, 432.6, 281.8), (1.5, 21.1, 20.0)]
)
def test_truncation_at_2048_changes_wide_spectra_as_published(alpha, full, truncated):
    # the published table adds the official 1e-7 to every share
    assert round(float(spectra.rankme(law(alpha, 4096), epsilon=1e-7)), 1) == full
    assert round(float(spectra.rankme(law(alpha, 4096)[:2048], epsilon=1e-7)), 1) == truncated


def test_weighted_fit_is_the_official_routine():
    rng = np.random.default_rng(0)
    values = law(1.3, 300) * np.exp(0.1 * rng.standard_normal(300))
    # as published: np.arange(11, 100) indexes ranks 12…100; weights 1/rank; normal equations
    x = np.arange(11, 100)
    y = np.log(values[x])[:, None]
    x = x + 1
    design = np.concatenate([-np.log(x)[:, None], np.ones((len(x), 1))], 1)
    w = (1.0 / x)[:, None]
    slope = np.linalg.solve(design.T @ (design * w), (w * design).T @ y)[0, 0]
    fit = spectra.power_law(values)
    assert abs(fit.alpha - slope) < 1e-10 and (fit.first, fit.last) == (12, 100)
    predicted = np.exp(fit.intercept) * np.arange(12, 101.0) ** -fit.alpha
    assert np.abs(np.log(predicted) - np.log(values[11:100])).max() < 0.4
    assert fit.r2 < 1


def test_finite_sample_values_are_the_golden_ones():
    rng = np.random.default_rng(0)
    for n, golden in ((1000, 613.8), (500, 390.7)):
        spectrum = spectra.from_features(torch.tensor(rng.standard_normal((n, 1024))))
        assert abs(spectrum.rankme - golden) < 0.01 * golden


@pytest.mark.slow
def test_white_noise_at_fifteen_thousand_samples_is_the_golden_value():
    rng = np.random.default_rng(0)
    moments = None
    for _ in range(15):
        x = torch.tensor(rng.standard_normal((1000, 1024)))
        moments = moments or spectra.Moments.like(x)
        moments.add(x)
    spectrum = spectra.from_moments(moments)
    assert abs(spectrum.rankme - 989.6) < 1
    assert abs(spectra.power_law(spectrum.eigenvalues).alpha - 0.048) < 0.005


def test_the_null_without_samples_is_that_of_white_samples():
    """Golden values (docs/methods/representation-geometry.md), and the same distribution as features that are drawn,
    centred and decomposed."""
    rng = np.random.default_rng(0)
    for n, golden in ((1000, 613.8), (500, 390.7)):
        assert abs(spectra.rankme(spectra.white_eigenvalues(n, 1024, rng=rng)) - golden) < 0.005 * golden
    for n, d in ((60, 20), (20, 60), (20, 20)):
        drawn, made = [], []
        for _ in range(60):
            x = rng.standard_normal((n, d))
            drawn.append(np.linalg.svd(x - x.mean(0), compute_uv=False)[: min(n, d)] ** 2 / n)
            made.append(spectra.white_eigenvalues(n, d, rng=rng))
        assert made[0].shape == (min(n, d),)
        for statistic in (spectra.rankme, lambda v: v.max(-1), lambda v: v.sum(-1)):
            a, b = statistic(np.array(drawn)), statistic(np.array(made))
            assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / 60) and 0.5 < a.std() / b.std() < 2


def test_an_uncentred_mean_collapses_rankme_and_centring_prevents_it():
    rng = np.random.default_rng(0)
    white = rng.standard_normal((5000, 256))
    for norm, golden in ((0, 249.0), (16, 31.0), (64, 1.7)):
        shifted = torch.tensor(white + norm * np.eye(256)[3])
        moments = spectra.Moments.like(shifted)
        moments.add(shifted)
        uncentred = float(spectra.rankme(torch.linalg.eigvalsh(moments.second_moment()).numpy()))
        assert abs(uncentred - golden) < (1 if norm == 0 else 0.1 * golden)
        assert abs(spectra.from_moments(moments).rankme - 249) < 1


def test_rank_eight_in_2048_dimensions_is_eight():
    values = np.zeros(2048)
    values[:8] = 3.0
    assert round(float(spectra.rankme(values, epsilon=1e-7)), 3) == 8.026
    assert abs(spectra.rankme(values) - 8) < 1e-9
    assert abs(spectra.participation_ratio(values) - 8) < 1e-12 and abs(spectra.stable_rank(values) - 8) < 1e-12


def test_streamed_covariance_svd_and_gram_agree():
    x = planted(300, law(1.0, 40), mean=50.0)
    moments = spectra.Moments.like(x[:7])
    for start in range(0, 300, 7):
        moments.add(x[start : start + 7])
    streamed = spectra.from_moments(moments)
    centred = (x - x.mean(0)).numpy()
    exact = np.linalg.svd(centred, compute_uv=False) ** 2 / 300
    assert np.abs(streamed.eigenvalues / exact - 1).max() < 1e-10
    singular = np.linalg.svd(x.numpy(), compute_uv=False)
    assert np.abs(streamed.singular_values / singular - 1).max() < 1e-8
    wide = planted(60, law(0.7, 200), mean=2.0)
    gram = spectra.from_features(wide)
    exact = np.linalg.svd((wide - wide.mean(0)).numpy(), compute_uv=False) ** 2 / 60
    assert np.abs(gram.eigenvalues[:59] / exact[:59] - 1).max() < 1e-10 and gram.eigenvalues[59] < 1e-12
    assert np.abs(gram.singular_values / np.linalg.svd(wide.numpy(), compute_uv=False) - 1).max() < 1e-10
    forced = spectra.Moments.like(wide)
    forced.add(wide)
    assert abs(spectra.from_moments(forced).rankme / gram.rankme - 1) < 1e-10


def test_parts_add_up_to_the_whole():
    x = planted(100, law(1.0, 12))
    whole, left = spectra.Moments.like(x), spectra.Moments.like(x)
    right = spectra.Moments(0, left.shift, left.total.clone(), left.outer.clone())
    whole.add(x)
    left.add(x[:30])
    right.add(x[30:])
    assert torch.allclose((left + right).covariance(), whole.covariance(), rtol=1e-12)


def test_rotation_changes_nothing():
    x = planted(400, law(1.0, 30))
    rotation = torch.tensor(np.linalg.qr(np.random.default_rng(5).standard_normal((30, 30)))[0])
    a, b = spectra.from_features(x), spectra.from_features(x @ rotation)
    assert abs(a.rankme / b.rankme - 1) < 1e-8 and abs(a.rankme_singular / b.rankme_singular - 1) < 1e-8


def test_more_samples_approach_the_population_from_below():
    sigma = law(1.0, 64)
    truth = float(spectra.rankme(sigma))

    def mean_at(n):
        return float(np.mean([spectra.from_features(planted(n, sigma, seed=s)).rankme for s in range(12)]))

    sizes = (128, 256, 512, 2048, 16384)
    found = [mean_at(n) for n in sizes]
    assert found == sorted(found) and abs(found[-1] / truth - 1) < 0.01


def test_eigenvectors_diagonalise_on_both_paths():
    for n, d in ((200, 20), (15, 40)):
        x = planted(n, law(0.5, d), mean=1.0)
        spectrum = spectra.from_features(x, vectors=True)
        v = spectrum.directions
        assert torch.allclose(v @ v.T, torch.eye(len(v), dtype=v.dtype), atol=1e-9)
        variances = ((x - x.mean(0)) @ v.T).square().mean(0).numpy()
        assert np.allclose(variances, spectrum.eigenvalues[: len(v)], rtol=1e-9)
        raw = spectrum.raw_directions
        assert np.allclose((x @ raw.T).norm(dim=0).numpy(), spectrum.singular_values[: len(raw)], rtol=1e-9)


def test_bootstrap_interval_has_the_width_of_the_real_scatter_and_ignores_batching():
    sigma = law(1.0, 32)
    estimates = [spectra.from_features(planted(400, sigma, seed=s)).rankme for s in range(200)]
    x = planted(400, sigma, seed=0)
    spectrum = spectra.from_features(x, vectors=True)
    found = []
    for size in (400, 33):
        bootstrap = spectra.Bootstrap(spectrum, draws=400)
        for rows in np.array_split(np.random.default_rng(1).permutation(400), 400 // size):
            bootstrap.add(spectra.weights(rows, 400), x[rows])
        found.append(bootstrap.interval(spectra.rankme))
    assert np.allclose(found[0], found[1], rtol=1e-9)
    low, high = found[0]
    assert low < spectrum.rankme < high
    assert 0.75 < (high - low) / (2 * 1.96 * np.std(estimates)) < 1.25


def test_the_uncentred_bootstrap_covers_the_singular_value_form():
    sigma = law(1.0, 24)
    estimates = [spectra.from_features(planted(400, sigma, seed=s, mean=0.4)).rankme_singular for s in range(150)]
    x = planted(400, sigma, seed=0, mean=0.4)
    spectrum = spectra.from_features(x, vectors=True)
    bootstrap = spectra.Bootstrap(spectrum, draws=400, centred=False)
    bootstrap.add(spectra.weights(range(400), 400), x)
    low, high = bootstrap.interval(lambda values: spectra.rankme_singular(np.sqrt(values)))
    assert low < spectrum.rankme_singular < high
    assert 0.7 < (high - low) / (2 * 1.96 * np.std(estimates)) < 1.3


def test_too_few_eigenvalues_give_no_exponent_but_a_reason():
    fit = spectra.power_law(law(1.0, 64))
    assert np.isnan(fit.alpha) and "100" in fit.reason and "64" in fit.reason
    gram = spectra.from_features(planted(60, law(1.0, 256)))
    assert np.isnan(spectra.power_law(gram.eigenvalues).alpha)


def test_bad_features_are_refused():
    x = planted(50, law(1.0, 8))
    x[3, 2] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        spectra.from_features(x)
    with pytest.raises(InputError, match="two samples"):
        spectra.from_features(planted(1, law(1.0, 8)))
    with pytest.raises(InputError, match="fit range"):
        spectra.power_law(law(1.0), fit_range=(5, 5))
