"""RankMe and alpha at infinitely many texts: on populations that are known, within their intervals as often as said."""

import numpy as np
import pytest
import torch

from probes.representation_geometry import infinite_texts as infinite
from probes.representation_geometry import spectra

D = 96
FIT = (8, 72)
POPULATIONS = {f"power {a}": np.arange(1, D + 1.0) ** -a for a in (0.5, 1.0, 1.5, 2.0)}
POPULATIONS |= {"flat": np.ones(D), "spiked": np.r_[60.0, 40, 25, 15, 8, np.ones(D - 5)]}


def told(x, draws=40, fit_range=FIT):
    """(RankMe and alpha at infinity, RankMe of the samples) of features [n, d]."""
    x = torch.as_tensor(x)
    spectrum = spectra.from_features(x, vectors=True)
    left_out, bootstrap = infinite.LeftOut(spectrum), spectra.Bootstrap(spectrum, draws=draws)
    for rows in np.array_split(np.arange(len(x)), 3):  # batches, as they come
        left_out.add(x[rows])
        bootstrap.add(spectra.weights(rows, draws), x[rows])
    return infinite.at_infinity(left_out, bootstrap if draws else None, fit_range=fit_range), spectrum.rankme


def gaussian(rng, n, sigma):
    return rng.standard_normal((n, len(sigma))) * np.sqrt(sigma)


def lengths_differ(rng, n, sigma):
    return gaussian(rng, n, sigma) * np.exp(0.2 * rng.standard_normal((n, 1)))


def clustered(rng, n, sigma):
    """Half of the variance between thirty kinds of text."""
    return gaussian(rng, n, sigma) * np.sqrt(0.5) + centres(sigma)[rng.integers(0, 30, n)]


def centres(sigma):
    some = np.random.default_rng(5).standard_normal((30, len(sigma)))
    return np.sqrt(0.5 * sigma) * (some - some.mean(0))


def population(draw, sigma):
    if draw is not clustered:
        return sigma
    return np.linalg.eigvalsh(0.5 * np.diag(sigma) + centres(sigma).T @ centres(sigma) / 30)[::-1]


def simulate(draw, sigma, n, times, seed=0, fit_range=(D + 1, D + 2)):
    """[times] of what is told of samples of that population; without alpha by default."""
    rng = np.random.default_rng([seed, n])
    return [told(draw(rng, n, sigma), fit_range=fit_range) for _ in range(times)]


@pytest.mark.parametrize("draw", [gaussian, lengths_differ, clustered])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_the_interval_of_rankme_holds_the_population_where_that_at_this_n_does_not(draw, ratio):
    held, raw = [], []
    for number, (name, sigma) in enumerate(POPULATIONS.items()):
        truth = float(spectra.rankme(population(draw, sigma)))
        found = simulate(draw, sigma, ratio * D, 16, seed=number)
        held += [one.rankme_low <= truth <= one.rankme_high for one, _ in found]
        raw += [abs(at_n / truth - 1) > 0.05 for _, at_n in found]
        assert abs(np.mean([np.log(one.rankme / truth) for one, _ in found])) < 0.08, name
    assert np.mean(held) >= 0.9, np.mean(held)
    assert np.mean(raw) > 0.5 or ratio > 2


def test_the_interval_of_alpha_holds_the_exponent_of_a_power_law():
    held = []
    for alpha in (1.0, 1.5):
        for ratio, draw in ((2, gaussian), (4, gaussian), (4, lengths_differ)):
            found = [one for one, _ in simulate(draw, POPULATIONS[f"power {alpha}"], ratio * D, 6, fit_range=FIT)]
            held += [one.alpha_low <= alpha <= one.alpha_high for one in found]
            assert abs(np.nanmean([one.alpha for one in found]) - alpha) < 0.06
            assert np.nanmean([one.alpha_high - one.alpha_low for one in found]) < 0.4
    assert np.mean(held) >= 0.92, np.mean(held)


def test_what_cannot_be_told_is_not_told_and_says_why():
    rng, sigma = np.random.default_rng(0), POPULATIONS["power 1.0"]
    few, _ = told(gaussian(rng, D // 2 - 2, sigma))
    assert np.isnan([few.rankme, few.alpha]).all() and few.reason == infinite.REASONS["rankme"]
    fewer_than_width, _ = told(gaussian(rng, D - 10, sigma))
    assert fewer_than_width.rankme > 0 and np.isnan([fewer_than_width.rankme_low, fewer_than_width.alpha]).all()
    assert infinite.REASONS["interval"] in fewer_than_width.reason
    flat, _ = told(gaussian(rng, 3 * D, POPULATIONS["flat"]))
    assert np.isnan(flat.alpha) and flat.reason == infinite.REASONS["flat"]
    uneven, _ = told(gaussian(rng, 3 * D, sigma) * np.exp(0.6 * rng.standard_normal((3 * D, 1))))
    assert np.isnan(uneven.alpha) and uneven.reason == infinite.REASONS["unequal"]
    without_draws, _ = told(gaussian(rng, 3 * D, sigma), draws=0)
    assert without_draws.rankme > 0 and np.isnan([without_draws.rankme_low, without_draws.alpha_low]).all()
    nothing, _ = told(np.ones((50, 4)))
    assert np.isnan(nothing.rankme) and nothing.reason


def test_left_out_forms_are_those_of_covariances_without_the_sample():
    """(x_i - m)' (S + x)^-1 (x_i - m) / (n - 1), S that of the others around their own mean."""
    rng = np.random.default_rng(1)
    x = gaussian(rng, 30, np.arange(1, 13.0) ** -1)
    spectrum = spectra.from_features(torch.tensor(x), vectors=True)
    left_out = infinite.LeftOut(spectrum)
    left_out.add(torch.tensor(x))
    y = (x - x.mean(0)) / np.sqrt(left_out.trace)
    for point in range(0, infinite.POINTS, 20):
        ridge = left_out.ridges[point] * np.eye(12)
        slow = 0.0
        for i in range(30):
            others = np.delete(y, i, 0)
            scatter = (others - others.mean(0)).T @ (others - others.mean(0)) / 30
            slow += y[i] @ np.linalg.solve(scatter + ridge, y[i]) / 29
        assert float(left_out.forms[point]) == pytest.approx(slow, rel=1e-8)


def test_zeros_between_eigenvalues_are_those_of_the_matrix_they_belong_to():
    """Mestre's μ are the eigenvalues of diag(λ) - √λ √λ' / N."""
    values = np.sort(np.random.default_rng(0).exponential(size=40))[::-1] / 40
    matrix = np.diag(values) - np.outer(np.sqrt(values), np.sqrt(values)) / 90
    slow = np.linalg.eigvalsh(matrix)[::-1]
    assert np.allclose(infinite.zeros_below(values, 90, 3, 30), slow[2:30], rtol=1e-8)
