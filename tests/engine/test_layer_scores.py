"""What layers give to chosen tokens is what plain Hugging Face gives, context by context: hidden states, the model's
own final norm and unembedding, a softmax over the whole vocabulary in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine import layer_scores as module
from workbench.engine import shared_prefix
from workbench.engine.layer_scores import as_it_is, distribution, layer_scores, longest
from workbench.engine.steering import Steer
from workbench.models.loading import load, wrap
from workbench.models.sites import Site

NORMS = {
    "gpt2": "transformer.ln_f",
    "gptj": "transformer.ln_f",
    "falcon": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
}
ARCHITECTURES = ("llama", "mistral", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "gptj", "granite")
ROOTS = [[1, *range(5, 14)], [1, *range(5, 12), 20, 21]]
CONTEXTS = [[*root, *tail] for root in ROOTS for tail in ([], [30], [30, 31], [40], [41], [42])]
WANTED = [[30, 40, 41, 63], *([[31, 7]] * 11)]


@torch.no_grad()
def slow(hf, name: str, context: list[int]) -> np.ndarray:
    """[layers, V] log-probabilities in float64, of one context alone."""
    states: list[torch.Tensor] = []
    norm = hf.get_submodule(NORMS.get(name, "model.norm"))
    handle = norm.register_forward_pre_hook(lambda _module, args: states.append(args[0]))
    out = hf(input_ids=torch.tensor([context]), output_hidden_states=True)
    handle.remove()
    layers = [*out.hidden_states[1:-1], states[0]]
    scores = torch.stack([hf.get_output_embeddings()(norm(x[0, -1])) for x in layers]).double()
    scores = scores / float(getattr(hf.config, "logits_scaling", 1) or 1)
    if cap := getattr(hf.config, "final_logit_softcapping", None):
        scores = cap * torch.tanh(scores / cap)
    assert torch.allclose(scores[-1], out.logits[0, -1].double(), rtol=1e-4, atol=1e-4)
    return scores.log_softmax(-1).numpy()


@pytest.mark.parametrize("contexts", ["sharing a trie", "in plain batches"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_gives_what_plain_hugging_face_gives(name, contexts, monkeypatch):
    hf = build(name)
    model = wrap(hf)
    monkeypatch.setattr(module, "AT_ONCE", 100)  # so that the vocabulary is read in blocks
    if contexts == "in plain batches":
        monkeypatch.setattr(shared_prefix, "applies", lambda *_: False)
    found = layer_scores(model, CONTEXTS, WANTED)
    for context, tokens, scores in zip(CONTEXTS, WANTED, found):
        log_p = slow(hf, name, context)
        assert scores.log_p.shape == (1, 3, len(tokens))
        np.testing.assert_allclose(scores.log_p[0], log_p[:, tokens], rtol=2e-4, atol=2e-4)
        entropy = -(np.exp(log_p) * log_p).sum(-1)
        np.testing.assert_allclose(scores.entropy[0], entropy, rtol=1e-3, atol=1e-4)
        assert (scores.top[0] == log_p.argmax(-1)).all()


def test_contexts_that_share_a_trie_are_run_on_one(monkeypatch):
    """Else the test above would compare plain batches with plain batches."""
    model, ran = wrap(build("llama")), []
    usual = shared_prefix.stream
    monkeypatch.setattr(shared_prefix, "stream", lambda *a, **k: ran.append(1) or usual(*a, **k))
    layer_scores(model, CONTEXTS, WANTED)
    assert ran


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_a_model_in_few_bits_are_read_off_in_float32(dtype):
    """Of the states as they are in few bits, final norm, unembedding and softmax are those of the same weights in
    float64."""
    hf = build("gemma2").to(dtype)
    model = wrap(hf)
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    log_p, entropy, top = distribution(model, states, [3, 9])
    wide = build("gemma2").to(dtype).double()
    scores = 30 * torch.tanh(wide.lm_head(wide.model.norm(states.double())) / 30)
    expected = scores.log_softmax(-1)
    assert log_p.dtype == torch.float32
    assert torch.allclose(log_p.double(), expected[:, [3, 9]], rtol=1e-4, atol=1e-4)
    assert torch.allclose(entropy.double(), -(expected.exp() * expected).sum(-1), rtol=1e-3, atol=1e-4)
    assert (top == expected.argmax(-1)).all()


def test_scores_that_are_endlessly_low_have_no_part_in_entropy():
    hf = build("llama")
    torch.nn.init.zeros_(hf.lm_head.weight)
    model = wrap(hf)
    hf.lm_head.bias = torch.nn.Parameter(torch.full((64,), -torch.inf))
    hf.lm_head.bias.data[:4] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    log_p, entropy, _ = distribution(model, torch.randn(2, 32), [0, 3, 10])
    expected = torch.tensor([0.0, 1.0, 2.0, 3.0]).log_softmax(-1)
    assert torch.allclose(log_p[:, :2], expected[[0, 3]].expand(2, 2)) and (log_p[:, 2] == -torch.inf).all()
    assert torch.allclose(entropy, -(expected.exp() * expected).sum().expand(2))


def test_a_lens_of_ones_own_reads_other_states_beside_the_plain_one():
    model = wrap(build("llama"))
    both = layer_scores(model, CONTEXTS[:2], WANTED[:2], lenses=(as_it_is, lambda layer, x: 2.0 * x + layer))
    plain = layer_scores(model, CONTEXTS[:2], WANTED[:2])
    for a, b in zip(both, plain):
        np.testing.assert_allclose(a.log_p[0], b.log_p[0], rtol=1e-5)
        assert a.log_p.shape[0] == 2 and not np.allclose(a.log_p[1][1:], b.log_p[0][1:])
        np.testing.assert_allclose(a.log_p[1][0], b.log_p[0][0], rtol=1e-3)  # RMS norm: twice the state is the state


def test_an_edit_reaches_the_layers_behind_it_at_the_end_of_every_context():
    model = wrap(build("llama"))
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    steer = Steer(Site("resid_post", 1), direction, 3.0, (-1,))
    edited = layer_scores(model, CONTEXTS, WANTED, edits=(steer,))
    alone = [layer_scores(model, [c], [w], edits=(steer,))[0] for c, w in zip(CONTEXTS, WANTED)]
    plain = layer_scores(model, CONTEXTS, WANTED)
    for a, b, c in zip(edited, alone, plain):
        np.testing.assert_allclose(a.log_p, b.log_p, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(a.log_p[0, 0], c.log_p[0, 0], rtol=1e-4, atol=1e-4)
        assert not np.allclose(a.log_p[0, 1:], c.log_p[0, 1:], atol=1e-2)


def test_contexts_that_others_go_on_from_are_read_in_the_same_sequence():
    rows = [[1], [1, 2], [1, 2, 3], [1, 3], [2], [1, 2]]
    fed = longest(rows)
    assert sorted(i for _, own in fed for i in own) == list(range(6))
    assert all(row[: len(rows[i])] == rows[i] for row, own in fed for i in own)
    assert sorted(row for row, _ in fed) == [[1, 2, 3], [1, 3], [2]]


def test_what_has_no_lens_is_refused_in_a_sentence():
    model = wrap(build("modernbert-decoder"))
    with pytest.raises(InputError, match="a lens"):
        layer_scores(model, [[1, 2]], [[3]])
    with pytest.raises(InputError, match="2 contexts and 1 lists"):
        layer_scores(wrap(build("llama")), [[1], [2]], [[3]])


@pytest.mark.parametrize("token", [64, -1])
def test_a_token_that_the_model_does_not_score_is_refused(token):
    with pytest.raises(InputError, match=f"Token {token} is looked for, and model scores 64"):
        layer_scores(wrap(build("llama")), [[1, 5]], [[7, token]])


def test_the_second_engine_gives_the_same():
    model = load("circuit-bilingual")
    contexts, wanted = [[3, 4, 6, 9, 3], [3, 4, 6, 9], [3, 4, 6, 9, 3, 10], [5, 6]], [[3, 9]] * 4
    both = [layer_scores(model, contexts, wanted, engine=engine) for engine in ("hf", "nnsight")]
    for a, b in zip(*both):
        np.testing.assert_allclose(a.log_p, b.log_p, atol=1e-5)
    with pytest.raises(InputError, match="'hff' is not an engine"):
        layer_scores(model, contexts, wanted, engine="hff")
