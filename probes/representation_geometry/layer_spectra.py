"""The spectra of a checkpoint's layers, their intervals and their finite-sample curve, measured as features pass by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch

from probes.representation_geometry import spectra
from probes.representation_geometry.config import Config
from probes.representation_geometry.features import FINAL, Checkpoint
from probes.representation_geometry.infinite_texts import AtInfinity, LeftOut, at_infinity
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.host_copies import arriving
from workbench.models.model import Model
from workbench.models.sites import Site

CURVE = {
    "checkpoint": pl.String,
    "step": pl.Int64,
    "layer": pl.Int64,
    "n": pl.Int64,
    "rankme": pl.Float64,
    "rankme_singular": pl.Float64,
    "alpha": pl.Float64,
}


@dataclass(frozen=True, eq=False)
class SiteSpectra:
    """What was measured at a site."""

    nested: list[spectra.Spectrum]  # of n/8, n/4, n/2 and all n texts
    bootstraps: list[spectra.Bootstrap]  # of the covariance and of the second moment; none without draws
    left_out: LeftOut | None  # None: not asked for

    @property
    def whole(self) -> spectra.Spectrum:
        return self.nested[-1]


def measure(checkpoint: Checkpoint) -> dict[Site, SiteSpectra]:
    """The spectra at the sites of the layers that are asked for, and behind the final norm.

    With at most as many samples as dimensions the features are held (they are no larger than a covariance); else only
    sums are."""
    config, context, n = checkpoint.config, checkpoint.context, len(checkpoint.texts.ids)
    sites = list(dict.fromkeys([*checkpoint.layers().values(), FINAL]))
    sizes = spectra.subset_sizes(n) if config.curve else [n]
    order = context.rng("subsets").permutation(n)
    found = {}
    for site, nested in (_held if n <= checkpoint.model.width else _summed)(checkpoint, sites, sizes, order):
        draws = [True, False] if config.draws else []
        bootstraps = [spectra.Bootstrap(nested[-1], draws=config.draws, centred=centred) for centred in draws]
        found[site] = SiteSpectra(nested, bootstraps, LeftOut(nested[-1]) if config.curve else None)
    if config.draws or config.curve:
        seed = context.torch_seed("bootstrap") % 2**32
        for rows, features in checkpoint.features():
            weight = spectra.weights(rows, config.draws, seed=seed) if config.draws else torch.zeros(0, len(rows))
            weight = arriving(weight, checkpoint.model.device)
            for site, measured in found.items():
                x = arriving(features[site], checkpoint.model.device)
                for bootstrap in measured.bootstraps:
                    bootstrap.add(weight, x)
                if measured.left_out is not None:
                    measured.left_out.add(x)
            context.check()
    return found


def _held(
    checkpoint: Checkpoint, sites: Sequence[Site], sizes: Sequence[int], order: np.ndarray
) -> Iterator[tuple[Site, list[spectra.Spectrum]]]:
    """(site, spectra of the first texts in `order`, as many as `sizes` say), from features that are held."""
    held: dict[Site, list] = {site: [None] * len(order) for site in sites}
    for rows, features in checkpoint.features(counting=True):
        for site in sites:
            for row, vector in zip(rows, _finite(features[site], site, checkpoint.model)):
                held[site][row] = vector
        checkpoint.context.check()
    for site in sites:
        checkpoint.context.check()
        device = checkpoint.model.device
        x = arriving(torch.stack(held[site]), device)
        some = [arriving(torch.from_numpy(np.sort(order[:size])), device) for size in sizes[:-1]]
        nested = [spectra.from_features(x[rows]) for rows in some]
        yield site, [*nested, spectra.from_features(x, vectors=True)]


def _summed(
    checkpoint: Checkpoint, sites: Sequence[Site], sizes: Sequence[int], order: np.ndarray
) -> Iterator[tuple[Site, list[spectra.Spectrum]]]:
    """The same from sums: each text is added to those of the first of the nested sizes that holds it."""
    joins_at = np.empty(len(order), dtype=int)
    for k, (start, end) in enumerate(zip([0, *sizes], sizes)):
        joins_at[order[start:end]] = k
    sums: dict[Site, list[spectra.Moments]] = {}
    device = checkpoint.model.device
    for rows, features in checkpoint.features(counting=True):
        joined = [np.flatnonzero(joins_at[rows] == k) for k in range(len(sizes))]
        members = [arriving(torch.from_numpy(some), device) for some in joined]
        for site in sites:
            x = arriving(_finite(features[site], site, checkpoint.model), device)
            if site not in sums:
                first = spectra.Moments.like(x)
                more = [replace(first, total=first.total.clone(), outer=first.outer.clone()) for _ in sizes[1:]]
                sums[site] = [first, *more]
            for some, moments in zip(members, sums[site]):
                if len(some):
                    moments.add(x[some])
        checkpoint.context.check()
    for site in sites:
        checkpoint.context.check()
        pending = sums.pop(site)
        total, nested = pending.pop(0), []
        while pending:
            nested.append(spectra.from_moments(total))
            total = total + pending.pop(0)
        yield site, [*nested, spectra.from_moments(total, vectors=True)]


def _finite(x: torch.Tensor, site: Site, model: Model) -> torch.Tensor:
    """Activations [n, d] of the host, looked at there: nobody waits for the device that they go to."""
    if not bool(x.isfinite().all()):
        raise InputError(f"The activations at {site} are NaN or infinite; load the model in float32 or bfloat16.")
    return x


def null_of(model: Model, n: int, config: Config, context: Context) -> dict[str, float]:
    """RankMe and alpha of white Gaussian features [n, width]: what finite samples alone make of features without any
    structure."""
    white = spectra.white_eigenvalues(n, model.width, rng=context.rng("null"), device=model.device)
    return {"rankme_null": float(spectra.rankme(white)), "alpha_null": _power_law(white, config).alpha}


def layer_tables(
    checkpoint: Checkpoint, found: Mapping[Site, SiteSpectra], null: Mapping[str, float]
) -> dict[str, pl.DataFrame]:
    """`layers`, `spectrum` and `curve` of a checkpoint, with warnings where there is nothing to measure."""
    config, where = checkpoint.config, checkpoint.where
    layers, spectrum, curve = [], [], []
    for layer, site in checkpoint.layers().items():
        measured = found[site]
        row = where | {"layer": layer, "site": str(site)} | _numbers(measured, config) | null
        layers.append(row)
        _warn(checkpoint, layer, site, measured.whole, row["alpha_missing"])
        eigenvalues = measured.whole.eigenvalues
        columns = {"layer": layer, "rank": np.arange(1, len(eigenvalues) + 1), "eigenvalue": eigenvalues}
        spectrum.append(pl.DataFrame(where | columns, schema_overrides={"step": pl.Int64, "layer": pl.Int64}))
        for some in measured.nested:
            numbers = {"n": some.n, "rankme": some.rankme, "rankme_singular": some.rankme_singular}
            alpha = _power_law(some.eigenvalues, config).alpha
            curve.append(where | {"layer": layer} | numbers | {"alpha": alpha})
    return {
        "layers": pl.DataFrame(layers, schema_overrides={"step": pl.Int64}),
        "spectrum": pl.concat(spectrum),
        "curve": pl.DataFrame(curve, schema=CURVE),
    }


def _warn(checkpoint: Checkpoint, layer: int, site: Site, spectrum: spectra.Spectrum, alpha_missing: str) -> None:
    model, context = checkpoint.model, checkpoint.context
    enough = checkpoint.config.fit_range[1] <= min(len(checkpoint.texts.ids) - 1, model.width)
    if not spectrum.eigenvalues.sum() > 0:
        context.warn(
            f"The features at {site} of {checkpoint.name} are the same for every text: there is no spectrum to "
            f"describe."
        )
    elif layer == model.n_layers - 1 and alpha_missing and enough:
        context.warn(f"There is no alpha: {alpha_missing}; give a shorter fit_range or more varied texts.")


def _power_law(eigenvalues: np.ndarray, config: Config) -> spectra.PowerLaw:
    return spectra.power_law(eigenvalues, fit_range=config.fit_range, weighted=config.fit_weights == "rank")


def _numbers(measured: SiteSpectra, config: Config) -> dict:
    """The numbers of a row of `layers`."""
    spectrum = measured.whole
    values, fit = spectrum.eigenvalues, _power_law(spectrum.eigenvalues, config)

    def interval(name: str, statistic: Callable[[np.ndarray], np.ndarray], which: int = 0) -> dict[str, float]:
        low = high = float("nan")
        if measured.bootstraps:
            low, high = measured.bootstraps[which].interval(statistic)
        return {f"{name}low": low, f"{name}high": high}

    def alphas(drawn: np.ndarray) -> np.ndarray:
        if fit.reason:
            return np.full(len(drawn), np.nan)
        return spectra.alphas(drawn, fit_range=config.fit_range, weighted=config.fit_weights == "rank")

    return {
        "rankme": spectrum.rankme,
        **interval("ci_", spectra.rankme),
        "rankme_singular": spectrum.rankme_singular,
        **interval("rankme_singular_", lambda drawn: spectra.rankme_singular(np.sqrt(drawn)), 1),
        "rankme_code": float(spectra.rankme(values[:2048], epsilon=spectra.EPSILON)),
        **_at_infinity(measured, config),
        "alpha": fit.alpha,
        **interval("alpha_", alphas),
        "alpha_r2": fit.r2,
        "alpha_intercept": fit.intercept,
        "fit_first": fit.first,
        "fit_last": fit.last,
        "alpha_missing": fit.reason,
        "participation_ratio": float(spectra.participation_ratio(values)),
        **interval("participation_ratio_", spectra.participation_ratio),
        "stable_rank": float(spectra.stable_rank(values)),
        **interval("stable_rank_", spectra.stable_rank),
        "top10_share": float(values[:10].sum() / values.sum()) if values.sum() > 0 else float("nan"),
        "n": spectrum.n,
        "d": spectrum.d,
    }


def _at_infinity(measured: SiteSpectra, config: Config) -> dict[str, float | str]:
    told = AtInfinity()
    if measured.left_out is not None:
        covariance = measured.bootstraps[0] if measured.bootstraps else None
        weighted = config.fit_weights == "rank"
        told = at_infinity(measured.left_out, covariance, fit_range=config.fit_range, weighted=weighted)
    return {
        "rankme_inf": told.rankme,
        "rankme_inf_low": told.rankme_low,
        "rankme_inf_high": told.rankme_high,
        "alpha_inf": told.alpha,
        "alpha_inf_low": told.alpha_low,
        "alpha_inf_high": told.alpha_high,
        "inf_missing": told.reason,
    }
