"""The difference of means is that, and its boundary lies half way."""

import numpy as np
import pytest
import torch

from probes.concept_depth import mean_difference
from probes.concept_depth.config import Config
from workbench.core.errors import InputError


def some(seed=0, n=300, d=8, layers=2):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    x = rng.standard_normal((layers, n, d)) * np.logspace(0, 2, d) + 3.0
    x[:, labels == 1, 0] += 4
    return torch.tensor(x), labels


@pytest.mark.parametrize("standardize", [False, True])
def test_scores_are_those_of_the_nearer_mean(standardize):
    """With features on one scale (standardize) the side of the boundary is the nearer mean's, in that scale."""
    x, labels = some()
    probes = mean_difference.fit(x, labels, standardize=standardize)
    for layer in range(2):
        own = x[layer].numpy()
        scale = own.std(0) if standardize else np.ones(own.shape[1])
        high, low = (own[labels == k].mean(0) / scale for k in (1, 0))
        nearer = ((own / scale - low) ** 2).sum(1) > ((own / scale - high) ** 2).sum(1)
        assert np.array_equal(probes.scores(x)[layer] > 0, nearer)
        assert np.allclose(probes.coef[layer].numpy() * scale, high - low, atol=1e-10)


def test_it_moves_one_mean_onto_the_other_and_a_constant_feature_does_nothing():
    x, labels = some()
    x[:, :, 3] = 7.5
    plain = mean_difference.fit(x, labels)
    own = x[1].double()
    ones = torch.tensor(labels == 1)
    torch.testing.assert_close(own[~ones].mean(0) + plain.coef[1], own[ones].mean(0))
    assert float(mean_difference.fit(x, labels, standardize=True).coef[0, 3]) == 0
    assert plain.converged.all() and (plain.error == 0).all()


def test_bad_input_is_refused():
    x, labels = some(n=20)
    with pytest.raises(InputError, match="one class"):
        mean_difference.fit(x, np.ones(20))
    x[1, 2, 3] = float("nan")
    with pytest.raises(InputError, match="layer 1"):
        mean_difference.fit(x, labels)
    with pytest.raises(ValueError, match="no penalty"):
        Config(classifier="mean_difference", c_path=(0.1,))
