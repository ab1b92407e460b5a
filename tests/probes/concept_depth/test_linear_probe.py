"""The batched solver is scikit-learn's logistic regression, converged; its bound on the error is honest."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from probes.concept_depth import linear_probe
from workbench.core.errors import InputError


def features(n=400, d=40, layers=3, seed=0, massive=False):
    """[layers, n, d] with a class shift that grows over layers, correlated and of unequal scale; labels [n]."""
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, generator=g) < 0.4).double()
    mix = torch.randn(d, d, generator=g) / d**0.5
    x = torch.randn(layers, n, d, generator=g) @ mix * torch.logspace(0, 1, d)
    x += torch.arange(layers)[:, None, None] * (y[:, None] - 0.5).float() * mix[0] * 3 + 2
    if massive:
        x[:, :, 3] = 1000 + 30 * torch.randn(layers, n, generator=g)
    return x, y.numpy()


def converged(x, y, *, solver="lbfgs", **options):
    return LogisticRegression(max_iter=100_000, tol=1e-9, solver=solver, **options).fit(x.double().numpy(), y)


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("massive", [False, True])
def test_coefficients_and_predictions_are_those_of_converged_scikit_learn(c, massive):
    x, y = features(massive=massive)
    held_out = features(n=2000, seed=1, massive=massive)[0]
    ours = linear_probe.fit(x, y, c=c)
    assert ours.converged.all() and (ours.iterations < 40).all()
    for layer in range(len(x)):
        # with a massive dimension lbfgs gives up 4 % short of the optimum, whatever its limits; Newton gets there
        theirs = converged(x[layer], y, C=c, solver="newton-cholesky" if massive else "lbfgs")
        w = theirs.coef_[0]
        assert np.linalg.norm(ours.coef[layer].numpy() - w) < 1e-3 * np.linalg.norm(w)
        agree = (theirs.predict(held_out[layer].double().numpy()) == (ours.scores(held_out)[layer] > 0)).mean()
        assert agree >= 0.999


def test_more_features_than_rows_is_the_same_optimum():
    x, y = features(n=60, d=300, layers=2)
    ours = linear_probe.fit(x, y)
    assert ours.converged.all()
    for layer in range(2):
        theirs = converged(x[layer], y)
        assert np.linalg.norm(ours.coef[layer].numpy() - theirs.coef_[0]) < 1e-3 * np.linalg.norm(theirs.coef_[0])
        assert abs(float(ours.intercept[layer]) - theirs.intercept_[0]) < 1e-2


def test_standardised_fit_is_scikit_learn_after_a_scaler():
    x, y = features(massive=True)
    x[:, :, 7] = 4.0  # a constant feature
    ours = linear_probe.fit(x, y, standardize=True)
    for layer in range(len(x)):
        scaler = StandardScaler().fit(x[layer].double().numpy())
        theirs = converged(torch.tensor(scaler.transform(x[layer].double().numpy())), y)
        expected = theirs.decision_function(scaler.transform(x[layer].double().numpy()))
        assert np.abs(ours.scores(x)[layer] - expected).max() < 1e-3 * np.abs(expected).max()


def test_the_certified_error_bounds_the_true_one():
    x, y = features()
    best = linear_probe.fit(x, y, tolerance=1e-12)
    for iterations in (1, 2, 3):
        early = linear_probe.fit(x, y, max_iter=iterations)
        true = (early.coef - best.coef).norm(dim=1) / early.coef.norm(dim=1)
        assert not early.converged.any()
        # measured before the last step, which only brings it closer
        assert (true.numpy() <= early.error).all()


def test_layers_together_are_layers_alone_and_the_gradient_vanishes():
    x, y = features(layers=5)
    together = linear_probe.fit(x, y)
    for layer in range(5):
        alone = linear_probe.fit(x[layer : layer + 1], y)
        assert torch.allclose(together.coef[layer], alone.coef[0], rtol=1e-5, atol=1e-8)
    w, b = together.coef, together.intercept
    residual = torch.sigmoid(torch.einsum("lnd,ld->ln", x.double(), w) + b[:, None]) - torch.tensor(y)
    gradient = w + torch.einsum("lnd,ln->ld", x.double(), residual)
    assert (gradient.norm(dim=1) < 1e-5 * w.norm(dim=1)).all() and (residual.sum(1).abs() < 1e-2).all()


def test_separable_classes_still_have_a_finite_unique_optimum():
    x = torch.tensor([[-3.0, 0], [-2, 1], [2, -1], [3, 0]])[None].repeat(1, 25, 1)
    y = np.tile([0, 0, 1, 1], 25)
    ours = linear_probe.fit(x, y, c=1e4)
    theirs = converged(x[0], y, C=1e4)
    assert ours.converged.all()
    assert np.linalg.norm(ours.coef[0].numpy() - theirs.coef_[0]) < 1e-3 * np.linalg.norm(theirs.coef_[0])


def test_identical_features_give_a_probe_that_says_the_majority():
    ours = linear_probe.fit(torch.full((1, 10, 4), 2.5), np.array([1] * 7 + [0] * 3))
    assert torch.all(ours.coef == 0) and abs(float(ours.intercept[0]) - np.log(7 / 3)) < 1e-6


def test_metrics_are_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (4, 200)).astype(float)
    labels = rng.integers(0, 2, 200)
    found = linear_probe.metrics(scores, labels)
    for layer in range(4):
        guess = scores[layer] > 0
        assert found["accuracy"][layer] == accuracy_score(labels, guess)
        assert abs(found["balanced_accuracy"][layer] - balanced_accuracy_score(labels, guess)) < 1e-12
        assert abs(found["f1"][layer] - f1_score(labels, guess)) < 1e-12
        assert abs(found["f1_class0"][layer] - f1_score(labels, guess, pos_label=0)) < 1e-12
        assert abs(found["auc"][layer] - roc_auc_score(labels, scores[layer])) < 1e-12


def test_resampled_metrics_are_those_of_the_rows_repeated():
    rng = np.random.default_rng(1)
    scores, labels = rng.standard_normal((2, 60)), rng.integers(0, 2, 60)
    counts = rng.multinomial(60, np.full(60, 1 / 60), 5).astype(float)
    drawn = linear_probe.resampled_metrics(scores, labels, counts)
    for k in range(5):
        rows = np.repeat(np.arange(60), counts[k].astype(int))
        alone = linear_probe.metrics(scores[:, rows], labels[rows])
        for name in drawn:
            assert np.allclose(drawn[name][k], alone[name], atol=1e-12), name


def test_bad_input_is_refused_with_the_layer_named():
    x, y = features(n=20, d=3, layers=2)
    with pytest.raises(InputError, match="one class"):
        linear_probe.fit(x, np.ones(20))
    with pytest.raises(InputError, match="20 rows and there are 19"):
        linear_probe.fit(x, y[:19])
    with pytest.raises(InputError, match="two classes"):
        linear_probe.fit(x, y + 1)
    with pytest.raises(InputError, match="above 0"):
        linear_probe.fit(x, y, c=0)
    x[1, 4, 2] = float("inf")
    with pytest.raises(InputError, match="layer 1"):
        linear_probe.fit(x, y)
