"""The n-gram model against counting by hand."""

import numpy as np
import pytest

from probes.representation_geometry import n_grams as ngram
from workbench.core.errors import InputError


def counted(text, rows, order):
    found = ngram.count(text, rows, order=order)
    return found.probabilities, found.lengths


def test_longest_seen_suffix_decides():
    text = [[1, 2, 3, 1, 2, 4, 1, 2, 3]]
    (p,), (used,) = counted(text, [[1, 2, 3]], order=3)
    # 1 → 2 always; (1, 2) → 3 in two of three
    assert np.allclose(p, [1, 2 / 3]) and used.tolist() == [1, 2]
    (p,), (used,) = counted(text, [[9, 2, 3]], order=3)
    # 9 was never seen: the unigram of 2 (3 of 9), then 2 → 3 (two of three)
    assert np.allclose(p, [3 / 9, 2 / 3]) and used.tolist() == [0, 1]


def test_unigrams_are_frequencies_and_contexts_stay_in_their_document():
    text = [[1, 2], [3, 1, 1]]
    (p,), _ = counted(text, [[2, 3, 1]], order=1)
    assert np.allclose(p, [1 / 5, 3 / 5])
    (p,), (used,) = counted(text, [[2, 3]], order=2)
    assert used.tolist() == [0] and np.allclose(p, [1 / 5])  # 2 ends its document: it has no successor


def test_an_empty_text_is_refused():
    with pytest.raises(InputError, match="no tokens"):
        ngram.count([[]], [[1, 2]])


def test_a_text_is_left_out_of_its_own_counts_wherever_it_stands():
    """Against counting the other documents alone; in a document that holds more, what is left counts."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 6, rng.integers(5, 30)).tolist() for _ in range(40)]
    rows = documents[:8]
    found = ngram.count([*documents, documents[3]], rows, own=rows, order=4)
    assert found.left_out == 8
    for number, row in enumerate(rows):
        others = [document for document in documents if document != row]
        others += [documents[3]] if number != 3 else []
        (p,), (used,) = counted(others, [row], 4)
        assert np.allclose(found.probabilities[number], p) and found.lengths[number].tolist() == used.tolist()
        share = [sum(map(lambda d, t=token: d.count(t), others)) / sum(map(len, others)) for token in row[1:]]
        assert np.allclose(found.frequencies[number], share)
    (p,) = ngram.count([[7, 1, 2, 3, 4], [1, 2, 9]], [[1, 2, 3]], own=[[1, 2, 3]], order=2).probabilities
    assert np.allclose(p, [1.0, 0.0])  # 1 → 2 in the other document; 2 → 9 there, never 3


def test_a_text_that_is_all_there_is_to_count_is_refused():
    with pytest.raises(InputError, match="no tokens but those of text 1 itself"):
        ngram.count([[1, 2, 3]], [[1, 2, 3]], own=[[1, 2, 3]])


def test_the_interval_of_the_agreement_resamples_texts():
    """Texts whose tokens agree within a text: an interval over tokens would hold the truth (no agreement at all) far
    too seldom."""
    from workbench.core.context import Context

    held, times = 0, 60
    for seed in range(times):
        rng = np.random.default_rng(seed)
        ours = [np.repeat(rng.standard_normal((1, 1)), 15, 1) + 0.5 * rng.standard_normal((1, 15)) for _ in range(24)]
        theirs = [np.repeat(rng.standard_normal(1), 15) + 0.5 * rng.standard_normal(15) for _ in range(24)]
        rho, low, high = ngram.memorisation(ours, theirs, Context(seed=seed))
        assert low < rho < high
        held += low <= 0 <= high
    assert held >= 0.85 * times
    rho, low, high = ngram.memorisation(ours[:4], theirs[:4], Context())
    assert np.isfinite(rho) and np.isnan([low, high]).all()
