"""Many states in two dimensions: principal components, UMAP, clusters, and how far such a picture can be trusted.

A point is a row of x [n, d]. Every result is the same for the same input and seed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import InputError

COMPONENTS = 50  # that UMAP and the clusters are given, and that are kept of each layer
FEWEST = 15  # points of a UMAP: below, every point is every other one's neighbour
NEIGHBOURS = 15
CHECKED = 2000  # points that trustworthiness and silhouette are of; both compare all pairs
SEED = 0
_one_at_a_time = threading.Lock()  # numba's thread pool may end the process where two threads enter it at once


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """`coordinates` [n, k] float64 of the centred points on the first k components; `shares` [k] of the variance that
    lies along each. Where all points are the same there are no components (k = 0)."""

    coordinates: np.ndarray
    shares: np.ndarray


def principal_components(x: np.ndarray, *, most: int = COMPONENTS) -> PrincipalComponents:
    """The first components of points [n, d], at most `most`, in float64. The sign of a component is such that the
    coordinate of largest size is positive. Raises InputError for points that are not finite."""
    from scipy.linalg import svd
    from sklearn.decomposition import PCA

    if not np.isfinite(x).all():
        raise InputError("The activations are NaN or infinite; load the model in float32 or bfloat16.")
    centred = np.asarray(x, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    n, d = centred.shape
    total = float(np.square(centred).sum())
    most = min(most, n - 1, d)
    if most < 1 or total <= (np.finfo(np.float32).eps ** 2) * float(np.square(np.asarray(x, np.float64)).sum()):
        return PrincipalComponents(np.zeros((n, 0)), np.zeros(0))
    if 8 * most < min(n, d):
        fitted = PCA(most, svd_solver="arpack", random_state=SEED).fit(centred)  # exact, only these components
        coordinates, shares = centred @ fitted.components_.T, fitted.explained_variance_ratio_
    else:
        u, s, _ = svd(centred, full_matrices=False)
        coordinates, shares = u[:, :most] * s[:most], np.square(s[:most]) / total
    largest = coordinates[np.abs(coordinates).argmax(axis=0), np.arange(most)]
    return PrincipalComponents(coordinates * np.where(largest < 0, -1.0, 1.0), shares)


@dataclass(frozen=True, eq=False)
class Oriented:
    """The components of one layer, turned as those of the layer before: `components` with the signs that agree best,
    and `compass` [n, 2], their first two turned or mirrored as agrees best with the compass before."""

    components: PrincipalComponents
    compass: np.ndarray


def oriented(layers: Iterable[PrincipalComponents]) -> Iterator[Oriented]:
    """Components have no sign of their own, and two that explain as much may change places from layer to layer: each
    layer takes the orientation of the one before, so that points stay where they are as far as they can."""
    before: Oriented | None = None
    for found in layers:
        if before is not None:
            k = min(found.coordinates.shape[1], before.components.coordinates.shape[1])
            agree = (found.coordinates[:, :k] * before.components.coordinates[:, :k]).sum(axis=0)
            signs = np.ones(found.coordinates.shape[1])
            signs[:k] = np.where(agree < 0, -1.0, 1.0)
            found = PrincipalComponents(found.coordinates * signs, found.shares)
        compass = plane(found)
        yield (before := Oriented(found, compass if before is None else turned_to(compass, before.compass)))


def plane(found: PrincipalComponents) -> np.ndarray:
    """The first two coordinates [n, 2]; 0 where there are fewer."""
    out = np.zeros((len(found.coordinates), 2))
    k = min(2, found.coordinates.shape[1])
    out[:, :k] = found.coordinates[:, :k]
    return out


def turned_to(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Points [n, 2], centred, turned (or mirrored) as comes closest to others [n, 2] (orthogonal Procrustes; nothing is
    stretched)."""
    from scipy.linalg import orthogonal_procrustes

    centred = points - points.mean(axis=0)
    if not np.square(centred).sum() or not np.square(others).sum():
        return centred
    turn, _ = orthogonal_procrustes(centred, others - others.mean(axis=0))
    return centred @ turn


def umap_of(found: Oriented, *, neighbours: int = NEIGHBOURS, seed: int = SEED) -> np.ndarray:
    """UMAP [n, 2] float64 (McInnes et al. 2018) of the first components. It begins at the first two, which keeps more
    of the coarse arrangement (Kobak and Linderman 2021), and is turned as the layer's compass.

    Raises InputError for fewer than FEWEST points, neighbours that there are not, and points that are all the same."""
    n = len(found.compass)
    if n < FEWEST:
        raise InputError(f"UMAP needs at least {FEWEST} texts, and there are {n}; look at the PCA.")
    if not 2 <= neighbours < n:
        raise InputError(f"UMAP of {n} texts takes 2 to {n - 1} neighbours, not {neighbours}.")
    if not found.components.coordinates.shape[1]:
        raise InputError("All texts have the same activation here; there is nothing to lay out.")
    with _one_at_a_time:
        return turned_to(_umap(found, neighbours, seed), found.compass)


def _umap(found: Oriented, neighbours: int, seed: int) -> np.ndarray:
    import torch
    import umap

    spread = np.abs(found.compass).max() or 1.0
    jitter = np.random.default_rng(seed).normal(scale=1e-4, size=found.compass.shape)  # equal points must come apart
    begin = (10 * found.compass / spread + jitter).astype(np.float32)
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that a seed makes it run on one core
            mapper = umap.UMAP(n_components=2, n_neighbors=neighbours, init=begin, random_state=seed, n_jobs=1)
            return np.asarray(mapper.fit_transform(found.components.coordinates.astype(np.float32)), np.float64)
    finally:
        torch.set_num_threads(threads)  # numba's thread pool resets it, and with it the rounding of later products


@dataclass(frozen=True, eq=False)
class PointClusters:
    """`labels` [n]: the cluster of each point, from 0, the largest first. `silhouette`: mean over points, from −1 to 1,
    of how much nearer the own cluster is than the next (Rousseeuw 1987); near 0 there are no clusters to speak of."""

    labels: np.ndarray
    silhouette: float


def clusters_of(found: PrincipalComponents, *, count: int, seed: int = SEED) -> PointClusters:
    """k-means of the first components: the best of ten beginnings. Raises InputError where there are not more different
    points than clusters."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    x = found.coordinates
    # to six digits: what is the same before the components need not be so to the last bit after them
    different = len(np.unique(np.round(x / np.abs(x).max(), 6), axis=0)) if x.shape[1] else 1
    if not 2 <= count < different:
        raise InputError(
            f"{count} clusters need more than {count} texts with different activations (two clusters at least), and "
            f"there are {different}; ask for fewer clusters."
        )
    with _one_at_a_time:
        raw = KMeans(count, n_init=10, random_state=seed).fit(x).labels_
    order = np.argsort(-np.bincount(raw, minlength=count), kind="stable")
    labels = np.argsort(order)[raw]
    some = _some(len(x), seed)
    if len(np.unique(labels[some])) < 2:
        return PointClusters(labels, float("nan"))
    return PointClusters(labels, float(silhouette_score(x[some], labels[some])))


def trustworthiness_of(
    x: np.ndarray, places: np.ndarray, *, neighbours: int = NEIGHBOURS, seed: int = SEED
) -> float | None:
    """How many of a point's neighbours on the map [n, 2] are neighbours in x [n, d], from 0 to 1 (Venna and Kaski 2001;
    1: all, about 0.5: as many as by chance). Of CHECKED points drawn at random among themselves where there are more.
    None where there are too few points for it (not more than twice the neighbours)."""
    from sklearn.manifold import trustworthiness

    some = _some(len(x), seed)
    if len(some) <= 2 * neighbours:
        return None
    return float(trustworthiness(np.asarray(x[some], np.float64), places[some], n_neighbors=neighbours))


def _some(n: int, seed: int) -> np.ndarray:
    """At most CHECKED of n rows, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:CHECKED])
