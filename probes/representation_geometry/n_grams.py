"""An n-gram model with unlimited back-off, counted only where it is asked: what a model that memorised its text would
say.

p(token | context) uses the longest suffix of the context, up to n - 1 tokens, that the text holds: count(suffix, token)
/ count(suffix). This is the infini-gram estimate (Liu et al., arXiv 2401.17377) with a bounded n. Only the contexts
that are asked for are counted, so memory grows with the questions and not with the text. Where the text holds what is
asked about, that stretch is left out of its own counts: else every context is found with its own next token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.models.model import Model
from workbench.stats.clusters import FEWEST
from workbench.stats.intervals import percentiles

Suffix = tuple[int, ...]
DRAWS = 200


@dataclass(frozen=True, eq=False)
class Counted:
    """Of every token but the first of each row, [len - 1]: its n-gram probability (``probabilities``), its share of all
    tokens (``frequencies``) and the length of the suffix that was used (``lengths``); and how many of the rows are in
    the text that was counted (``left_out``)."""

    probabilities: list[np.ndarray]
    frequencies: list[np.ndarray]
    lengths: list[np.ndarray]
    left_out: int


def in_text(model: Model, path: str, rows: Sequence[Sequence[int]], own: Sequence[str], *, order: int) -> Counted:
    """The n-grams of the texts of a file, for rows whose texts are `own`."""
    texts = read_table(path, required=("text",), what="n-gram text")["text"]
    stretches = [model.encode(text, bos=False)[: len(row)] for text, row in zip(own, rows)]
    return count((model.encode(text, bos=False) for text in texts), rows, own=stretches, order=order)


def count(
    text: Iterable[Sequence[int]],
    rows: Sequence[Sequence[int]],
    *,
    own: Sequence[Sequence[int]] | None = None,
    order: int = 5,
) -> Counted:
    """n-grams of `text` (token ids of documents; contexts do not cross them) at every token of the `rows`. `own`: of
    each row, the tokens that are left out of its counts wherever a document holds all of them, one after another.

    Raises InputError for a text without tokens, or without any but a row's own."""
    if order < 1:
        raise InputError(f"The order of an n-gram model is at least 1, not {order}.")
    wanted = [{suffix for end in range(1, len(row)) for suffix in _suffixes(row, end, order)} for row in rows]
    every = set().union(*wanted)
    context, joint = Counter(), Counter()
    taken = [(Counter(), Counter()) for _ in rows]
    for document in text:
        document = list(document)
        _add(context, joint, document, range(len(document)), every, order)
        for row, stretch in enumerate(own or ()):
            for start in _places(stretch, document):
                _add(*taken[row], document, range(start, start + len(stretch)), wanted[row], order)
    if not context[()]:
        raise InputError("The text of the n-gram model has no tokens.")
    found, alone, used = [], [], []
    for number, (row, (less, less_joint)) in enumerate(zip(rows, taken), 1):
        if context[()] == less[()]:
            raise InputError(
                f"The text of the n-gram model has no tokens but those of text {number} itself; give more."
            )
        p, frequency, lengths = np.zeros(len(row[1:])), np.zeros(len(row[1:])), np.zeros(len(row[1:]), dtype=int)
        for end in range(1, len(row)):
            suffix = next(some for some in _suffixes(row, end, order) if context[some] > less[some])
            seen = joint[suffix, row[end]] - less_joint[suffix, row[end]]
            p[end - 1], lengths[end - 1] = seen / (context[suffix] - less[suffix]), len(suffix)
            frequency[end - 1] = (joint[(), row[end]] - less_joint[(), row[end]]) / (context[()] - less[()])
        found.append(p)
        alone.append(frequency)
        used.append(lengths)
    return Counted(found, alone, used, sum(less[()] > 0 for less, _ in taken))


def _suffixes(row: Sequence[int], end: int, order: int) -> Iterator[Suffix]:
    """The contexts of the token at `end`, longest first."""
    for length in range(min(order - 1, end), -1, -1):
        yield tuple(row[end - length : end])


def _add(
    context: Counter, joint: Counter, document: Sequence[int], ends: Iterable[int], wanted: set[Suffix], order: int
) -> None:
    for end in ends:
        for suffix in _suffixes(document, end, order):
            if suffix in wanted:
                context[suffix] += 1
                joint[suffix, document[end]] += 1


def _places(stretch: Sequence[int], document: Sequence[int]) -> Iterator[int]:
    """Where the document holds the stretch, without overlap."""
    if not len(stretch) or len(stretch) > len(document):
        return
    needle, hay = (np.asarray(ids, np.int64).tobytes() for ids in (stretch, document))
    at = hay.find(needle)
    while at >= 0:
        if at % 8:  # between two tokens
            at = hay.find(needle, at + 1)
            continue
        yield at // 8
        at = hay.find(needle, at + len(needle))


def memorisation(
    losses: Sequence[np.ndarray], counted: Sequence[np.ndarray], context: Context
) -> tuple[float, float, float]:
    """Rank correlation of the model's log-probabilities with n-gram probabilities of the same tokens, with its
    interval: whole texts are resampled, and below five of them there is none."""
    sizes = [loss.shape[1] for loss in losses]
    ours, theirs = -np.concatenate([loss[0] for loss in losses]), np.concatenate(counted)
    text = np.repeat(np.arange(len(sizes)), sizes)
    some = np.sort(context.rng("memorisation").permutation(len(ours))[:4000])
    ours, theirs, text = ours[some], theirs[some], text[some]
    rows = [np.flatnonzero(text == one) for one in np.unique(text)]
    if len(rows) < FEWEST:
        return rank_correlation(ours, theirs), float("nan"), float("nan")
    rng = context.rng("memorisation interval")
    drawn = []
    for _ in range(DRAWS):
        chosen = np.concatenate([rows[one] for one in rng.integers(0, len(rows), len(rows))])
        drawn.append(rank_correlation(ours[chosen], theirs[chosen]))
    low, high = percentiles(np.array(drawn))
    return rank_correlation(ours, theirs), float(low), float(high)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's ρ; NaN where one of them does not vary."""
    from scipy.stats import spearmanr

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)
