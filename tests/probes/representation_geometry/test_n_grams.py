"""The n-gram model against counting by hand."""

import numpy as np
import pytest

from probes.representation_geometry import n_grams as ngram
from workbench.core.errors import InputError


def test_longest_seen_suffix_decides():
    text = [[1, 2, 3, 1, 2, 4, 1, 2, 3]]
    (p,), (used,) = ngram.probabilities(text, [[1, 2, 3]], order=3)
    # 1 → 2 always; (1, 2) → 3 in two of three
    assert np.allclose(p, [1, 2 / 3]) and used.tolist() == [1, 2]
    (p,), (used,) = ngram.probabilities(text, [[9, 2, 3]], order=3)
    # 9 was never seen: the unigram of 2 (3 of 9), then 2 → 3 (two of three)
    assert np.allclose(p, [3 / 9, 2 / 3]) and used.tolist() == [0, 1]


def test_unigrams_are_frequencies_and_contexts_stay_in_their_document():
    text = [[1, 2], [3, 1, 1]]
    (p,), _ = ngram.probabilities(text, [[2, 3, 1]], order=1)
    assert np.allclose(p, [1 / 5, 3 / 5])
    (p,), (used,) = ngram.probabilities(text, [[2, 3]], order=2)
    assert used.tolist() == [0] and np.allclose(p, [1 / 5])  # 2 ends its document: it has no successor


def test_an_empty_text_is_refused():
    with pytest.raises(InputError, match="no tokens"):
        ngram.probabilities([[]], [[1, 2]])
