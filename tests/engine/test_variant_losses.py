"""Losses of final states without some of their directions, against projecting and unembedding every state in
float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.architectures import build
from workbench.engine import evaluation, variant_losses
from workbench.engine.evaluation import final_state_losses, right_choices
from workbench.models.loading import wrap

VOCABULARY, WIDTH = 5000, 64
RNG = np.random.default_rng(0)
ROWS = [RNG.integers(3, VOCABULARY, length).tolist() for length in (9, 2, 1, 30, 17)]


def directions(k: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, k, generator=torch.Generator().manual_seed(seed)))[0].T


TOP, RANDOM = directions(3, 0), directions(20, 1)
VARIANTS = [
    ("none", None),
    ("remove", TOP),
    ("keep", TOP),
    ("keep random", RANDOM),
    ("remove random", directions(20, 2)),
    ("keep", TOP),
    ("none", None),
]


def slow(model, row: list[int], how: str, v: torch.Tensor | None) -> torch.Tensor:
    """-ln p in float64, by Hugging Face's own final states, one text at a time."""
    with torch.no_grad():
        h = model.hf.model(torch.tensor([row])).last_hidden_state[0].double()
        if v is not None:
            along = h @ v.double().T @ v.double()
            h = along if how.startswith("keep") else h - along
        z = h @ model.hf.lm_head.weight.double().T
        if model.hf.lm_head.bias is not None:
            z = z + model.hf.lm_head.bias.double()
        if (cap := getattr(model.hf.config, "final_logit_softcapping", None)) is not None:
            z = cap * torch.tanh(z / cap)
        return -z.log_softmax(-1)[torch.arange(len(row) - 1), row[1:]]


def made(name: str = "llama", *, bias: bool = False, scale: float = 3.0):
    torch.manual_seed(0)
    hf = build(name, vocab_size=VOCABULARY, hidden_size=WIDTH)
    hf.lm_head.weight.data *= scale
    hf.model.norm.weight.data[5] += 40  # a massive direction, as trained models have
    if bias:
        hf.lm_head.bias = nn.Parameter(torch.randn(VOCABULARY))
    return wrap(hf, None, name=name)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that end in the middle of the vocabulary and of the texts, and sets of directions in several groups."""
    monkeypatch.setattr(variant_losses, "WORDS", 700)
    monkeypatch.setattr(variant_losses, "NUMBERS", 700 * 7)
    monkeypatch.setattr(variant_losses, "RANKS", 22)
    monkeypatch.setattr(evaluation, "GATHERED", 20)


@pytest.mark.parametrize("name", ["llama", "llama with bias", "gemma2"])
def test_losses_of_every_variant_are_those_of_projected_states_in_float64(name, small_blocks):
    model = made(name.split()[0], bias="bias" in name)
    found = final_state_losses(model, ROWS, VARIANTS, max_tokens=40)
    assert [x.shape for x in found] == [(len(VARIANTS), len(row) - 1) for row in ROWS]
    for row, losses in zip(ROWS, found):
        for (how, v), ours in zip(VARIANTS, losses) if len(row) > 1 else ():
            expected = slow(model, row, how, v).numpy()
            assert np.abs(ours - expected).max() <= 1e-5 * (1 + np.abs(expected).max())


def test_whole_blocks_of_the_vocabulary_may_be_impossible(small_blocks):
    model = made(bias=True)
    model.hf.lm_head.bias.data[:1500] = -torch.inf  # two blocks and a part of the third
    rows = [[2000, 3000, 4000]]
    (found,) = final_state_losses(model, rows, [("none", None), ("remove", TOP)])
    for (how, v), ours in zip([("none", None), ("remove", TOP)], found):
        assert ours == pytest.approx(slow(model, rows[0], how, v).numpy(), rel=1e-5)


def test_an_unembedding_that_has_to_be_called_gives_the_same_losses(monkeypatch):
    model = made()
    expected = final_state_losses(model, ROWS, VARIANTS)
    monkeypatch.setattr(evaluation, "BLOCK", 7 * VOCABULARY)  # pieces that end within a text
    handle = model.hf.lm_head.register_forward_hook(lambda *_: None)
    try:
        found = final_state_losses(model, ROWS, VARIANTS)
    finally:
        handle.remove()
    for a, b in zip(expected, found):
        assert np.abs(a - b).max(initial=0) < 1e-5 * 20


def test_choices_are_scored_from_their_first_token_on(small_blocks):
    model = made()
    questions = [([[*ROWS[3][:20], *end] for end in ([7, 8], [9], [10, 11, 12])], 20, answer) for answer in (0, 1, 2)]
    found = right_choices(model, questions, VARIANTS[:3])
    for number, (how, v) in enumerate(VARIANTS[:3]):
        totals = [float(slow(model, row, how, v)[19:].sum()) for row in questions[0][0]]
        assert found[number].tolist() == [float(np.argmin(totals) == answer) for answer in (0, 1, 2)]


def test_nothing_as_large_as_positions_times_vocabulary_is_held(monkeypatch):
    """The largest tensor of scores is a block."""
    model, sizes = made(), []
    real = variant_losses._scores

    def watched(*args):
        for key, scores in real(*args):
            sizes.append(scores.numel())
            yield key, scores

    monkeypatch.setattr(variant_losses, "_scores", watched)
    monkeypatch.setattr(variant_losses, "WORDS", 512)
    monkeypatch.setattr(variant_losses, "NUMBERS", 4096)
    final_state_losses(model, ROWS, VARIANTS)
    assert 0 < max(sizes) <= 4096 * torch.get_num_threads()
