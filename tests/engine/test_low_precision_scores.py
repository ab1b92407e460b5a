"""Scores of a model in few bits are read off in float32: differences of them are effects, and not rounding."""

import copy

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from tests.support.architectures import build
from workbench.engine.capture import capture, logits
from workbench.engine.edits import Patch, ProjectOut
from workbench.engine.evaluation import final_state_losses, token_losses
from workbench.engine.patching import (
    activation_patching,
    attribution,
    direct_effects,
    direct_mlp_effects,
    total_effects,
)
from workbench.engine.sampling import FIELDS
from workbench.engine.scoring import score
from workbench.explorer import readings
from workbench.explorer.targets import Target
from workbench.models import float32
from workbench.models.float32 import in_float32, mean_row, unembedded
from workbench.models.loading import wrap
from workbench.models.sites import Site

NAMES = ("llama", "gpt2", "gemma2", "olmo2", "opt", "gpt_neox")
WIDTH = 64
SIZES = {"n_embd": WIDTH, "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "n_layer": 2, "num_hidden_layers": 2}


QUIET = 0.03  # what a head adds is a small part of the stream, as in trained models


def sized(name: str):
    """A model of 2 layers and 512 tokens whose heads say little: the scores with and without one are nearly the
    same."""
    plain = build(name, vocab_size=512)
    width = {key: value for key, value in SIZES.items() if hasattr(plain.config, key)}
    hf = build(name, vocab_size=512, **width, **({"head_dim": 16} if name == "gemma2" else {}))
    twin = copy.deepcopy(hf)
    names = {id(module): path for path, module in twin.named_modules()}
    for block in wrap(twin).anatomy.blocks:
        normed = block.attention_writer in block.norms.values()
        writer = hf.get_submodule(names[id(block.attention_writer if normed else block.o_proj)])
        writer.weight.data *= QUIET
        if name == "gemma2":
            writer.weight.data += QUIET - 1  # its gain is 1 + weight
        if getattr(writer, "bias", None) is not None:
            writer.bias.data *= QUIET
    return hf


@pytest.fixture(scope="module")
def pairs():
    """(the model in bfloat16, the same weights in float64) by architecture."""
    built = {}

    def get(name):
        if name not in built:
            low = sized(name).to(torch.bfloat16)
            built[name] = wrap(low, name=name), wrap(copy.deepcopy(low).to(torch.float64), name=name)
        return built[name]

    return get


def prompts(seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 512, (6,), generator=draw).tolist() for _ in range(4)]


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_given_states_are_those_of_float64(pairs, name):
    """Both through the norm and after it, with soft-caps, biases and scales."""
    low, exact = pairs(name)
    states = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    for normed in (False, True):
        with torch.no_grad():
            hidden = states.double() if normed else exact.hf.get_submodule(_path(exact))(states.double())
            right = exact.hf.get_output_embeddings()(hidden)
        cap = getattr(exact.hf.config, "final_logit_softcapping", None)
        right = right if cap is None else cap * torch.tanh(right / cap)
        found = low.logits_from(states, normed=normed)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), right, atol=2e-5 * float(right.abs().max()), rtol=1e-5)


def _path(model) -> str:
    return next(path for path, module in model.hf.named_modules() if module is model.final_norm)


@pytest.mark.parametrize("name", NAMES)
def test_direct_effects_on_given_streams_are_in_the_order_of_float64(pairs, name):
    """The effect of single heads on a token: what is subtracted are two scores that are nearly the same."""
    low, exact = pairs(name)
    ids, donors = prompts(), prompts(1)
    tokens = [[row[0], row[3]] for row in donors]
    found = direct_effects(low, ids, donors, tokens).change("logit").flatten()
    right = direct_effects(exact, ids, donors, tokens).change("logit").flatten()
    assert spearmanr(found, right).statistic > 0.999


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("how", [total_effects, direct_mlp_effects])
def test_effects_through_blocks_are_no_worse_than_the_blocks(pairs, name, how):
    low, exact = pairs(name)
    ids, donors = prompts(), prompts(1)
    tokens = [[row[0], row[3]] for row in donors]
    found, right = (how(model, ids, donors, tokens).change("logit").flatten() for model in (low, exact))
    assert spearmanr(found, right).statistic > 0.85  # the blocks themselves compute in bfloat16


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_small_changes_of_the_last_stream_change_scores_as_in_float64(pairs, name):
    """Through the `logits` of a capture under edits; the stream that is put in is the same in both."""
    low, exact = pairs(name)
    ids, last = prompts()[:1], Site("resid_post", low.n_layers - 1)
    stream = capture(low, ids, [last])[last][0]
    draw = torch.Generator().manual_seed(2)
    steps = [(stream + 0.02 * stream.std() * torch.randn(WIDTH, generator=draw)).bfloat16() for _ in range(40)]
    changes = []
    for model in (low, exact):
        many = [logits(model, ids, edits=[Patch(last, value, (-1,))])[0, 17] for value in [stream.bfloat16(), *steps]]
        changes.append(torch.stack(many[1:]) - many[0])
    assert spearmanr(*changes).statistic > 0.999


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_edit_of_the_final_norm_is_in_the_scores(pairs, name):
    """Scores of a model in few bits are read off the stream before the norm, unless somebody acts behind it."""
    low, exact = pairs(name)
    ids, value = prompts(), torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)).bfloat16()
    for edit in (Patch(Site("final_norm"), value), ProjectOut(Site("final_norm"), value.float())):
        found, right = (logits(model, ids, edits=[edit]) for model in (low, exact))
        torch.testing.assert_close(found, right, atol=0.1 * float(right.abs().max()), rtol=0)
        assert (logits(low, ids) - found).abs().max() > 0.1 * found.abs().max()
        texts = [row[:3] for row in ids], [row[3:] for row in ids]
        before, after = (token_losses(low, ids, edits=e)[0] for e in ([], [edit]))
        assert abs(before - after).max() > 0.05
        plain, changed = (torch.cat(score(low, *texts, edits=e)) for e in ([], [edit]))
        assert (plain[:, FIELDS.index("logprob_full")] - changed[:, FIELDS.index("logprob_full")]).abs().max() > 0.05
    torch.testing.assert_close(
        logits(low, ids, edits=[Patch(Site("final_norm"), value)])[0],
        unembedded(low.unembed, value, low.dtype),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_given_texts_and_losses_agree_with_the_scores_that_are_captured(pairs, name):
    low, _ = pairs(name)
    rows = prompts()
    acts = capture(low, rows, ["logits"], positions="all")
    losses = token_losses(low, rows)
    kept = final_state_losses(low, rows, [("keep all", None), ("remove", torch.eye(WIDTH)[:1])])
    for i, row in enumerate(rows):
        right = -acts.rows("logits", i)[:-1].log_softmax(-1)[range(len(row) - 1), row[1:]]
        torch.testing.assert_close(torch.tensor(losses[i]).float(), right, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(kept[i][0]).float(), right, atol=1e-4, rtol=1e-4)
        (found,) = score(low, [row[:1]], [row[1:]])
        torch.testing.assert_close(-found[:, FIELDS.index("logprob_full")], right, atol=1e-3, rtol=1e-3)


def test_gradients_go_through_the_unembedding_in_blocks(pairs, monkeypatch):
    low, exact = pairs("llama")
    ids, donors = prompts(), prompts(1)
    tokens = [[row[0], row[3]] for row in donors]
    whole = attribution(low, ids, donors, tokens, metric="logit")
    monkeypatch.setattr(float32, "BLOCK", 100 * WIDTH)
    torch.testing.assert_close(attribution(low, ids, donors, tokens, metric="logit"), whole, atol=1e-3, rtol=2e-2)
    right = attribution(exact, ids, donors, tokens, metric="logit")
    assert spearmanr(whole.flatten(), right.flatten()).statistic > 0.95


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_the_explorer_says_of_heads_is_in_the_order_of_float64(pairs, name):
    low, exact = pairs(name)
    ids = prompts()[0]
    found, right = (
        readings.direct_effects(opened, readings.read(opened, ids), Target(17))["direct_effect"]
        for opened in (readings.Opened(low), readings.Opened(exact))
    )
    assert spearmanr(found, right).statistic > 0.99
    tops = [
        readings.head_scores(opened, [ids])["copying"].to_list()
        for opened in (readings.Opened(low), readings.Opened(exact))
    ]
    assert spearmanr(*tops).statistic > 0.97


def test_activation_patching_is_in_the_order_of_float64(pairs):
    low, exact = pairs("llama")
    ids, donors = prompts()[:2], prompts(1)[:2]
    tokens = [[row[0]] for row in donors]
    found, right = (
        activation_patching(model, ids, donors, tokens, "attn_out").change("logit").flatten() for model in (low, exact)
    )
    assert spearmanr(found, right).statistic > 0.85  # the blocks themselves compute in bfloat16


# the pieces


def test_an_unembedding_is_widened_block_by_block_only(monkeypatch):
    monkeypatch.setattr(float32, "BLOCK", 8 * 10)
    head = nn.Linear(8, 101, bias=True).bfloat16().requires_grad_(False)
    sizes, linear = [], float32.linear
    monkeypatch.setattr(float32, "linear", lambda x, w, b: sizes.append(w.shape) or linear(x, w, b))
    x = torch.randn(3, 8)
    found = unembedded(head, x, torch.bfloat16)
    assert {rows for rows, _ in sizes} == {10, 1} and len(sizes) == 11
    torch.testing.assert_close(found, x @ head.weight.float().T + head.bias.float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(unembedded(head, x, torch.bfloat16, bias=False), x @ head.weight.float().T)
    torch.testing.assert_close(mean_row(head.weight), head.weight.float().mean(0), atol=1e-6, rtol=1e-5)


class Wrapped(nn.Module):
    """An unembedding that is more than its weights."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x):
        return self.inner(x)


def test_an_unembedding_that_is_not_a_plain_linear_map_is_called_and_that_is_said(caplog):
    hf = build("llama").bfloat16()
    hf.lm_head = Wrapped(hf.lm_head)
    with caplog.at_level("WARNING"):
        model = wrap(hf, name="wrapped")
    assert "The unembedding of wrapped is a Wrapped that computes in bfloat16" in caplog.text
    x = torch.randn(4, 32)
    with torch.no_grad():
        right = hf.lm_head(in_float32(model.final_norm, x).bfloat16()).float()
    torch.testing.assert_close(model.logits_from(x), right)


def test_a_hook_on_the_unembedding_is_not_left_out():
    model = wrap(build("llama").bfloat16())
    handle = model.unembed.register_forward_hook(lambda _m, _a, out: out * 0 + 3)
    assert bool((model.logits_from(torch.randn(2, 32)) == 3).all())
    handle.remove()


def test_a_norm_in_float32_leaves_the_module_as_it_was_and_calls_no_hook():
    model = wrap(build("gemma2").bfloat16())
    norm, called = model.final_norm, []
    before = {name: (t.data_ptr(), t.dtype) for name, t in norm.named_parameters()}
    handle = norm.register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(3, 32)
    found = in_float32(norm, x)
    handle.remove()
    assert not called and before == {name: (t.data_ptr(), t.dtype) for name, t in norm.named_parameters()}
    right = copy.deepcopy(norm).double()(x.double())
    torch.testing.assert_close(found.double(), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_scores_of_models_in_float32_are_bit_for_bit_those_of_their_own_modules(name):
    model = wrap(build(name))
    x = torch.randn(5, 32)
    with torch.no_grad():
        right = model.unembed(model.final_norm(x))
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    assert torch.equal(model.logits_from(x), right if cap is None else cap * torch.tanh(right / cap))
