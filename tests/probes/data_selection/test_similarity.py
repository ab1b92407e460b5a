"""The sparse formulas against dense ones written out in numpy, and the three constructions of
docs/methods/data-selection.md."""

import numpy as np
import pytest
import torch

from workbench.core.errors import InputError
from workbench.sae import sparse_rows as similarity
from workbench.sae.sparse_rows import Rows, check_values, dense_cosine, stack, sum_tokens


def from_dense(x: torch.Tensor) -> Rows:
    row, feature = x.nonzero(as_tuple=True)
    return Rows(row, feature, x[row, feature], *x.shape)


def dense_similarity(z: np.ndarray, p: np.ndarray, kind: str) -> float:
    if kind == "jaccard":
        return np.minimum(z, p).sum() / np.maximum(z, p).sum()
    if kind == "cosine":
        return z @ p / np.linalg.norm(z) / np.linalg.norm(p)
    if kind == "euclidean":
        return -np.linalg.norm(z - p)
    return np.minimum(z, p).sum() / p.sum()


@pytest.mark.parametrize("kind", similarity.KINDS)
def test_sparse_equals_dense(kind):
    rng = np.random.default_rng(0)
    z = rng.gamma(1.0, size=(40, 300)) * (rng.random((40, 300)) < 0.1)
    p = rng.gamma(1.0, size=(5, 300)) * (rng.random((5, 300)) < 0.3)
    found = similarity.similarity(from_dense(torch.tensor(z)), torch.tensor(p), kind).numpy()
    expected = [[dense_similarity(a, b, kind) for b in p] for a in z]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_worked_arithmetic_of_the_method_page():
    z = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)
    found = similarity.similarity(from_dense(z), torch.tensor([[1.0, 1, 0, 0]]))
    assert found[:, 0].tolist() == [pytest.approx(1 / 3, abs=1e-15), 1.0, 0.0]


def test_jaccard_is_not_scale_invariant_and_cosine_is():
    z, p = from_dense(torch.tensor([[2.0, 2, 0]])), torch.tensor([[1.0, 1, 0]])
    assert float(similarity.similarity(z, p, "jaccard")) == 0.5
    assert float(similarity.similarity(z, p, "cosine")) == pytest.approx(1)


def test_empty_rows_have_defined_similarities():
    z, p = from_dense(torch.zeros(1, 3)), torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    assert similarity.similarity(z, p, "jaccard").tolist() == [[0.0, 1.0]]
    assert similarity.similarity(z, p, "cosine").tolist() == [[0.0, 0.0]]
    assert similarity.similarity(z, p, "containment").tolist() == [[0.0, 0.0]]


def test_tokens_are_summed_by_sample_in_blocks_as_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.gamma(1.0, size=(50, 12)) * (rng.random((50, 12)) < 0.4))
    owner = torch.tensor(rng.integers(0, 7, 50))
    expected = torch.zeros(7, 12, dtype=torch.float64).index_add_(0, owner, x)
    whole = sum_tokens(from_dense(x), owner, 7)
    torch.testing.assert_close(whole.dense(), expected)
    monkeypatch.setattr(similarity, "BUFFER", 24)
    torch.testing.assert_close(sum_tokens(from_dense(x), owner, 7).dense(), expected)


def test_sum_rewards_the_targets_length_and_mean_rewards_the_targets_features():
    """Construction (b): sample A is as long as the target and 20 % off topic, sample B is on topic and four times
    longer."""

    def tokens(on, off):
        return [k % 10 for k in range(on)] + [10 + k % 5 for k in range(off)]

    target, a, b = tokens(50, 0), tokens(40, 10), tokens(200, 0)
    features = torch.tensor(target + a + b)
    owner = torch.tensor([0] * len(target) + [1] * len(a) + [2] * len(b))
    entries = Rows(torch.arange(len(features)), features, torch.ones(len(features)), len(features), 15)
    sums = sum_tokens(entries, owner, 3)
    by_sum = similarity.similarity(sums, sums.dense()[:1])[:, 0]
    means = sums.divided(torch.bincount(owner))
    by_mean = similarity.similarity(means, means.dense()[:1])[:, 0]
    assert by_sum[1] > by_sum[2] and by_mean[2] > by_mean[1]
    assert by_mean[2] == pytest.approx(1)


def test_planted_features_fill_the_selection_and_mixed_activations_do_worse():
    """Construction (c): tokens are sparse combinations of an overcomplete dictionary, from the features of their task
    and from shared "grammar" features that dominate the activations; 20 of 400 samples are of the target's task."""
    rng = np.random.default_rng(2)
    d, n_features, grammar, per_task, tasks, length = 32, 512, 16, 24, 20, 24
    dictionary = rng.normal(size=(n_features, d))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)

    def sample(task):
        z = np.zeros((length, n_features))
        for t in range(length):
            z[t, rng.choice(grammar, 3, replace=False)] = rng.gamma(4, size=3) * 0.5
            z[t, grammar + task * per_task + rng.choice(per_task, 2, replace=False)] = rng.gamma(2, size=2) * 0.6
        return z

    label = np.repeat(np.arange(tasks), 20)
    codes = np.array([sample(task).mean(0) for task in label])
    target = np.mean([sample(7).mean(0) for _ in range(8)], axis=0)
    chosen = similarity.top(
        similarity.similarity(from_dense(torch.tensor(codes)), torch.tensor(target[None]))[:, 0], 20
    )
    assert set(label[chosen.numpy()]) == {7}
    by_cosine = similarity.top(
        dense_cosine(torch.tensor(codes @ dictionary), torch.tensor((target @ dictionary)[None]))[:, 0], 20
    )
    assert (label[by_cosine.numpy()] == 7).mean() < 0.5


def test_distances_of_a_map_are_one_minus_the_similarity():
    from probes.data_selection.pool_map import distances

    rng = np.random.default_rng(3)
    z = rng.gamma(1.0, size=(70, 30)) * (rng.random((70, 30)) < 0.3)
    rows = stack([from_dense(torch.tensor(z[:40])), from_dense(torch.tensor(z[40:]))])
    found = distances(rows)
    expected = np.array([[1 - dense_similarity(a, b, "jaccard") for b in z] for a in z])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_equal_scores_keep_the_order_of_the_rows():
    assert similarity.top(torch.tensor([1.0, 2.0, 1.0, 2.0, 0.0]), 4).tolist() == [1, 3, 0, 2]


def test_negative_and_infinite_activations_are_refused():
    with pytest.raises(InputError, match="negative"):
        check_values(torch.tensor([1.0, -0.5]))
    with pytest.raises(InputError, match="NaN or infinite"):
        check_values(torch.tensor([1.0, float("nan")]))
    with pytest.raises(InputError, match="is not a similarity"):
        similarity.similarity(from_dense(torch.ones(1, 2)), torch.ones(1, 2), "dot")
