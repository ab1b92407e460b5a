"""Masked passes on several architectures, against plain Hugging Face with zeroed or reweighted copies in float64."""

import copy

import numpy as np
import pytest
import torch

from probes.bigram_subnetwork.bigrams import count
from probes.bigram_subnetwork.masked_pass import BigramTask, readings, slopes, surprisals_of_counts, texts_of_tokens
from probes.bigram_subnetwork.stretches import Piece
from tests.support import architectures
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation
from workbench.engine.passes import Pass
from workbench.engine.weight_masks import WeightMask
from workbench.models.block_weights import block_weights
from workbench.models.loading import wrap

NAMES = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma2", "phi3", "falcon", "opt")
WORDS = 60  # of the 64 columns of the unembedding: the rest pad the vocabulary


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    hf = architectures.build(request.param).double()
    model = wrap(hf)
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 40, size).tolist() for size in (9, 5, 9, 2)]
    pieces = [Piece(row, i, 2 if i == 1 else 1) for i, row in enumerate(rows)]
    bigrams = count([rng.integers(3, 30, 200).tolist()], WORDS)
    return hf, model, block_weights(model, for_what="a test"), pieces, bigrams


def masks_of(weights, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {own.name: torch.rand(own.shape, generator=draw) < 0.6 for own in weights}


def dense(bigrams) -> torch.Tensor:
    context, token = np.divmod(np.arange(WORDS * WORDS), WORDS)
    return torch.tensor(bigrams.probability(context, token).reshape(WORDS, WORDS))


def plain_scores(hf, ids, changed) -> torch.Tensor:
    """log softmax over the tokenizer's ids, of the plain model with other parameters."""
    made = torch.func.functional_call(hf, changed, (), {"input_ids": torch.tensor([ids]), "use_cache": False})
    return made.logits[0, :, :WORDS].log_softmax(-1)


def test_readings_under_a_mask_are_those_of_a_copy_whose_weights_are_zero(case):
    hf, model, weights, pieces, bigrams = case
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    task = BigramTask.of(model, bigrams, Pass())
    masks = masks_of(weights, 1)
    for edits, stays in (
        ([], lambda name: torch.ones_like(masks[name])),
        ([WeightMask.of(masks)], lambda name: masks[name]),
        ([WeightMask.of(masks, remove=True)], lambda name: ~masks[name]),
    ):
        found = readings(task, pieces, edits)
        twin = copy.deepcopy(hf)
        own = dict(twin.named_parameters())
        for name in masks:
            own[name].data *= stays(name)
        surprisal, loss = [], []
        for piece in pieces:
            scores = plain_scores(twin, piece.ids, {})
            for i in range(piece.first, len(piece.ids)):
                surprisal.append(-scores[i - 1, piece.ids[i]].item())
                loss.append(-(dense(bigrams)[piece.ids[i - 1]] * scores[i - 1]).sum().item())
        np.testing.assert_allclose(found.surprisal, surprisal, atol=1e-4)  # scores are read in float32
        np.testing.assert_allclose(found.loss, loss, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    assert not any(module._forward_hooks for module in hf.modules())


def test_the_gradient_of_the_loss_is_that_of_plain_autograd(case):
    hf, model, weights, pieces, bigrams = case
    draw = torch.Generator().manual_seed(2)
    m = {own.name: torch.randn(own.shape, generator=draw, dtype=torch.float64) for own in weights}
    soft = {name: torch.sigmoid(x) for name, x in m.items()}
    params = dict(hf.named_parameters())
    for run in (Pass(), Pass(max_rows=1), Pass(max_tokens=12)):
        task = BigramTask.of(model, bigrams, run)
        found = slopes(task, pieces, {own.name: own.weight.detach() * soft[own.name] for own in weights}, weights)
        leaves = {name: x.clone().requires_grad_() for name, x in m.items()}
        changed = {name: params[name].detach() * torch.sigmoid(x) for name, x in leaves.items()}
        total = sum(
            -(dense(bigrams)[piece.ids] * plain_scores(hf, piece.ids, changed)).sum() for piece in pieces
        ) / sum(len(piece.ids) for piece in pieces)
        wanted = torch.autograd.grad(total, list(leaves.values()))
        assert found.loss.item() == pytest.approx(total.item(), abs=1e-5)
        for own, slope in zip(weights, wanted):
            s = soft[own.name]
            ours = found.by_weight[own.name] * own.weight * s * (1 - s)
            torch.testing.assert_close(ours, slope, atol=2e-5, rtol=1e-4, msg=own.name)


def test_edits_of_the_run_hold_in_the_search_and_in_the_readings(case):
    hf, model, weights, pieces, bigrams = case
    edit = HeadAblation(((1, 2), (0, 1)))
    plain, edited = (BigramTask.of(model, bigrams, Pass(edits=edits)) for edits in ((), (edit,)))
    computed = {own.name: own.weight.detach() for own in weights}
    assert slopes(plain, pieces, computed, weights).loss != slopes(edited, pieces, computed, weights).loss
    everything = WeightMask.of({own.name: torch.ones(own.shape).bool() for own in weights})
    np.testing.assert_allclose(readings(edited, pieces, [everything]).loss, readings(edited, pieces).loss, atol=1e-6)
    assert np.abs(readings(edited, pieces).loss - readings(plain, pieces).loss).max() > 1e-3


def test_what_is_known_is_of_the_same_tokens_in_the_same_order(case):
    _, _, _, pieces, bigrams = case
    known, unigram = surprisals_of_counts(bigrams, pieces)
    pairs = [(p.ids[i - 1], p.ids[i], p.text) for p in pieces for i in range(p.first, len(p.ids))]
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(known, [-np.log(dense(bigrams)[c, w].item()) for c, w, _ in pairs])
        np.testing.assert_allclose(unigram, [-np.log(bigrams.unigram[w]) for _, w, _ in pairs])
    assert texts_of_tokens(pieces).tolist() == [text for *_, text in pairs]


def test_few_bits_compute_the_scores_in_float32():
    hf = architectures.build("llama")
    rng = np.random.default_rng(0)
    pieces = [Piece(rng.integers(3, 40, 12).tolist(), 0, 1)]
    bigrams = count([rng.integers(3, 30, 200).tolist()], WORDS)
    exact = readings(BigramTask.of(wrap(copy.deepcopy(hf).bfloat16().float()), bigrams, Pass()), pieces)
    model = wrap(hf.bfloat16())
    weights = block_weights(model, for_what="a test")
    task = BigramTask.of(model, bigrams, Pass())
    found = readings(task, pieces)
    assert len(set(np.float32(found.surprisal))) == len(found.surprisal)  # scores in 8 bits would coincide
    assert np.abs(found.surprisal - exact.surprisal).mean() < 0.3
    got = slopes(task, pieces, {own.name: own.weight.detach() for own in weights}, weights)
    assert got.loss.dtype == torch.float32 and all(bool(x.isfinite().all()) for x in got.by_weight.values())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_in_one_tensor_are_refused_in_a_sentence(name):
    with pytest.raises(InputError, match=r"does not fit a bigram subnetwork: the .* in layer 0 holds weights"):
        block_weights(wrap(architectures.build(name)), for_what="a bigram subnetwork")
