"""Bigram counts of texts as a sparse table, and what they say of the next token.

P(w | c) = count(c w) / count(c ·) for a context c that was seen; for one that was not, the shares of single tokens
(back-off to unigrams). A pair that was never seen after a context that was has probability 0: counts are neither
pruned nor smoothed, as in the paper's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Bigrams:
    """Rows of contexts, sparse: `start` [V + 1], and for each context c the next tokens `token[start[c]:start[c + 1]]`
    (ascending) with their probabilities `p` (float64, summing to 1). `unigram` [V]: share of each token."""

    start: np.ndarray
    token: np.ndarray
    p: np.ndarray
    unigram: np.ndarray
    pairs: int  # how many were counted

    @property
    def vocabulary(self) -> int:
        return len(self.unigram)

    @property
    def seen(self) -> np.ndarray:
        """Which contexts were seen, [V] bool."""
        return np.diff(self.start) > 0

    def probability(self, context: np.ndarray, token: np.ndarray) -> np.ndarray:
        """P(token | context), elementwise [n], float64."""
        context, token = np.asarray(context, np.int64), np.asarray(token, np.int64)
        if not len(self.token):
            return self.unigram[token]
        of = np.repeat(np.arange(self.vocabulary), np.diff(self.start))
        keys = of * self.vocabulary + self.token  # ascending
        wanted = context * self.vocabulary + token
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = np.where(keys[at] == wanted, self.p[at], 0.0)
        return np.where(self.seen[context], found, self.unigram[token])

    def surprisal(self, context: np.ndarray, token: np.ndarray) -> np.ndarray:
        """−ln P(token | context), [n]; infinite where the counts give no probability."""
        with np.errstate(divide="ignore"):
            return -np.log(self.probability(context, token))

    def rows(self, context: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The seen contexts among `context` [n], as a sparse matrix: (which of the n, token, probability), one entry
        for each next token; and which of the n were seen [n] bool."""
        context = np.asarray(context, np.int64)
        begin, size = self.start[context], np.diff(self.start)[context]
        row = np.repeat(np.arange(len(context)), size)
        within = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
        entry = np.repeat(begin, size) + within
        return row, self.token[entry], self.p[entry], size > 0


def count(texts: Sequence[Sequence[int]], vocabulary: int) -> Bigrams:
    """Bigrams within texts (token ids below `vocabulary`). The first token of a text is the next token of none.

    Raises InputError where no text has two tokens, and for an id beyond the vocabulary."""
    whole = [np.asarray(ids, np.int64) for ids in texts if len(ids)]
    if any(ids.max() >= vocabulary for ids in whole):
        raise InputError(f"A text to count bigrams in has a token id beyond the model's vocabulary of {vocabulary}.")
    pairs = [ids[:-1] * vocabulary + ids[1:] for ids in whole if len(ids) > 1]
    if not pairs:
        raise InputError("No text to count bigrams in has two tokens; give longer texts.")
    keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
    context, token = keys // vocabulary, keys % vocabulary
    total = np.bincount(context, weights=counts, minlength=vocabulary)
    start = np.concatenate([[0], np.cumsum(np.bincount(context, minlength=vocabulary))])
    single = np.bincount(np.concatenate(whole), minlength=vocabulary)
    return Bigrams(start, token, counts / total[context], single / single.sum(), int(counts.sum()))
