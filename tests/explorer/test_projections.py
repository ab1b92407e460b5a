"""Points in two dimensions, held to slow computations in float64."""

import numpy as np
import pytest
import torch

from workbench.core.errors import InputError
from workbench.explorer.projections import (
    Oriented,
    PrincipalComponents,
    clusters_of,
    oriented,
    plane,
    principal_components,
    trustworthiness_of,
    turned_to,
    umap_of,
)


def blobs(sizes, *, width=12, apart=20.0, seed=0):
    """Points around as many centres, and which they are of."""
    rng = np.random.default_rng(seed)
    centres = apart * rng.normal(size=(len(sizes), width))
    own = np.repeat(np.arange(len(sizes)), sizes)
    return (centres[own] + rng.normal(size=(len(own), width))).astype(np.float32), own


def compass_of(found):
    return next(iter(oriented([found])))


@pytest.mark.parametrize(
    "n, d", [(40, 9), (30, 200), (420, 430)]
)  # all axes, fewer points than axes, the first of many
def test_principal_components_are_those_of_a_whole_svd_in_float64(n, d):
    x = (np.random.default_rng(1).normal(size=(n, d)) * np.linspace(3, 0.5, d) + 100).astype(np.float32)
    found = principal_components(x)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    _, s, axes = np.linalg.svd(centred, full_matrices=False)
    k = min(50, n - 1, d)
    assert found.coordinates.shape == (n, k) and found.coordinates.dtype == np.float64
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(centred @ axes[:k].T), atol=1e-6)
    values = np.linalg.eigvalsh(np.cov(centred.T))[::-1]
    np.testing.assert_allclose(found.shares, values[:k] / values.sum(), atol=1e-9)
    largest = np.abs(found.coordinates).argmax(axis=0)
    assert (found.coordinates[largest, np.arange(k)] > 0).all()


def test_points_that_are_all_the_same_have_no_components_and_broken_ones_are_refused():
    found = principal_components(np.full((30, 8), 1 / 3, np.float32))
    assert found.coordinates.shape == (30, 0) and len(found.shares) == 0
    with pytest.raises(InputError, match="same activation"):
        umap_of(compass_of(found))
    with pytest.raises(InputError, match="NaN or infinite"):
        principal_components(np.array([[1.0, np.nan], [0.0, 1.0]], np.float32))


def test_every_layer_takes_the_orientation_of_the_one_before():
    rng = np.random.default_rng(3)
    base = rng.normal(size=(60, 5)) * [9, 5, 3, 2, 1]
    drift = [base + 0.05 * step * rng.normal(size=base.shape) for step in range(6)]
    signs = rng.choice([-1.0, 1.0], size=(6, 5))
    raw = [PrincipalComponents(x * sign, np.full(5, 0.2)) for x, sign in zip(drift, signs)]
    found = list(oriented(raw))
    for before, now in zip(found, found[1:]):
        agree = (before.components.coordinates * now.components.coordinates).sum(axis=0)
        assert (agree > 0).all()
        np.testing.assert_allclose(now.compass, before.compass, atol=1.5)
    for one, other in zip(found, raw):  # only signs have changed
        np.testing.assert_array_equal(np.abs(one.components.coordinates), np.abs(other.coordinates))


def test_components_that_change_places_do_not_turn_the_compass():
    first = np.random.default_rng(4).normal(size=(50, 2)) * [5, 4.9]
    swapped = PrincipalComponents(first[:, ::-1] * [1, -1], np.array([0.5, 0.5]))
    before, now = oriented([PrincipalComponents(first, np.array([0.5, 0.5])), swapped])
    centred = first - first.mean(axis=0)
    np.testing.assert_allclose(now.compass - now.compass.mean(axis=0), centred, atol=1e-9)
    assert not np.allclose(plane(now.components), plane(before.components), atol=1)  # the axes are still components


def test_turning_is_the_best_of_all_turns_and_mirrors_and_stretches_nothing():
    rng = np.random.default_rng(5)
    points, others = rng.normal(size=(20, 2)), rng.normal(size=(20, 2)) * 3
    found = turned_to(points, others)
    centred, to = points - points.mean(axis=0), others - others.mean(axis=0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(centred, axis=1))
    angles = np.linspace(0, 2 * np.pi, 20001)
    turns = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]]).transpose(2, 0, 1)
    least = min(np.square(centred * m @ turns - to).sum(axis=(1, 2)).min() for m in ([1, 1], [1, -1]))
    assert np.square(found - to).sum() == pytest.approx(least, rel=1e-6)


def test_a_umap_repeats_keeps_groups_apart_and_lies_as_its_compass():
    x, own = blobs([30, 40, 25])
    threads = torch.get_num_threads()
    found = compass_of(principal_components(x))
    one, again = umap_of(found, neighbours=10), umap_of(found, neighbours=10)
    np.testing.assert_array_equal(one, again)
    assert torch.get_num_threads() == threads
    near = np.linalg.norm(one[:, None] - one[None], axis=2) + np.where(np.eye(len(one)), np.inf, 0)
    assert (own[near.argmin(axis=1)] == own).all()
    mirrored = Oriented(found.components, found.compass * [1, -1])
    for compass, places in ((found.compass, one), (mirrored.compass, umap_of(mirrored, neighbours=10))):
        centres = [np.stack([p[own == k].mean(axis=0) for k in range(3)]) for p in (compass, places)]
        centres = [c - c.mean(axis=0) for c in centres]
        assert (centres[0] * centres[1]).sum() > 0.8 * np.linalg.norm(centres[0]) * np.linalg.norm(centres[1])


def test_a_umap_of_too_few_texts_or_impossible_neighbours_is_refused():
    few = compass_of(principal_components(np.random.default_rng(0).normal(size=(14, 5))))
    with pytest.raises(InputError, match="at least 15 texts, and there are 14"):
        umap_of(few)
    more = compass_of(principal_components(np.random.default_rng(0).normal(size=(20, 5))))
    for neighbours in (1, 20):
        with pytest.raises(InputError, match=f"2 to 19 neighbours, not {neighbours}"):
            umap_of(more, neighbours=neighbours)


def slow_trust(x, y, k):
    """Venna and Kaski 2001, equation 2, point by point."""
    n, worst = len(x), 0.0
    for i in range(n):
        there = [j for j in np.argsort(np.linalg.norm(x - x[i], axis=1), kind="stable") if j != i]
        here = [j for j in np.argsort(np.linalg.norm(y - y[i], axis=1), kind="stable") if j != i]
        for j in set(here[:k]) - set(there[:k]):
            worst += there.index(j) + 1 - k
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * worst


def test_trustworthiness_is_its_definition_and_absent_for_few_points():
    rng = np.random.default_rng(6)
    x, flat = rng.normal(size=(60, 10)), rng.normal(size=(60, 2))
    assert trustworthiness_of(x, flat, neighbours=7) == pytest.approx(slow_trust(x, flat, 7))
    assert trustworthiness_of(x[:, :2], x[:, :2], neighbours=7) == 1
    assert trustworthiness_of(x[:14], flat[:14], neighbours=7) is None


def test_clusters_are_the_groups_the_largest_first_and_the_silhouette_is_its_definition():
    x, own = blobs([20, 50, 35])
    found = clusters_of(principal_components(x), count=3)
    assert [len(set(found.labels[own == k])) for k in range(3)] == [1, 1, 1]
    assert [int((found.labels == k).sum()) for k in range(3)] == [50, 35, 20]
    y = x.astype(np.float64)
    far = np.linalg.norm(y[:, None] - y[None], axis=2)
    each = []
    for i in range(len(y)):
        mean = [far[i, (found.labels == k) & (np.arange(len(y)) != i)].mean() for k in range(3)]
        inside, outside = mean[found.labels[i]], min(m for k, m in enumerate(mean) if k != found.labels[i])
        each.append((outside - inside) / max(inside, outside))
    assert found.silhouette == pytest.approx(np.mean(each), abs=1e-6)


@pytest.mark.parametrize("count", [1, 9])
def test_more_clusters_than_different_points_or_fewer_than_two_are_refused(count):
    x = np.repeat(np.random.default_rng(0).normal(size=(8, 4)), 5, axis=0).astype(np.float32)
    with pytest.raises(InputError, match=f"{count} clusters need more than {count} texts"):
        clusters_of(principal_components(x), count=count)
