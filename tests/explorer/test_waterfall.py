"""The parts of a logit, lens maps and patching maps, held to slow computations on the plain Hugging Face model."""

import copy

import numpy as np
import polars as pl
import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.frozen_norm import frozen_norm
from workbench.explorer import readings
from workbench.explorer.lens_maps import OF, lens_map
from workbench.explorer.opened_model import Opened
from workbench.explorer.patch_maps import align, patch_map, paths_into
from workbench.explorer.sub_blocks import sub_blocks
from workbench.explorer.targets import Target, target_of
from workbench.explorer.waterfall import WHOLE, waterfall
from workbench.models.loading import load, wrap

IDS = [5, 9, 17, 5, 30, 41]
DONOR = [5, 12, 17, 8, 30, 41]
ADDS_UP = ("llama", "gpt2", "gemma2", "olmo2", "gpt_neox", "qwen3")


def heads_of(hf, layer):
    """The output projection of a layer's attention."""
    if hasattr(hf, "gpt_neox"):
        return hf.gpt_neox.layers[layer].attention.dense
    return hf.model.layers[layer].self_attn.o_proj if hasattr(hf, "model") else hf.transformer.h[layer].attn.c_proj


def norm_of(hf):
    if hasattr(hf, "gpt_neox"):
        return hf.gpt_neox.final_layer_norm
    return hf.model.norm if hasattr(hf, "model") else hf.transformer.ln_f


@torch.no_grad()
def plain(opened, ids, changes=()):
    """Logits [T, V] and hidden states [layers + 1][T, width] (the last before the final norm) of a copy in float64,
    with outputs or inputs of modules changed: (module of the copy, "in" or "out", function)."""
    hf = copy.deepcopy(opened.model.hf).double()
    hf.set_attn_implementation("eager")
    seen, handles = {}, []
    handles.append(norm_of(hf).register_forward_pre_hook(lambda _m, args: seen.update(last=args[0][0])))
    for pick, side, change in changes:
        module = pick(hf)
        if side == "in":
            handles.append(module.register_forward_pre_hook(lambda _m, args, c=change: (c(args[0]), *args[1:])))
        else:
            handles.append(module.register_forward_hook(lambda _m, _a, out, c=change: c(out)))
    out = hf(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return out.logits[0], [*(h[0] for h in out.hidden_states[:-1]), seen["last"]]


class Norm(torch.nn.Module):
    def __init__(self, centred, gain, bias, eps):
        super().__init__()
        self.centred, self.gain, self.bias, self.eps = centred, gain, bias, eps

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.gain + self.bias


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_a_norm_at_a_fixed_scale_is_the_formula_and_its_parts_sum_to_it(centred, size):
    torch.manual_seed(1)
    gain, bias = torch.randn(24), torch.randn(24)
    norm = Norm(centred, gain, bias, 1e-5)
    parts = torch.randn(5, 24) * size
    state = parts.sum(0)
    found = frozen_norm(norm, state)
    own = state.double() - (state.double().mean() if centred else 0)
    s = float((own.square().mean() + 1e-5).sqrt())
    expected = (parts.double() - (parts.double().mean(-1, keepdim=True) if centred else 0)) / s * gain
    assert found.scale == pytest.approx(1 / s, rel=1e-4)
    torch.testing.assert_close(found.of(parts).double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.of(parts).sum(0) + found.constant, norm(state), rtol=1e-3, atol=1e-4)
    assert found.of(torch.zeros(3, 24)).abs().max() == 0


def test_no_norm_at_all_is_read_off_as_it_is_and_what_is_no_norm_is_refused():
    state = torch.randn(8)
    found = frozen_norm(torch.nn.Identity(), state)
    torch.testing.assert_close(found.of(state[None] * 0.3)[0], state * 0.3)
    assert found.scale == 1 and found.constant.abs().max() == 0
    with pytest.raises(InputError, match="Sigmoid is not linear"):
        frozen_norm(torch.nn.Sigmoid(), state)
    with pytest.raises(InputError, match="NaN"):
        frozen_norm(torch.nn.Identity(), state * torch.nan)


@pytest.mark.parametrize("name", ADDS_UP)
@pytest.mark.parametrize("other", [None, 3])
def test_the_parts_of_a_logit_sum_to_it_and_heads_to_their_attention(opened, name, other):
    one = opened(name)
    found = waterfall(one, IDS, Target(7, other), position=3)
    logits, _ = plain(one, IDS)
    cap = one.model.anatomy.softcap
    raw = logits[3] if cap is None else cap * torch.atanh(logits[3] / cap)
    expected = float(raw[7] - (0 if other is None else raw[other]))
    assert found.total == pytest.approx(expected, abs=2e-3 * max(1, abs(expected)))
    whole = found.parts.filter(pl.col("part").is_in(WHOLE))["contribution"].sum()
    assert whole == pytest.approx(found.total, abs=1e-3)
    for layer in range(one.model.n_layers):
        mine = found.parts.filter(pl.col("layer") == layer)
        attention = mine.filter(pl.col("part") == "attention")["contribution"].item()
        heads = mine.filter(pl.col("part").is_in(["head", "head_bias"]))["contribution"]
        assert len(heads) == one.model.n_heads + 1 and heads.sum() == pytest.approx(attention, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_part_is_the_dot_product_of_what_it_adds_with_the_unembedding_at_the_norms_own_scale(opened, name):
    one, layer, head, position = opened(name), 1, 2, 4
    found = waterfall(one, IDS, Target(7), position=position)
    kept = {}

    def keep(key):
        def change(x):
            kept[key] = x[0] if isinstance(x, tuple) else x
            return x

        return change

    mlp = (lambda hf: hf.model.layers[layer].mlp) if name == "llama" else (lambda hf: hf.transformer.h[layer].mlp)
    _, states = plain(one, IDS, [(lambda hf: heads_of(hf, layer), "in", keep("z")), (mlp, "out", keep("mlp"))])
    norm = norm_of(one.model.hf)
    final = states[-1][position]
    centred = name == "gpt2"
    eps = norm.eps if centred else norm.variance_epsilon
    scale = 1 / float(((final - (final.mean() if centred else 0)).square().mean() + eps).sqrt())
    row = one.model.hf.lm_head.weight[7].detach().double() * norm.weight.detach().double()

    def read(v):
        return float((v - (v.mean() if centred else 0)) @ row) * scale

    W = heads_of(one.model.hf, layer).weight.detach().double()
    W = W.T if name == "llama" else W
    d = one.model.d_head
    wrote = kept["z"][0, position, head * d : (head + 1) * d] @ W[head * d : (head + 1) * d]

    def value(part, **where):
        rows = found.parts.filter(pl.col("part") == part, *(pl.col(k) == v for k, v in where.items()))
        return rows["contribution"].item()

    assert value("head", layer=layer, head=head) == pytest.approx(read(wrote), abs=1e-4)
    assert value("mlp", layer=layer) == pytest.approx(read(kept["mlp"][0, position]), abs=1e-4)
    assert value("embedding") == pytest.approx(read(states[0][position]), abs=1e-4)
    assert found.scale == pytest.approx(scale, rel=1e-4)
    assert value("bias") == pytest.approx(
        float(one.model.hf.lm_head.weight[7].detach() @ norm.bias.detach()) if centred else 0.0, abs=1e-4
    )


def test_a_stream_that_is_more_than_its_parts_is_refused():
    one = Opened(wrap(build("bloom"), None, name="bloom"))
    with pytest.raises(InputError):
        waterfall(one, IDS, Target(7))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("of", OF)
def test_a_lens_map_is_the_final_norm_and_unembedding_of_every_state(opened, name, of):
    one = opened(name)
    reading = readings.read(one, IDS)
    parts = sub_blocks(one, IDS)
    found = lens_map(one, reading, of=of, parts=parts, target=Target(7, 3), k=4)
    layers = range(-1, 3) if of == "stream" else range(3)
    assert found.height == len(layers) * len(IDS)
    logits, states = plain(one, IDS)
    end = logits.log_softmax(-1)
    hf = copy.deepcopy(one.model.hf).double()
    sides = {"attention": parts.attention, "mlp": parts.mlp, "between": parts.attention}
    cap = one.model.anatomy.softcap
    for layer in layers:
        for position in (0, 3, len(IDS) - 1):
            state = states[layer + 1] if of == "stream" else states[layer] * (of == "between")
            state = state[position] + (0 if of == "stream" else sides[of][layer, position].double())
            with torch.no_grad():
                scores = hf.lm_head(norm_of(hf)(state[None]))[0]
            scores = scores if cap is None else cap * torch.tanh(scores / cap)
            log_p = scores.log_softmax(-1)
            row = found.filter(pl.col("layer") == layer, pl.col("position") == position).row(0, named=True)
            assert row["id"] == int(log_p.argmax()) and row["top"] == log_p.topk(4).indices.tolist()
            np.testing.assert_allclose(row["top_probability"], log_p.topk(4).values.exp(), atol=1e-4)
            assert row["entropy"] == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-3)
            kl = float((end[position].exp() * (end[position] - log_p)).sum())
            assert row["kl"] == pytest.approx(kl, rel=2e-3, abs=1e-3)
            assert row["target"] == pytest.approx(float(scores[7] - scores[3]), rel=1e-3, abs=1e-3)
            assert row["target_rank"] == int((log_p > log_p[7]).sum())
            if position + 1 < len(IDS):
                assert row["next_probability"] == pytest.approx(float(log_p[IDS[position + 1]].exp()), abs=1e-4)
                assert row["next_rank"] == int((log_p > log_p[IDS[position + 1]]).sum())
            else:
                assert row["next_probability"] is None and row["next_rank"] is None


def test_a_lens_of_something_else_or_without_its_parts_is_refused(opened):
    one = opened("llama")
    reading = readings.read(one, IDS)
    with pytest.raises(InputError, match="choose stream, between, attention, mlp"):
        lens_map(one, reading, of="heads")
    with pytest.raises(InputError, match="needs what attention and MLPs add"):
        lens_map(one, reading, of="mlp")


def block_of(hf, layer):
    return hf.model.layers[layer] if hasattr(hf, "model") else hf.transformer.h[layer]


@pytest.mark.parametrize("donor", [DONOR, [5, 12, 17, 8, 11, 30, 41]])
def test_a_patching_map_is_the_model_run_with_one_activation_of_the_other_prompt(opened, donor):
    one, target = opened("llama"), Target(7)
    where = align(IDS, donor)
    found = patch_map(one, IDS, donor, target, kind="resid_post")
    own, theirs = plain(one, IDS)[0][-1].log_softmax(-1)[7], plain(one, donor)[0][-1].log_softmax(-1)[7]
    assert (found.own, found.donor) == (pytest.approx(float(own), abs=1e-3), pytest.approx(float(theirs), abs=1e-3))
    _, states = plain(one, donor)
    for layer, position in [(0, 1), (1, 3), (1, 5), (2, 0)]:

        def change(out, layer=layer, position=position):
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            hidden[0, position] = states[layer + 1][where[position]]
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        logits, _ = plain(one, IDS, [(lambda hf, layer=layer: block_of(hf, layer), "out", change)])
        row = found.cells.filter(pl.col("layer") == layer, pl.col("position") == position).row(0, named=True)
        value = float(logits[-1].log_softmax(-1)[7])
        assert row["value"] == pytest.approx(value, abs=2e-3)
        assert row["recovered"] == pytest.approx((value - float(own)) / float(theirs - own), abs=5e-3)


def test_a_heads_map_is_the_model_run_with_one_head_of_the_other_prompt(opened):
    one, target = opened("gpt2"), Target(7, 3)
    found = patch_map(one, IDS, DONOR, target, kind="heads")
    assert found.cells.columns[:2] == ["layer", "head"] and found.cells.height == 12
    d = one.model.d_head
    for layer, head in [(0, 1), (2, 3)]:
        kept = []
        plain(one, DONOR, [(lambda hf, layer=layer: heads_of(hf, layer), "in", lambda x, k=kept: k.append(x) or x)])

        def change(z, head=head, theirs=kept[0]):
            z = z.clone()
            z[..., head * d : (head + 1) * d] = theirs[..., head * d : (head + 1) * d]
            return z

        logits, _ = plain(one, IDS, [(lambda hf, layer=layer: heads_of(hf, layer), "in", change)])
        row = found.cells.filter(pl.col("layer") == layer, pl.col("head") == head).row(0, named=True)
        assert row["value"] == pytest.approx(float(logits[-1, 7] - logits[-1, 3]), abs=2e-3)


def test_alignment_puts_equal_stretches_on_each_other_and_one_by_hand_is_checked(opened):
    assert align([1, 2, 3], [4, 5, 6]) == (0, 1, 2)
    assert align([1, 2, 3, 9], [1, 7, 8, 2, 3, 9]) == (0, 3, 4, 5)
    assert align([1, 7, 8, 2, 3], [1, 2, 3]) == (0, 0, 0, 1, 2)
    # what differs is spread, its ends on its ends; one token alone takes from the last, which has read the others
    assert align([1, 5, 6, 2], [1, 7, 8, 9, 2]) == (0, 1, 3, 4)
    assert align([1, 5, 2], [1, 7, 8, 2]) == (0, 2, 3)
    assert align([1, 5, 6], [1, 7, 8, 9]) == (0, 1, 3)
    one = opened("llama")
    with pytest.raises(InputError, match="must name a position of its donor"):
        patch_map(one, IDS, DONOR, Target(7), alignment=[0, 1])
    with pytest.raises(InputError, match="nothing to patch"):
        patch_map(one, IDS, DONOR, Target(7), kind="logits")


def test_paths_into_a_head_name_every_earlier_head_through_its_query_key_and_value(opened):
    one = opened("llama")
    found = paths_into(one, IDS, DONOR, (2, 1), Target(7))
    assert found.height == 2 * 4 * 3 and found["change"].is_finite().all()
    assert paths_into(one, IDS, IDS, (1, 0), Target(7))["change"].abs().max() < 1e-4
    with pytest.raises(InputError, match="prompts of one length"):
        paths_into(one, IDS, DONOR[:-1], (2, 1), Target(7))


def test_a_target_is_one_token_of_the_model_and_says_what_its_value_is(tiny_llama):
    model = load(str(tiny_llama))
    word = next(t for t in range(100, 400) if model.encode(model.decode([t]), bos=False) == [t])
    found = target_of(model, model.decode([word]), word + 1)
    assert found.ids == [word, word + 1] and "logit(" in found.in_words(model)
    assert target_of(model, word).in_words(model).startswith("log p(")
    scores = torch.randn(3, model.vocab_size)
    torch.testing.assert_close(target_of(model, word).value(scores), scores.log_softmax(-1)[:, word])
    torch.testing.assert_close(found.value(scores), scores[:, word] - scores[:, word + 1])
    with pytest.raises(InputError, match="is .* tokens to"):
        target_of(model, "a very long text that is no single token")
    with pytest.raises(InputError, match="against itself"):
        target_of(model, word, word)
    with pytest.raises(InputError, match="There is no token"):
        target_of(model, model.vocab_size)


def test_a_word_that_a_tokenizer_does_not_know_is_no_target_but_the_sign_for_such_words_is_one_by_its_name():
    model = load("circuit-copy-gqa")
    for word in ("walrusses", " walrusses"):
        with pytest.raises(InputError, match="unknown to circuit-copy-gqa"):
            target_of(model, word)
    with pytest.raises(InputError, match="unknown to"):
        target_of(model, "velvet", "walrusses")
    sign = model.tokenizer.unk_token
    assert target_of(model, sign) == Target(model.tokenizer.unk_token_id)
    assert target_of(model, "velvet").token == model.tokenizer.get_vocab()["velvet"]
