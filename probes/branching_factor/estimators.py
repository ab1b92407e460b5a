"""Estimators of the branching factor from sampled continuations (Yang & Holtzman, arXiv 2506.17871), in numpy.

Everything starts from per-step numbers of P prompts × M samples, NaN after a sample's end: the entropy of the
distribution that was sampled from, and the log-probability of the token that was drawn. A branching factor is exp of a
mean rate in nats per token:

* entropy: the mean step entropy. Lowest variance at the same cost, the default.
* nll: the mean −log-probability of the sampled tokens (the paper's AEP estimator; needs long outputs).
* compat: what the official code computes: step entropies averaged over the samples still alive, up to 50 positions;
beyond that, the
  prefix −log-probability at the last position kept. Positions stop at the 95 % quantile of the lengths and before the
  first position with 3 samples or fewer, so with unequal lengths the value rests on the few longest samples (survivor
  bias).

`pool="tokens"` weighs samples by their length, `"samples"` gives each the same weight; without early endings they are
the same.

exp of a mean, or of a ratio, over few samples lies above its true value, and averaging over prompts does not remove
that. `bias` takes it out (entropy and nll; compat stays what the official code computes): the jackknife over samples
corrects the rate, half its jackknife variance the convexity of exp. The paper's own estimator is the plain one.
Intervals are in probes.branching_factor.bf_intervals; what has no formula (compat) has bootstrap percentiles over
samples, moved onto the value that is reported, so that the bias of a resample, which comes on top, does not move them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workbench.stats.clusters import FEWEST
from workbench.stats.intervals import multinomial_counts, percentiles

ESTIMATORS = ("entropy", "nll", "compat")
POOLS = ("tokens", "samples")
SWITCH = 50  # positions after which compat takes the likelihood (DEFAULT_ASYMPTOTIC_LIMIT)
QUANTILE, SURVIVORS = 0.95, 3  # compat: length limit, and the number of survivors that is too few
SCHEDULE = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200)
BIAS = ("jackknife", "plain")
LEAST = 10  # samples that must last through a window, as in the official code (all, where there are fewer)


@dataclass(eq=False)
class Profile:
    """Per-step numbers of one condition: each [P, M, N] float, NaN after a sample's end; lengths [P, M] int."""

    lengths: np.ndarray
    entropy: np.ndarray
    logprob: np.ndarray
    entropy_top: np.ndarray  # of the 50 likeliest tokens, as the official code sees them
    logprob_top: np.ndarray

    def prompts(self, chosen) -> Profile:
        """The same for some prompts."""
        return Profile(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def without_first(self, steps: int) -> Profile:
        """The same without the first steps of every sample (templates fix the first tokens of a chat model)."""
        later = [getattr(self, name)[..., steps:] for name in list(self.__dataclass_fields__)[1:]]
        return Profile(np.maximum(self.lengths - steps, 0), *later)


def log_bf(
    profile: Profile, estimator: str, *, pool: str = "tokens", bias: str = "plain", counts: np.ndarray | None = None
) -> np.ndarray:
    """log BF of every prompt [P, D]; `counts` [D, M] says how often each sample is taken (resamples; default: each
    once, D = 1)."""
    weights = np.ones((1, profile.lengths.shape[1])) if counts is None else counts
    return np.stack(
        [_of_prompt(profile, p, estimator, weights, pool=pool, bias=bias) for p in range(len(profile.lengths))]
    )


def _of_prompt(profile: Profile, p: int, estimator: str, weights: np.ndarray, *, pool: str, bias: str) -> np.ndarray:
    """log BF [D] of prompt p in resamples that take each sample `weights` [D, M] times."""
    if estimator == "compat":
        return _compat(profile.entropy_top[p], profile.logprob_top[p], profile.lengths[p], weights)[0]
    values = profile.entropy if estimator == "entropy" else -profile.logprob
    sums, sizes = _pooled(np.nansum(values[p], -1), profile.lengths[p], pool)
    return _rate(sums, sizes, weights) if bias == "plain" else _jackknifed(sums, sizes, weights)


def _pooled(sums: np.ndarray, lengths: np.ndarray, pool: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator that each sample brings to the mean rate; samples without tokens bring nothing."""
    if pool == "tokens":
        return sums, lengths
    return np.where(lengths > 0, sums / np.maximum(lengths, 1), 0.0), (lengths > 0).astype(float)


def _rate(sums: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean nats per token [..., D] from what the samples bring, [..., M], and weights [D, M]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums @ weights.T) / (sizes @ weights.T)


def _jackknifed(sums: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As `_rate`, less the bias that exp of it would have (at least 0: no branching factor is below 1)."""
    n = weights.sum(-1)
    plain = _rate(sums, sizes, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        without = ((sums @ weights.T)[..., None] - sums[..., None, :]) / (
            (sizes @ weights.T)[..., None] - sizes[..., None, :]
        )  # [..., D, M]
        defined = (np.isfinite(without) | (weights == 0)).all(-1) & (n > 1)
        without = np.where(weights > 0, without, 0.0)
        mean = (weights * without).sum(-1) / n
        variance = (n - 1) / n * (weights * (without - mean[..., None]) ** 2).sum(-1)
        value = np.maximum(n * plain - (n - 1) * mean - variance / 2, 0.0)
    return np.where(defined, value, plain)


def _compat(
    entropy: np.ndarray, logprob: np.ndarray, lengths: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log BF [D] of one prompt as the official code computes it, and its curve [D, N] over positions (NaN where it has
    stopped)."""
    M, N = entropy.shape
    alive = lengths[:, None] > np.arange(N)
    survivors = weights @ alive
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_entropy = (weights @ np.nan_to_num(entropy)) / survivors
        prefix = np.where(alive, np.cumsum(np.nan_to_num(logprob), 1) / np.arange(1, N + 1), 0.0)
        mean_loglik = (weights @ prefix) / survivors
    kept = (np.arange(N) < _quantile(lengths, weights)[:, None].astype(int)) & (survivors > SURVIVORS)
    kept = np.logical_and.accumulate(kept, axis=1)
    position = np.arange(1, N + 1)
    by_entropy = np.cumsum(np.where(kept, mean_entropy, 0.0), 1) / position
    curve = np.where(kept, np.where(position <= SWITCH, by_entropy, -mean_loglik), np.nan)
    last = kept.sum(1)
    value = np.where(last > 0, np.take_along_axis(curve, np.maximum(last - 1, 0)[:, None], 1)[:, 0], np.nan)
    return value, curve


def _quantile(lengths: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """np.quantile(lengths, 0.95) of each resample [D] (linear interpolation), `weights` [D, M] being counts."""
    order = np.argsort(lengths)
    upto = np.cumsum(weights[:, order], 1)
    at = QUANTILE * (upto[:, -1] - 1)
    low = np.floor(at)
    pick = lambda i: lengths[order][(upto <= i[:, None]).sum(1)]  # noqa: E731
    a, b = pick(low), pick(np.minimum(low + 1, upto[:, -1] - 1))
    return a + (b - a) * (at - low) + 1e-9  # the interpolation must not fall just below a whole length


def sample_parts(profile: Profile, estimator: str, pool: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator [P, M] that each sample brings to the rate of its prompt (entropy, nll)."""
    values = profile.entropy if estimator == "entropy" else -profile.logprob
    return _pooled(np.nansum(values, -1), profile.lengths, pool)


def prefix_curve(profile: Profile, estimator: str, *, pool: str = "tokens", bias: str = "plain") -> np.ndarray:
    """log BF of everything up to each position [P, N]; the last one is the prompt's log BF."""
    N, one = profile.entropy.shape[2], np.ones((1, profile.lengths.shape[1]))
    values = profile.entropy if estimator == "entropy" else -profile.logprob
    rate = _rate if bias == "plain" else _jackknifed
    curves = np.full((len(profile.lengths), N), np.nan)
    for p, lengths in enumerate(profile.lengths):
        if estimator == "compat":
            curves[p] = _compat(profile.entropy_top[p], profile.logprob_top[p], lengths, one)[1][0]
            continue
        tokens = np.minimum(lengths[:, None], np.arange(1, N + 1))
        sums, sizes = _pooled(np.cumsum(np.nan_to_num(values[p]), -1), tokens, pool)
        curves[p] = rate(sums.T, sizes.T, one)[..., 0]
    return curves


def window_curve(profile: Profile, window: int, *, least: int = LEAST) -> np.ndarray:
    """BF in consecutive windows of `window` tokens [P, ⌈N / window⌉]: exp of each sample's mean entropy, averaged over
    the samples that last through the window; NaN where fewer than min(least, M) do. The last window may be shorter: it
    ends where the longest sample does."""
    M, N = profile.entropy.shape[1:]
    starts = np.arange(0, N, window)
    stops = np.minimum(starts + window, N)
    whole = profile.lengths[..., None] >= stops  # [P, M, windows]
    rate = np.exp(np.add.reduceat(np.nan_to_num(profile.entropy), starts, axis=-1) / (stops - starts))
    count = whole.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count >= min(least, M), np.where(whole, rate, 0.0).sum(1) / count, np.nan)


def resampled(
    profile: Profile, estimator: str, *, pool: str, rng: np.random.Generator, draws: int = 1000
) -> np.ndarray:
    """Plain BF [P, D] of every prompt in `draws` resamples of its samples with replacement, each prompt with resamples
    of its own."""
    one = lambda p, w: _of_prompt(profile, p, estimator, w, pool=pool, bias="plain")  # noqa: E731
    return np.exp(np.stack([one(p, w) for p, w in enumerate(_resamples(profile, rng, draws))]))


def _resamples(profile: Profile, rng: np.random.Generator, draws: int) -> Iterator[np.ndarray]:
    """For each prompt, how often each of its samples is taken [D, M]."""
    P, M = profile.lengths.shape
    for _ in range(P):
        yield multinomial_counts(M, draws, rng)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values, those that are undefined left out; NaN when none is defined."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = percentiles(values, level)
    return float(low), float(high)


def bounds(values: np.ndarray) -> tuple[float, float]:
    """`interval` of branching factors, which are at least 1; NaN when the values have no spread because there was
    nothing to resample."""
    low, high = interval(values)
    return max(low, 1.0), max(high, 1.0)


def around(value: float, draws: np.ndarray) -> np.ndarray:
    """`draws` [D] scaled so that the mean of those that are defined is `value`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        known = np.isfinite(draws)
        return value * draws / (np.where(known, draws, 0.0).sum() / known.sum())


def enough(
    profile: Profile, estimator: str, *, pool: str, rng: np.random.Generator, bias: str = "jackknife", draws: int = 200
) -> list[dict]:
    """What the mean BF over these prompts would have been with m samples each: one row per m of SCHEDULE up to M.

    bf is its mean over random subsets of m samples, so its distance from the value of all M (bias-corrected) shows the
    bias at m. sd is the scatter of independent runs with m samples: that of the subsets, which overlap, over √(1 −
    m/M); at m = M that of resamples. relative_error is the root mean square error over the value, null where M is too
    small to know (fewer than 5)."""
    P, M = profile.lengths.shape
    best = float(np.nanmean(np.exp(log_bf(profile, estimator, pool=pool, bias="jackknife"))))
    rows = []
    for m in [m for m in SCHEDULE if m < M] + [M]:
        if estimator == "compat" and m <= SURVIVORS:
            continue
        values = np.empty((P, draws))
        for p, whole in enumerate(_resamples(profile, rng, draws)):
            part = (rng.random((draws, M)).argsort(1) < m).astype(float) if m < M else whole
            values[p] = np.exp(_of_prompt(profile, p, estimator, part, pool=pool, bias="plain" if m == M else bias))
        mean = np.nanmean(values, axis=0)
        if m == M:
            centre, scale = float(np.nanmean(np.exp(log_bf(profile, estimator, pool=pool, bias=bias)))), 1.0
        else:
            centre, scale = float(mean.mean()), 1 / np.sqrt(1 - m / M)
        sd = float(mean.std()) * scale if M > 1 else float("nan")
        low, high = bounds(centre + (mean - mean.mean()) * scale) if M >= FEWEST and sd > 0 else (float("nan"),) * 2
        error = float(np.hypot(centre - best, sd)) / best if M >= FEWEST else float("nan")
        rows.append({"samples": m, "bf": centre, "sd": sd, "ci_low": low, "ci_high": high, "relative_error": error})
    return rows


def enough_samples(rows: list[dict], limit: float = 0.05) -> int | None:
    """The smallest number of samples from which on the relative error stays below `limit`; None where none does or it
    is not known."""
    found = None
    for row in reversed(rows):
        if not row["relative_error"] < limit:
            break
        found = row["samples"]
    return found
