"""What sets a target apart from the pool: how often each feature fires in its examples, and how much of their
similarity is the feature's.

The similarity of a sample z to a prototype p is a sum over features, J = Σ_k min(z_k, p_k) / Σ max(z, p), and so is
J(target) − J(pool): a feature's contribution is its part of J, on average over the examples (each against the mean of
the others), minus its part on average over the pool. What is everywhere, such as a feature of full stops, has hardly
any. The lift is the share of the examples' tokens on which a feature fires over that of the pool's tokens. The pool is
all there is to select from, and known; what varies are the examples, so they are the clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from probes.data_selection.sample_vectors import Reader
from probes.data_selection.samples import TokenizedSamples
from workbench.sae.sparse_rows import Rows
from workbench.stats.clusters import FEWEST, false_discovery

LEAST_LIFT = 2.0  # from which a feature may be called distinctive
LEVEL = 0.05  # of the false discovery rate


@dataclass(frozen=True, eq=False)
class TargetFeatures:
    """Of one target, what its `n` examples say of every feature, each [width] float64."""

    n: int
    part: np.ndarray  # the feature's mean part of the similarity of an example to the mean of the others
    density: np.ndarray  # share of tokens on which it fires
    variance: np.ndarray  # of that share, over examples
    fired_in: np.ndarray  # in how many examples


@dataclass(frozen=True, eq=False)
class Lifts:
    """Of one target against the pool, for every feature: [width] float64 each."""

    lift: np.ndarray  # NaN where the pool never fires it
    spread: np.ndarray  # its relative standard error; NaN where it fires in fewer than five examples
    contribution: np.ndarray
    p: np.ndarray
    p_adjusted: np.ndarray
    tested: int  # features that fire anywhere

    @property
    def distinctive(self) -> np.ndarray:
        """Which features are the target's own: more frequent there by LEAST_LIFT and beyond chance, and with a part in
        its likeness. Of those called so, in expectation, a share of at most LEVEL is called so by chance."""
        enough = np.nan_to_num(self.lift) >= LEAST_LIFT
        return (np.nan_to_num(self.p_adjusted, nan=1.0) < LEVEL) & enough & (self.contribution > 0)

    def first(self, features: np.ndarray, contribution: np.ndarray) -> np.ndarray:
        """The places in `features` of those with any `contribution`: the target's own first, then the largest."""
        order = np.lexsort((-contribution, ~self.distinctive[features]))
        return order[contribution[order] > 0]


def target_features(reader: Reader, samples: TokenizedSamples, center: torch.Tensor) -> TargetFeatures:
    """Counted on the examples of a target; `center` [width] is the mean of their vectors."""
    width, n = reader.sae.d_sae, len(samples)  # pyright: ignore[reportOptionalMemberAccess]
    part, keys = np.zeros(width), [np.empty(0, np.int64)]
    for batch in reader.read(samples.lists(range(n)), samples.masks):
        tokens = batch.tokens
        if tokens is None:
            continue
        if batch.indices:
            part += parts_alone(batch.vectors["sae"], center, n).cpu().numpy()
            whose = np.asarray(batch.indices)[batch.owner.cpu().numpy()]
            keys.append(whose[tokens.row.cpu().numpy()] * width + tokens.feature.cpu().numpy())
        else:  # what all begin with, in every example that it is of
            keys += [row * width + tokens.feature.cpu().numpy() for row in batch.rows]
    key, count = np.unique(np.concatenate(keys), return_counts=True)
    length, feature = samples.counted[key // width], key % width

    def total(value: np.ndarray) -> np.ndarray:
        return np.bincount(feature, weights=value, minlength=width)

    fired, squares, crossed, fired_in = map(total, (count, count**2, count * length, np.ones(len(count))))
    density, variance = shares_of_tokens(fired, squares, crossed, samples.counted.astype(np.float64))
    return TargetFeatures(n, part / n, density, variance, fired_in)


def shares_of_tokens(
    fired: np.ndarray, squares: np.ndarray, crossed: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The share of all tokens on which each feature fires, and its variance over texts of so many `tokens` [n] (a ratio
    estimator): from Σ f, Σ f² and Σ f · tokens, [width] each, over the texts' numbers f of tokens on which it fires."""
    n, density = len(tokens), fired / tokens.sum()
    off = squares - 2 * density * crossed + density**2 * (tokens**2).sum()  # Σ (f − density · tokens)²
    return density, off.clip(0) * n / max(n - 1, 1) / tokens.sum() ** 2


def parts_alone(rows: Rows, center: torch.Tensor, n: int) -> torch.Tensor:
    """[width]: the sum, over some of the `n` samples whose mean is `center`, of every feature's part of the similarity
    to the mean of the others (of a single sample: to itself)."""
    at, value = center[rows.feature], rows.value.double()
    rest = (at if n < 2 else (n * at - value) / (n - 1)).clamp(min=0)
    total = rows.totals
    whole = center.sum() if n < 2 else (n * center.sum() - total) / (n - 1)
    shared = torch.minimum(value, rest)
    most = total + whole - rows.sums(shared)
    return _per_feature(rows, shared / most[rows.row])


def parts(rows: Rows, centers: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """[targets, width]: the sum, over samples counted so many `times` each, of every feature's part of their
    similarities to the centres [targets, width]."""
    out = []
    for center in centers:
        shared, most = shared_with(rows, center)
        out.append(_per_feature(rows, shared / most[rows.row] * times[rows.row]))
    return torch.stack(out)


def shared_with(rows: Rows, center: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """min(z, p) of every entry, [entries], and Σ max(z, p) of every sample, [n]."""
    shared = torch.minimum(rows.value.double(), center[rows.feature])
    return shared, rows.totals + center.sum() - rows.sums(shared)


def _per_feature(rows: Rows, values: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(rows.width, dtype=torch.float64, device=values.device)
    return total.index_add_(0, rows.feature, values)


def lifts(found: TargetFeatures, pool: Mapping[str, Any], target: int) -> Lifts:
    """Against the pool's statistics (`fired` and `parts` are sums over its tokens and rows).

    p is two-sided, of a lift of 1: Student's t of the root over examples (counts of rare events have a root of steady
    variance; a logarithm takes too many of them for lifts), and 1 for a feature that fires in fewer than five of them.
    It is adjusted for all features that fire anywhere."""
    tokens, _, rows = pool["tokens"]
    density = pool["fired"] / tokens
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = np.where(density > 0, found.density / density, np.nan)
        spread = np.where(found.fired_in >= FEWEST, np.sqrt(found.variance) / found.density, np.nan)
        p = 2 * stats.t.sf(2 * np.abs(1 - 1 / np.sqrt(lift)) / spread, found.n - 1)
    anywhere = (found.density > 0) | (density > 0)
    # a feature that the pool never fires has no lift, and is looked at all the same
    p = np.where(anywhere, np.where(np.isnan(p), 1.0, p), np.nan)
    contribution = found.part - pool["parts"][target] / rows
    return Lifts(lift, spread, contribution, p, false_discovery(p), int(anywhere.sum()))


def ends_of(lift: Any, spread: Any, n: int, *, level: float = 0.95) -> tuple[Any, Any]:
    """The interval of a lift with that relative standard error over n examples: symmetric in its root. NaN where it
    would have no width."""
    half = np.where(spread > 0, stats.t.ppf(0.5 + level / 2, max(n - 1, 1)) * spread / 2, np.nan)
    return lift * (1 - half).clip(0) ** 2, lift * (1 + half) ** 2


def marks(lifted: Sequence[Lifts]) -> dict[str, float]:
    """How many features are a target's own, over all targets, and of how many the false discovery rate allows that they
    are so by chance."""
    many = sum(int(found.distinctive.sum()) for found in lifted)
    return {"distinctive_features": many, "expected_false_features": LEVEL * many} if lifted else {}


def candidates(found: TargetFeatures, most: int) -> np.ndarray:
    """The features that may be among the `most` whose contribution is largest: a contribution is never more than the
    part of the examples alone. Far more than are shown."""
    wanted = max(8 * most, 100) if most else 0
    order = np.argsort(-found.part, kind="stable")[:wanted]
    return order[found.part[order] > 0]


def described(feature: int, found: TargetFeatures, lift: Lifts, shown: int) -> dict[str, Any]:
    """The columns of `features` that say what sets a feature apart. Its interval is one of the `shown` that were picked
    among `tested`: of all that are shown, 95 % hold (false coverage rate, Benjamini and Yekutieli 2005)."""
    value, spread = lift.lift[feature], lift.spread[feature]
    ends = ends_of(value, spread, found.n, level=1 - LEVEL * min(1.0, shown / max(lift.tested, 1)))
    tested = np.isfinite(spread)
    return {
        "density_target": found.density[feature],
        "lift": value,
        "lift_low": ends[0],
        "lift_high": ends[1],
        "contribution": lift.contribution[feature],
        "p": lift.p[feature] if tested else np.nan,
        "p_adjusted": lift.p_adjusted[feature] if tested else np.nan,
        "distinctive": bool(lift.distinctive[feature]),
        "n": found.n,
    }
