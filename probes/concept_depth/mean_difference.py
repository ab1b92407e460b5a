"""Difference-of-means probes: the direction from one class's mean to the other's, and the middle between them; of more
than two classes, the nearest class mean, which for two is the same.

The mass-mean probe of Marks and Tegmark (arXiv 2310.06824, §4) without its covariance: nothing is optimised, so the
direction depends on no penalty, and it is the one that moves the mean of one class onto the mean of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from probes.concept_depth import linear_probe, multinomial_probe
from probes.concept_depth.linear_probe import LinearProbes
from probes.concept_depth.many_fits import ManyFits, fit_each
from probes.concept_depth.multinomial_probe import MultinomialProbes


def fit(
    features: Sequence[torch.Tensor] | torch.Tensor,
    labels: np.ndarray,
    *,
    standardize: bool = False,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
) -> LinearProbes:
    """One probe per layer of features [L][n, d] and labels [n] of 0 and 1: coef = mean of class 1 − mean of class 0,
    and an intercept that puts the boundary half way between them. `standardize`: of features divided by their standard
    deviation on these rows (folded in, so that it is divided by the variance here). Raises InputError as
    `linear_probe.fit` does."""
    whole = _whole(labels)
    return linear_probe.probes_of(fit_many(features, *whole, standardize=standardize, device=device, check=check))


def fit_many(
    features: Sequence[torch.Tensor] | torch.Tensor,
    labels: np.ndarray,
    fitted: np.ndarray,
    *,
    standardize: bool = False,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
    keep: int | None = None,
) -> ManyFits:
    """The same for several labellings, as `linear_probe.fit_many`."""
    linear_probe.check_fit(features, labels, fitted)
    y, rows = np.eye(2)[labels.T.astype(int)], fitted.T.astype(np.float64)
    return fit_each(features, y, rows, _between, standardize=standardize, device=device, check=check, keep=keep)


def nearest_mean(
    features: Sequence[torch.Tensor] | torch.Tensor,
    labels: np.ndarray,
    *,
    standardize: bool = False,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
) -> MultinomialProbes:
    """One probe per layer of features [L][n, d] and labels [n] of 0 … k−1: the class whose mean is nearest, which is
    linear, with coef = the class mean and intercept = −½ its squared length (means taken from the mean of all rows).
    Of two classes the difference of their scores is that of `fit`. `standardize` as there. Raises InputError as
    `multinomial_probe.fit` does."""
    whole = _whole(labels)
    found = nearest_means(features, *whole, standardize=standardize, device=device, check=check)
    return multinomial_probe.probes_of(found)


def nearest_means(
    features: Sequence[torch.Tensor] | torch.Tensor,
    labels: np.ndarray,
    fitted: np.ndarray,
    *,
    standardize: bool = False,
    device: torch.device | str | None = None,
    check: Callable[[], None] | None = None,
    keep: int | None = None,
) -> ManyFits:
    """The same for several labellings, as `multinomial_probe.fit_many`."""
    k = multinomial_probe.check_classes(features, labels, fitted)
    y, rows = np.eye(k)[labels.T.astype(int)], fitted.T.astype(np.float64)
    found = fit_each(features, y, rows, _nearest, standardize=standardize, device=device, check=check, keep=keep)
    return multinomial_probe.as_log_odds(found)


def _whole(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One labelling, fitted on all rows."""
    labels = np.asarray(labels)
    return labels[None], np.ones((1, len(labels)), dtype=bool)


def _means(x: torch.Tensor, y: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    """Mean of each class, [b, d, q, k], from rows x [b, n, d], one of each row's classes y [n, q, k], and the rows that
    count [n, q]."""
    share = fitted[..., None] * y
    share = (share / share.sum(0)).flatten(1)
    return torch.matmul(x.mT, share).unflatten(2, y.shape[1:])


def _between(x: torch.Tensor, y: torch.Tensor, fitted: torch.Tensor) -> tuple[torch.Tensor, ...]:
    low, high = _means(x, y, fitted).unbind(-1)
    w = high - low
    return w[..., None], -(w * (high + low) / 2).sum(1)[..., None], *_at_once(w)


def _nearest(x: torch.Tensor, y: torch.Tensor, fitted: torch.Tensor) -> tuple[torch.Tensor, ...]:
    means = _means(x, y, fitted)
    centre = torch.matmul(x.mT, fitted / fitted.sum(0))[..., None]
    w = means - centre
    return w, -(w * (w / 2 + centre)).sum(1), *_at_once(w[..., 0])


def _at_once(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """No iterations and no error, [b, q]."""
    none = torch.zeros_like(w[:, 0])
    return none, none
