"""Which heads have a role: tests over subjects, with the false discovery rate controlled over heads.

A head is on a *side* by the sign of its mean score. It has the *role* of that side if its adjusted p (Student's t over
subjects, Benjamini and Hochberg over heads) is below FALSE_DISCOVERIES and its mean score has a least size. A head that
pulls one way on one kind of conflict and the other way on another, both shown in that sense, is `mixed`, whatever its
mean says; so is one that serves both answers and favours neither. (Superposition: JuICE, arXiv 2503.10996.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.knowledge_conflict.config import BOTH, FALSE_DISCOVERIES, Config
from probes.knowledge_conflict.items import Item, kinds
from workbench.stats.clusters import FEWEST, clusters_of, false_discovery, p_of_zero

NOISE = 1e-3  # effects below this share of the largest are rounding, not a side


@dataclass(frozen=True)
class Roles:
    """For every head, each [layers, H]: the side and the role (memory, context, mixed, none), p of its score being 0
    and that p adjusted for the number of heads, and what a mixed head is mixed by."""

    side: np.ndarray
    role: np.ndarray
    p: np.ndarray
    p_adjusted: np.ndarray
    mixed_by: np.ndarray


def head_roles(score: np.ndarray, effects: np.ndarray, items: Sequence[Item], config: Config) -> Roles:
    """The roles that scores [n, layers, H] and importances [n, layers, H, 2] of the items support."""
    clusters = clusters_of(np.array([item.subject for item in items]))
    p = p_of_zero(score, clusters)
    adjusted = false_discovery(p)
    side = sides(score.mean(0), effects.mean(0))
    sure = (adjusted < FALSE_DISCOVERIES) & (np.abs(score.mean(0)) >= config.least_effect)
    role = np.where(sure, side, "none").astype(object)
    both = np.zeros(p.shape, bool)
    if config.metric not in BOTH:
        worst = p_of_zero(effects, clusters).max(-1)  # both are shown where the less sure one is
        both = (false_discovery(worst) < FALSE_DISCOVERIES) & (effects.mean(0).min(-1) >= config.least_effect) & ~sure
    mixed_by = _opposed(score, items, config)
    mixed_by = np.where((mixed_by == "") & both, "serves both answers", mixed_by)
    role = np.where(mixed_by != "", "mixed", role)
    return Roles(side, role.astype(str), p, adjusted, mixed_by.astype(str))


def sides(score: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The side that each head pulls towards, "memory", "context" or "none" [layers, H], from its mean score [layers, H]
    and importances [layers, H, 2]."""
    floor = NOISE * max(float(np.abs(mean).max()), 1e-12)
    memory = (score > floor) & (mean[..., 0] > floor)
    other = (score < -floor) & (mean[..., 1] > floor)
    return np.where(memory, "memory", np.where(other, "context", "none"))


def strongest(score: np.ndarray, items: Sequence[Item]) -> np.ndarray:
    """The largest size of each head's mean score, over all items and within every kind of conflict of five subjects or
    more, [layers, H]: a head whose signs cancel over kinds is as strong as it is within them."""
    sizes = [np.abs(score.mean(0))]
    for _, _, chosen in kinds(items):
        if len({items[i].subject for i in chosen}) >= FEWEST:
            sizes.append(np.abs(score[chosen].mean(0)))
    return np.max(sizes, axis=0)


def _opposed(score: np.ndarray, items: Sequence[Item], config: Config) -> np.ndarray:
    """For each head, in words, the kinds of conflict of one column in which its score is shown to have opposite signs;
    else "". All kinds of all columns and heads are one family of tests."""
    subjects, found = np.array([item.subject for item in items]), kinds(items)
    words = np.full(score.shape[1:], "", dtype=object)
    if not found:
        return words
    mean = np.stack([score[chosen].mean(0) for _, _, chosen in found])
    adjusted = false_discovery(
        np.stack([p_of_zero(score[chosen], clusters_of(subjects[chosen])) for *_, chosen in found])
    )
    sure = (adjusted < FALSE_DISCOVERIES) & (np.abs(mean) >= config.least_effect)
    for column in dict.fromkeys(column for column, *_ in found):
        here = [n for n, (of, *_) in enumerate(found) if of == column]
        up, down = (np.where(sure[here], sign * mean[here], -np.inf) for sign in (1, -1))
        for place in zip(*np.nonzero((up.max(0) > 0) & (down.max(0) > 0) & (words == ""))):
            most = [here[int(np.argmax(one[(slice(None), *place)]))] for one in (up, down)]
            words[place] = ", ".join(f"{column} {found[n][1]} {mean[(n, *place)]:+.2f}" for n in most)
    return words
