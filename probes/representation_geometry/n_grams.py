"""An n-gram model with unlimited back-off, counted only where it is asked: what a model that memorised its text would
say.

p(token | context) uses the longest suffix of the context, up to n - 1 tokens, that the text holds: count(suffix, token)
/ count(suffix). This is the infini-gram estimate (Liu et al., arXiv 2401.17377) with a bounded n. Only the contexts
that are asked for are counted, so memory grows with the questions and not with the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.stats.intervals import spearman

if TYPE_CHECKING:
    from workbench.models.model import Model


def in_text(model: Model, path: str, rows: Sequence[Sequence[int]], *, order: int) -> list[np.ndarray]:
    """n-gram probability of every token but the first of each row, counted in the texts of a file."""
    texts = read_table(path, required=("text",), what="n-gram text")["text"]
    return probabilities((model.encode(text, bos=False) for text in texts), rows, order=order)[0]


def probabilities(
    text: Iterable[Sequence[int]], rows: Sequence[Sequence[int]], *, order: int = 5
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """n-gram probability of every token but the first of each row, and the length of the suffix that was used.

    `text`: token ids of the documents to count in; contexts do not cross documents. Returns ([len - 1] float64, [len -
    1] int) per row."""
    if order < 1:
        raise InputError(f"The order of an n-gram model is at least 1, not {order}.")
    wanted: set[tuple[int, ...]] = set()
    for row in rows:
        for end in range(1, len(row)):
            for length in range(0, min(order - 1, end) + 1):
                wanted.add(tuple(row[end - length : end]))
    context, joint = Counter(), Counter()
    for document in text:
        document = list(document)
        for end in range(len(document)):
            for length in range(0, min(order - 1, end) + 1):
                suffix = tuple(document[end - length : end])
                if suffix in wanted:
                    context[suffix] += 1
                    joint[suffix, document[end]] += 1
    if not context[()]:
        raise InputError("The text of the n-gram model has no tokens.")
    found, used = [], []
    for row in rows:
        p, lengths = np.zeros(max(0, len(row) - 1)), np.zeros(max(0, len(row) - 1), dtype=int)
        for end in range(1, len(row)):
            length = next(k for k in range(min(order - 1, end), -1, -1) if context[tuple(row[end - k : end])])
            suffix = tuple(row[end - length : end])
            p[end - 1], lengths[end - 1] = joint[suffix, row[end]] / context[suffix], length
        found.append(p)
        used.append(lengths)
    return found, used


def memorisation(
    losses: Sequence[np.ndarray], counted: Sequence[np.ndarray], context: Context
) -> tuple[float, float, float]:
    """Rank correlation, with its interval, of the model's log-probabilities with n-gram probabilities of the same
    tokens."""
    ours, theirs = -np.concatenate([loss[0] for loss in losses]), np.concatenate(counted)
    some = np.sort(context.rng("memorisation").permutation(len(ours))[:4000])
    rho = spearman(ours[some], theirs[some], draws=200, rng=context.rng("memorisation interval"))
    return rho.value, rho.low, rho.high
