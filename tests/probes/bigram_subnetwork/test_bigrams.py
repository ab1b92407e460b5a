"""Counts of bigrams: what the sparse table says is what counting one pair after another says."""

from collections import Counter

import numpy as np
import pytest
import torch

from probes.bigram_subnetwork.bigrams import count
from probes.bigram_subnetwork.stretches import stretches
from probes.bigram_subnetwork.target_loss import cross_entropies, target_of
from workbench.core.errors import InputError
from workbench.models.host_copies import Resident

V = 11


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(1, V - 2, rng.integers(1, 30)).tolist() for _ in range(20)] + [[V - 2]]


def dense(texts) -> np.ndarray:
    """P(next | token) [V, V] with back-off of contexts that were not seen, by dicts."""
    pairs, before, single = Counter(), Counter(), Counter()
    for text in texts:
        single.update(text)
        for one, two in zip(text, text[1:]):
            pairs[one, two] += 1
            before[one] += 1
    total = sum(single.values())
    return np.array([[pairs[c, w] / before[c] if before[c] else single[w] / total for w in range(V)] for c in range(V)])


def test_probabilities_are_those_of_counting_with_dicts(texts):
    found, wanted = count(texts, V), dense(texts)
    context, token = np.divmod(np.arange(V * V), V)
    np.testing.assert_allclose(found.probability(context, token).reshape(V, V), wanted, atol=1e-15)
    assert found.pairs == sum(len(text) - 1 for text in texts)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found.surprisal(context, token).reshape(V, V), -np.log(wanted))


def test_contexts_that_were_not_seen_take_the_shares_of_tokens_and_unseen_pairs_have_no_probability(texts):
    found = count(texts, V)
    # V - 2 stands alone in its text: it was counted, and nothing follows it; 0 and V - 1 were never counted
    assert not found.seen[[0, V - 2, V - 1]].any()
    assert found.probability(np.array([V - 2]), np.array([V - 2])) == found.unigram[V - 2] > 0
    assert np.isinf(found.surprisal(np.array([0]), np.array([0])))


def test_rows_hold_every_next_token_of_a_context_and_sum_to_one(texts):
    found, wanted = count(texts, V), dense(texts)
    context = np.array([3, 0, 3, 5, V - 2])
    row, token, p, seen = found.rows(context)
    table = np.zeros((len(context), V))
    table[row, token] = p
    np.testing.assert_allclose(table[seen], wanted[context[seen]])
    assert seen.tolist() == [True, False, True, True, False] and not table[~seen].any()


def test_texts_without_a_pair_and_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(InputError, match="has two tokens"):
        count([[1], []], V)
    with pytest.raises(InputError, match="beyond the model's vocabulary of 11"):
        count([[1, V]], V)


def test_the_sparse_loss_and_its_gradient_are_those_of_the_dense_table(texts):
    bigrams, table = count(texts, V), torch.tensor(dense(texts))
    tokens = torch.tensor([3, 5, 0, V - 2, 3, 7])
    scores = torch.randn(len(tokens), V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    target = target_of(bigrams, tokens.tolist(), scores.device)
    found = cross_entropies(ours, target, Resident(torch.from_numpy(bigrams.unigram)))
    wanted = torch.nn.functional.cross_entropy(theirs, table[tokens], reduction="none")
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)  # probabilities are float32 on the device
    (slope,), (slope_wanted,) = torch.autograd.grad(found.mean(), ours), torch.autograd.grad(wanted.mean(), theirs)
    torch.testing.assert_close(slope, slope_wanted, atol=1e-7, rtol=0)


@pytest.mark.parametrize("bos", [None, 1])
def test_every_pair_of_a_text_that_lies_in_one_piece_is_judged_once_and_a_bos_says_nothing_of_a_middle(bos):
    text = ([bos] if bos is not None else []) + list(range(10, 31))
    pieces = stretches(text, 4, 6, bos)
    assert all(len(piece.ids) <= 6 and piece.text == 4 for piece in pieces)
    judged = [(piece.ids[i - 1], piece.ids[i]) for piece in pieces for i in range(piece.first, len(piece.ids))]
    assert set(judged) <= set(zip(text, text[1:])) and len(set(judged)) == len(judged)
    own = 6 - (bos is not None)
    assert len(judged) == 20 - len(range(own, 21, own)) + (bos is not None)


def test_a_piece_with_nothing_to_predict_is_left_out():
    assert [piece.ids for piece in stretches([5, 6, 7], 0, 2, None)] == [[5, 6]]
    assert [piece.ids for piece in stretches([1, 5, 6, 7], 0, 3, 1)] == [[1, 5, 6]]
