"""Scaling a component of a head is the edit of its weights, and moves nothing else."""

import copy
import json

import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.component_scale import ComponentScale
from workbench.engine.composition import components
from workbench.engine.head_masks import COMPONENTS, load_edits, read_mask, save_components
from workbench.models.head_weights import head_weights
from workbench.models.loading import wrap

IDS = [[3, 9, 4, 17, 30, 5], [8, 2, 11]]
HEAD, WHICH = (1, 2), 0


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2", "gpt_neox"])
def model(request):
    return wrap(build(request.param))


def edit_of(model, scale=0.0, about=None, **more):
    weights = head_weights(model)[HEAD[0]]
    own = components(weights)
    read, put = own.reads[HEAD[1], WHICH], own.puts[HEAD[1], WHICH]
    group = model.n_heads // model.n_kv_heads
    rest = float(weights.value_bias[HEAD[1] // group].double() @ read) if about is None else about
    edit = ComponentScale((HEAD,), read.float()[None], put.float()[None], scale, rest, **more)
    return edit, own.writes[HEAD[1], WHICH]


def plain_logits(hf, ids):
    return [hf(input_ids=torch.tensor([row])).logits[0, -1] for row in ids]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@torch.no_grad()
def test_removing_a_component_is_the_weight_edit_on_a_plain_model(name):
    """In a model whose weights are written over: W_V W_O less s u vᵀ, the bias of the values as before."""
    hf = build(name).double()
    edited = copy.deepcopy(hf)
    edit, v = edit_of(wrap(copy.deepcopy(hf).float()))
    if name == "gpt2":
        block = edited.transformer.h[HEAD[0]]
        own = slice(HEAD[1] * 8, HEAD[1] * 8 + 8)
        w = block.attn.c_proj.weight[own]
        centred = w - w.mean(1, keepdim=True)  # all that reads the stream takes its mean off
        values = block.attn.c_attn.weight[:, 64:][:, own]
        rest = (block.ln_1.bias @ values + block.attn.c_attn.bias[64:][own]) @ centred @ v
        block.attn.c_proj.weight[own] = centred - torch.outer(centred @ v, v)
        block.attn.c_proj.bias += rest * v
    else:
        w = edited.model.layers[HEAD[0]].self_attn.o_proj.weight  # [width, H · D]
        own = slice(HEAD[1] * 8, HEAD[1] * 8 + 8)
        w[:, own] = w[:, own] - torch.outer(v, v @ w[:, own])
    ours = logits(wrap(hf.float()), IDS, edits=[edit])
    plain = torch.stack(plain_logits(edited, IDS))
    was = torch.stack(plain_logits(hf, IDS))
    assert (plain - was).abs().max() > 0.01
    torch.testing.assert_close(ours.double(), plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_only_the_coordinate_of_the_component_moves(model):
    edit, _ = edit_of(model, scale=-2.0, about=0.25)
    site = f"head_out.{HEAD[0]}"
    z, changed = (capture(model, IDS, [site], positions="last", edits=e)[site] for e in ([], [edit]))
    own = components(head_weights(model)[HEAD[0]])
    for head in range(model.n_heads):
        before, after = (x[:, head].double() @ own.reads[head].T for x in (z, changed))
        if head != HEAD[1]:
            assert torch.equal(before, after)
            continue
        before[:, WHICH] = 0.25 - 2.0 * (before[:, WHICH] - 0.25)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


def test_a_scale_of_one_changes_nothing_and_a_batch_is_its_prompts(model):
    same, _ = edit_of(model, scale=1.0)
    assert torch.equal(logits(model, IDS, edits=[same]), logits(model, IDS))
    edit, _ = edit_of(model, scale=3.0)
    together = logits(model, IDS, edits=[edit])
    alone = torch.cat([logits(model, [row], edits=[edit]) for row in IDS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_positions_are_those_that_are_named(model):
    edit, _ = edit_of(model, scale=0.0, positions=((0,), (-1,)))
    site = f"head_out.{HEAD[0]}.{HEAD[1]}"
    z, changed = (capture(model, IDS, [site], positions="all", edits=e)[site] for e in ([], [edit]))
    moved = (z != changed).any(-1).tolist()  # of both prompts, token by token
    assert moved == [True] + [False] * 5 + [False, False, True]


def test_several_components_are_scaled_as_one_after_another(model):
    own = [components(w) for w in head_weights(model)]
    chosen = [((1, 2), 0, 0.5, 0.1), ((1, 2), 3, -1.0, 0.0), ((0, 1), 2, 2.0, -0.3)]
    reads, puts = (
        torch.stack([getattr(own[layer], side)[head, i].float() for (layer, head), i, _, _ in chosen])
        for side in ("reads", "puts")
    )
    heads, _, scales, abouts = zip(*chosen)
    together = ComponentScale(heads, reads, puts, scales, abouts)
    apart = [ComponentScale((h,), reads[[k]], puts[[k]], scales[k], abouts[k]) for k, h in enumerate(heads)]
    first, second = logits(model, IDS, edits=[together]), logits(model, IDS, edits=apart)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4 * float(first.abs().max()))


def test_components_in_a_file_do_what_they_do(model, tmp_path):
    edit, _ = edit_of(model, scale=-1.5, about=0.25)
    path = tmp_path / "channels.json"
    save_components(path, edit, note="found", model=model)
    found = read_mask(path)
    assert found.how == COMPONENTS and found.note == "found" and found.model["layers"] == 3
    assert torch.equal(logits(model, IDS, edits=[found.edit]), logits(model, IDS, edits=[edit]))
    assert load_edits(path)[0].heads == (HEAD,)


@pytest.mark.parametrize("part", ["read", "put", "scales", "about"])
def test_a_file_of_components_that_is_not_whole_is_refused(model, tmp_path, part):
    edit, _ = edit_of(model)
    path = tmp_path / "channels.json"
    save_components(path, edit, model=model)
    found = json.loads(path.read_text())
    found[part] = found[part] * 2
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="not a head mask"):
        read_mask(path)


@pytest.mark.parametrize("wrong", ["head", "shape", "scale", "number"])
def test_what_does_not_fit_is_refused(model, wrong):
    one = torch.ones(1, model.d_head)
    edit = {
        "head": ComponentScale(((9, 0),), one, one),
        "shape": ComponentScale((HEAD,), torch.ones(1, 3), one),
        "scale": ComponentScale((HEAD,), one, one, float("nan")),
        "number": ComponentScale((HEAD,), one, one, (1.0, 2.0)),
    }[wrong]
    with pytest.raises(InputError):
        logits(model, IDS, edits=[edit])
