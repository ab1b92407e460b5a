"""Difference-of-means probes: the direction from one class's mean to the other's, and the middle between them; of more
than two classes, the nearest class mean, which for two is the same.

The mass-mean probe of Marks and Tegmark (arXiv 2310.06824, §4) without its covariance: nothing is optimised, so the
direction depends on no penalty, and it is the one that moves the mean of one class onto the mean of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from probes.concept_depth import linear_probe
from probes.concept_depth.linear_probe import LinearProbes
from probes.concept_depth.multinomial_probe import MultinomialProbes, check_classes


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
    linear_probe.check_fit(features, labels)
    ones = torch.from_numpy(np.asarray(labels).astype(bool))
    coefs, intercepts = [], []
    for x in features:
        if check is not None:
            check()
        own = x.to(device if device is not None else x.device).double()
        there = ones.to(own.device)
        high, low = own[there].mean(0), own[~there].mean(0)
        w = high - low
        if standardize:
            spread = own.std(0, correction=0)
            # a constant feature tells nothing; what is left of it is rounding
            w = torch.where(spread > 1e-12 * own.mean(0).abs().clamp(min=1e-30), w / spread.square(), 0.0)
        coefs.append(w.cpu())
        intercepts.append(-(w @ (high + low) / 2).cpu())
    n_layers = len(coefs)
    zero = np.zeros(n_layers)
    return LinearProbes(
        torch.stack(coefs), torch.stack(intercepts), zero.astype(int), zero, np.ones(n_layers, dtype=bool)
    )


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
    k = check_classes(features, labels)
    coefs, intercepts = [], []
    for x in features:
        if check is not None:
            check()
        own = x.to(device if device is not None else x.device).double()
        centre, truth = own.mean(0), torch.as_tensor(np.asarray(labels), device=own.device)
        means = torch.stack([own[truth == j].mean(0) - centre for j in range(k)])
        spread = own.std(0, correction=0)
        # a constant feature tells nothing; what is left of it is rounding
        scale = torch.where(spread > 1e-12 * centre.abs().clamp(min=1e-30), 1 / spread.square(), 0.0)
        w = means * scale if standardize else means
        coefs.append(w.cpu())
        intercepts.append((-(w * means).sum(1) / 2 - w @ centre).cpu())
    zero = np.zeros(len(coefs))
    return MultinomialProbes(
        torch.stack(coefs), torch.stack(intercepts), zero.astype(int), zero, np.ones(len(coefs), dtype=bool)
    )
