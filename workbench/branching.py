"""Estimators of the branching factor from sampled continuations (Yang & Holtzman, arXiv 2506.17871), in numpy.

Everything starts from per-step numbers of P prompts × M samples, NaN after a sample's end: the entropy of the distribution that was
sampled from, and the log-probability of the token that was drawn. A branching factor is exp of a mean rate in nats per token:

* entropy: the mean step entropy. Lowest variance at the same cost, the default.
* nll: the mean −log-probability of the sampled tokens (the paper's AEP estimator; needs long outputs).
* compat: what the official code computes: step entropies averaged over the samples still alive, up to 50 positions; beyond that, the
  prefix −log-probability at the last position kept. Positions stop at the 95 % quantile of the lengths and before the first position
  with 3 samples or fewer, so with unequal lengths the value rests on the few longest samples (survivor bias).

`pool="tokens"` weighs samples by their length, `"samples"` gives each the same weight; without early endings they are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ESTIMATORS = ("entropy", "nll", "compat")
POOLS = ("tokens", "samples")
SWITCH = 50  # positions after which compat takes the likelihood (DEFAULT_ASYMPTOTIC_LIMIT)
QUANTILE, SURVIVORS = 0.95, 3  # compat: length limit, and the number of survivors that is too few
SCHEDULE = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200)


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


def log_bf(profile: Profile, estimator: str, *, pool: str = "tokens", counts: np.ndarray | None = None) -> np.ndarray:
    """log BF of every prompt [P, D]; `counts` [D, M] says how often each sample is taken (resamples; default: each once, D = 1)."""
    weights = np.ones((1, profile.lengths.shape[1])) if counts is None else counts
    if estimator == "compat":
        rows = zip(profile.entropy_top, profile.logprob_top, profile.lengths)
        return np.stack([_compat(entropy, logprob, lengths, weights)[0] for entropy, logprob, lengths in rows])
    values = profile.entropy if estimator == "entropy" else -profile.logprob
    return _rate(np.nansum(values, -1), profile.lengths, weights, pool)


def _rate(sums: np.ndarray, lengths: np.ndarray, weights: np.ndarray, pool: str) -> np.ndarray:
    """Mean nats per token [P, D] from sums and lengths [P, M]; samples without tokens count for nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if pool == "tokens":
            return (sums @ weights.T) / (lengths @ weights.T)
        own = np.where(lengths > 0, sums / np.maximum(lengths, 1), 0.0)
        return (own @ weights.T) / ((lengths > 0) @ weights.T.astype(float))


def _compat(entropy: np.ndarray, logprob: np.ndarray, lengths: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log BF [D] of one prompt as the official code computes it, and its curve [D, N] over positions (NaN where it has stopped)."""
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


def prefix_curve(profile: Profile, estimator: str, *, pool: str = "tokens") -> np.ndarray:
    """log BF of everything up to each position [P, N]; the last one is the prompt's log BF."""
    P, M, N = profile.entropy.shape
    if estimator == "compat":
        one = np.ones((1, M))
        return np.stack([_compat(e, p, n, one)[1][0] for e, p, n in zip(profile.entropy_top, profile.logprob_top, profile.lengths)])
    values = profile.entropy if estimator == "entropy" else -profile.logprob
    sums = np.cumsum(np.nan_to_num(values), -1)
    tokens = np.minimum(profile.lengths[..., None], np.arange(1, N + 1))
    if pool == "tokens":
        return sums.sum(1) / tokens.sum(1)
    return (sums / tokens).mean(1)


def window_curve(profile: Profile, window: int, *, least: int = 10) -> np.ndarray:
    """BF in consecutive windows of `window` tokens [P, ⌈N / window⌉]: exp of each sample's mean entropy, averaged over the samples that
    last through the window; NaN where fewer than min(least, M) do."""
    P, M, N = profile.entropy.shape
    out = []
    for start in range(0, N, window):
        stop = start + window
        whole = profile.lengths >= stop
        rate = np.exp(np.nan_to_num(profile.entropy[..., start:stop]).sum(-1) / window)
        enough = whole.sum(1) >= min(least, M)
        with np.errstate(invalid="ignore"):
            out.append(np.where(enough, (rate * whole).sum(1) / np.maximum(whole.sum(1), 1), np.nan))
    return np.stack(out, 1)


def resampled(profile: Profile, estimator: str, *, pool: str, rng: np.random.Generator, draws: int = 1000, size: int | None = None) -> np.ndarray:
    """BF [P, D] of every prompt in `draws` resamples of its samples (with replacement; `size` of them, default M)."""
    M = profile.lengths.shape[1]
    counts = rng.multinomial(size or M, np.full(M, 1 / M), size=draws).astype(float)
    return np.exp(log_bf(profile, estimator, pool=pool, counts=counts))


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values, those that are undefined left out; NaN when none is defined."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def over_prompts(draws: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Mean BF over prompts [D] when prompts are resampled too: draws [P, D] of each prompt, choice [D, P] prompt indices."""
    return np.nanmean(draws[choice, np.arange(draws.shape[1])[:, None]], axis=1)


def enough(profile: Profile, estimator: str, *, pool: str, rng: np.random.Generator, draws: int = 200) -> list[dict]:
    """How the mean BF over the prompts scatters when only m of the samples are taken: one row per m of SCHEDULE up to M."""
    M = profile.lengths.shape[1]
    rows = []
    for m in [m for m in SCHEDULE if m < M] + [M]:
        if estimator == "compat" and m <= SURVIVORS:
            continue
        values = np.nanmean(resampled(profile, estimator, pool=pool, rng=rng, draws=draws, size=m), axis=0)
        low, high = interval(values)
        rows.append({"samples": m, "bf": float(values.mean()), "sd": float(values.std()), "ci_low": low, "ci_high": high,
                     "relative_error": (high - low) / 2 / float(values.mean())})  # fmt: skip
    return rows
