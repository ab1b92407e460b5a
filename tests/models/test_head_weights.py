"""The weights of heads are those of the checkpoint, whatever way it stores them, as they read and write the stream."""

import importlib

import pytest
import torch

from tests.support.architectures import NO_INTERFACE, PARTLY, build
from workbench.core.errors import InputError
from workbench.models.head_weights import head_weights, rotations
from workbench.models.linear_norm import linear_norm
from workbench.models.loading import wrap

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
H, KV, D, WIDTH = 4, 2, 8, 32


def heads(weight, count):
    """A linear map's weight [out, in] as [count, in, out of a head]."""
    return weight.double().T.reshape(weight.shape[1], count, -1).transpose(0, 1)


def written(weight, count=H):
    """An output projection [width, H · D] as [H, D, width]."""
    return weight.double().T.reshape(count, -1, weight.shape[0])


def _llama(hf, layer):
    block = hf.model.layers[layer]
    a, g = block.self_attn, block.input_layernorm.weight.double()[:, None]
    q, k, v = (g * heads(p.weight, n) for p, n in ((a.q_proj, H), (a.k_proj, KV), (a.v_proj, KV)))
    return q, k, v, written(a.o_proj.weight), torch.zeros(KV, D)


def _qwen3(hf, layer):
    q, k, v, o, b = _llama(hf, layer)
    a = hf.model.layers[layer].self_attn
    return q * a.q_norm.weight.double(), k * a.k_norm.weight.double(), v, o, b


def _gemma2(hf, layer):
    block = hf.model.layers[layer]
    a, g = block.self_attn, (1 + block.input_layernorm.weight.double())[:, None]
    after = 1 + block.post_attention_layernorm.weight.double()
    q, k, v = (g * heads(p.weight, n) for p, n in ((a.q_proj, H), (a.k_proj, KV), (a.v_proj, KV)))
    return q, k, v, written(a.o_proj.weight) * after, torch.zeros(KV, D)


def _olmo2(hf, layer):
    block = hf.model.layers[layer]
    a = block.self_attn
    q = heads(a.q_norm.weight[:, None] * a.q_proj.weight, H)
    k = heads(a.k_norm.weight[:, None] * a.k_proj.weight, KV)
    o = written(a.o_proj.weight) * block.post_attention_layernorm.weight.double()
    return q, k, heads(a.v_proj.weight, KV), o, torch.zeros(KV, D)


def _centred(q, k, v, o):
    return *(x - x.mean(1, keepdim=True) for x in (q, k, v)), o - o.mean(-1, keepdim=True)


def _gpt2(hf, layer):
    block = hf.transformer.h[layer]
    g, shift = block.ln_1.weight.double()[:, None], block.ln_1.bias.double()
    q, k, v = (heads(w.T, H) for w in block.attn.c_attn.weight.split(WIDTH, 1))
    bias = block.attn.c_attn.bias.double()[2 * WIDTH :].reshape(H, D) + torch.einsum("d,hde->he", shift, v)
    o = block.attn.c_proj.weight.double().reshape(H, D, WIDTH)
    return *_centred(g * q, g * k, g * v, o), bias


def _gpt_neox(hf, layer):
    block = hf.gpt_neox.layers[layer]
    g, shift = block.input_layernorm.weight.double()[:, None], block.input_layernorm.bias.double()
    w = block.attention.query_key_value.weight.double().reshape(H, 3, D, WIDTH)
    q, k, v = (w[:, i].mT for i in range(3))
    bias = block.attention.query_key_value.bias.double().reshape(H, 3, D)[:, 2] + torch.einsum("d,hde->he", shift, v)
    return *_centred(g * q, g * k, g * v, written(block.attention.dense.weight)), bias


PLAIN = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "olmo2": _olmo2,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}


@pytest.mark.parametrize("name", PLAIN)
def test_head_weights_are_those_of_the_checkpoint_with_their_norms(name):
    hf = build(name)
    wanted = [PLAIN[name](hf, layer) for layer in range(3)]
    for own, (q, k, v, o, bias) in zip(head_weights(wrap(hf)), wanted):
        for found, plain in ((own.query, q), (own.key, k), (own.value, v), (own.output, o), (own.value_bias, bias)):
            torch.testing.assert_close(found.double(), plain.double(), **CLOSE)


def test_raw_weights_leave_the_norms_out():
    hf = build("llama")
    a = hf.model.layers[1].self_attn
    own = head_weights(wrap(hf), folded=False)[1]
    torch.testing.assert_close(own.query.double(), heads(a.q_proj.weight, H), **CLOSE)
    torch.testing.assert_close(own.output.double(), written(a.o_proj.weight), **CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma2"])
def test_bfloat16_weights_are_read_to_their_last_bit_but_one(name):
    wide, narrow = (head_weights(wrap(hf)) for hf in (build(name).bfloat16().float(), build(name).bfloat16()))
    for one, other in zip(wide, narrow):
        for part in ("query", "key", "value", "output"):
            a, b = getattr(one, part), getattr(other, part)
            assert (a - b).abs().max() <= 2**-7 * a.abs().max(), part


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_read_below_the_number_at_which_queries_keys_and_values_are_cut_off(dtype):
    hf = build("olmo", clip_qkv=2.0).to(dtype)
    a = hf.model.layers[1].self_attn
    assert a.q_proj.weight.abs().max() < 2
    own = head_weights(wrap(hf), folded=False)[1]
    for found, plain, count in ((own.query, a.q_proj, H), (own.key, a.k_proj, KV), (own.value, a.v_proj, KV)):
        torch.testing.assert_close(found.double(), heads(plain.weight, count), **CLOSE)


def test_weights_beyond_the_number_at_which_they_are_cut_off_are_refused():
    with pytest.raises(InputError, match="not in proportion"):
        head_weights(wrap(build("olmo", clip_qkv=0.1)))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_a_rotation_is_that_of_the_plain_model_between_query_and_key(name):
    """(q R) · k of rotations(model, 5) is the product of q turned to position 9 and k to position 4."""
    hf = build(name)
    trunk = hf.model if name == "llama" else hf.gpt_neox
    turned = importlib.import_module(type(hf).__module__).apply_rotary_pos_emb
    g = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, H, 7, D, generator=g) for _ in range(2))
    there, here = (trunk.rotary_emb(q, torch.full((1, 7), place)) for place in (9, 4))
    wanted = turned(q, q, *there)[0] @ turned(k, k, *here)[1].mT
    for turn in rotations(wrap(hf), 5):
        torch.testing.assert_close(q @ turn.float() @ k.mT, wanted, rtol=1e-4, atol=1e-4)
        assert (q @ k.mT - wanted).abs().max() > 0.1


def test_a_model_with_learned_positions_turns_nothing():
    for turn in rotations(wrap(build("gpt2")), 7):
        torch.testing.assert_close(turn, torch.eye(D, dtype=torch.double), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_offset_that_no_two_tokens_have_is_refused(name):
    model = wrap(build(name))
    assert len(rotations(model, 63)) == 3
    with pytest.raises(InputError, match="64 tokens apart"):
        rotations(model, 64)


def test_reading_leaves_the_model_as_it_was():
    hf = build("qwen3")
    model = wrap(hf)
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    ids = torch.tensor([[3, 5, 7]])
    logits = hf(input_ids=ids).logits
    head_weights(model)
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    assert torch.equal(hf(input_ids=ids).logits, logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


@pytest.mark.parametrize("name", [*NO_INTERFACE, "bitnet", "granite"])
def test_what_an_architecture_cannot_give_is_refused_in_one_sentence(name):
    assert name in NO_INTERFACE or name in PARTLY
    with pytest.raises(InputError, match="weights of its heads") as refused:
        head_weights(wrap(build(name)))
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize("width", [7, 32])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_linear_part_of_a_norm_is_the_norm_up_to_its_scale(kind, width):
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(width) if kind == "layer" else torch.nn.RMSNorm(width, eps=1e-6)
    for parameter in norm.parameters():
        parameter.data += torch.randn_like(parameter)
    found = linear_norm(norm, width)
    assert found.centred == (kind == "layer")
    x = torch.randn(5, width)
    off = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    scale = off.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(
        norm(x).detach().double(), found.of(x.double()) / scale + found.constant, rtol=1e-4, atol=1e-4
    )


def test_a_module_that_is_no_gain_on_the_state_is_refused():
    with pytest.raises(InputError, match="is not a gain"):
        linear_norm(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()), 8)
