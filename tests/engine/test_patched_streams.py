"""Texts after patched streams, against a plain loop of Hugging Face: one hooked generation per patch (eager)."""

import pytest
import torch

from tests.support.architectures import build
from workbench.core.errors import InputError
from workbench.engine.edits import HeadAblation
from workbench.engine.generate import greedy
from workbench.engine.patched_streams import (
    StreamPatches,
    TextDrawing,
    patched_texts,
    whole_passes,
)
from workbench.engine.rule import Rule
from workbench.models.loading import wrap

# grouped queries; learned positions; a sliding window; post-norms, soft-caps and a window; post-norms; parallel blocks;
# experts; attention outside the interface
NAMES = ("llama", "gpt2", "mistral", "gemma2", "olmo2", "gpt_neox", "mixtral", "falcon", "gptj")
STEPS = 4


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """(model, plain Hugging Face model, prompts of three lengths)."""
    hf = build(request.param)
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 64, (n,), generator=draw).tolist() for n in (9, 12, 9, 3)]
    return wrap(hf, None, name=request.param), hf, ids


def blocks(hf):
    if hasattr(hf, "transformer"):
        return hf.transformer.h
    return hf.gpt_neox.layers if hasattr(hf, "gpt_neox") else hf.model.layers


def test_models_whose_blocks_cannot_be_called_on_their_own_are_run_in_whole_passes():
    """ALiBi: a bias that is made for the whole batch."""
    hf = build("bloom")
    model, ids = wrap(hf, None, name="bloom"), [[5, 6, 7, 8, 9], [9, 8, 7]]
    patches = some_patches(model, ids, 6)
    found = patched_texts(model, ids, patches, max_new_tokens=STEPS)
    for i, (text,) in enumerate(found):
        state, place = patches.states[i], (patches.layer[i], patches.position[i])
        assert text == slow(hf, ids[patches.prompt[i]], *place, state, ends=model.eos_ids)


def some_patches(model, ids, n=14):
    """Patches at random layers and positions, the last block and the ends of a prompt among them."""
    draw = torch.Generator().manual_seed(7)
    prompt = torch.randint(len(ids), (n,), generator=draw).tolist()
    layer = [0, model.n_layers - 1, *torch.randint(model.n_layers, (n - 2,), generator=draw).tolist()]
    position = [int(torch.randint(len(ids[p]), (1,), generator=draw)) for p in prompt]
    position[1], position[2], position[3] = len(ids[prompt[1]]) - 1, 0, len(ids[prompt[3]]) - 1
    states = 3 * torch.randn(n, model.width, generator=draw)
    return StreamPatches(states, prompt, layer, position, list(range(n)))


@torch.no_grad()
def slow(hf, row, layer, position, state, steps=STEPS, ends=()):
    """The greedy text after one prompt whose stream is patched in every pass over it: no cache, one whole pass a
    token."""

    def put(_m, _a, output):
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        hidden = hidden.clone()
        hidden[0, position] = state
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    handle = blocks(hf)[layer].register_forward_hook(put)
    written = []
    try:
        for _ in range(steps):
            written.append(int(hf(torch.tensor([row + written]), use_cache=False).logits[0, -1].argmax()))
            if written[-1] in ends:
                break
    finally:
        handle.remove()
    return written


def test_every_patch_gives_the_text_of_one_hooked_generation(case):
    model, hf, ids = case
    patches = some_patches(model, ids)
    found = patched_texts(model, ids, patches, max_new_tokens=STEPS)
    expected = [
        slow(hf, ids[p], layer, position, state, ends=model.eos_ids)
        for p, layer, position, state in zip(patches.prompt, patches.layer, patches.position, patches.states)
    ]
    assert [text for (text,) in found] == expected
    plain = greedy(model, ids, max_new_tokens=STEPS)
    assert sum(text != plain[p] for text, p in zip(expected, patches.prompt)) > 3  # the patches matter
    assert whole_passes(model, ids, patches, max_new_tokens=STEPS) == found


def test_blocks_are_called_on_their_own_and_batches_change_nothing(case, monkeypatch):
    model, _, ids = case
    patches = some_patches(model, ids)
    whole = patched_texts(model, ids, patches, max_new_tokens=STEPS)
    monkeypatch.setattr("workbench.engine.patched_streams.whole_passes", None)  # what is tested is not the other way
    assert patched_texts(model, ids, patches, max_new_tokens=STEPS, max_rows=1) == whole
    assert patched_texts(model, ids, patches, max_new_tokens=STEPS, max_rows=3) == whole


def test_a_patch_with_its_own_state_changes_nothing(case):
    from workbench.engine.capture import capture

    model, _, ids = case
    acts = capture(model, ids, ["resid_post.0", "resid_post.1", "resid_post.2"], positions="all")
    own = [
        (p, layer, position) for p, row in enumerate(ids) for layer in range(3) for position in range(0, len(row), 3)
    ]
    states = torch.stack([acts.rows(f"resid_post.{layer}", p)[position] for p, layer, position in own])
    prompt, layer, position = map(list, zip(*own))
    found = patched_texts(
        model, ids, StreamPatches(states, prompt, layer, position, list(range(len(own)))), max_new_tokens=STEPS
    )
    plain = greedy(model, ids, max_new_tokens=STEPS)
    assert [text for (text,) in found] == [plain[p] for p in prompt]


def test_drawn_texts_are_those_of_whole_passes_whatever_batch_they_are_in(case):
    model, _, ids = case
    patches, how = some_patches(model, ids, 6), TextDrawing(Rule(temperature=0.7), samples=3, seed=5)
    found = patched_texts(model, ids, patches, max_new_tokens=STEPS, drawing=how)
    assert all(len(texts) == 3 for texts in found) and len({str(t) for texts in found for t in texts}) > 6
    assert whole_passes(model, ids, patches, max_new_tokens=STEPS, drawing=how) == found
    assert patched_texts(model, ids, patches, max_new_tokens=STEPS, drawing=how, max_rows=1) == found


def test_edits_of_the_pass_act_on_patched_prompts(case):
    model, _, ids = case
    patches, off = some_patches(model, ids), [HeadAblation(((1, 0), (2, 3)))]
    found = patched_texts(model, ids, patches, max_new_tokens=STEPS, edits=off)
    assert found != patched_texts(model, ids, patches, max_new_tokens=STEPS)
    assert found == whole_passes(model, ids, patches, max_new_tokens=STEPS, edits=off)


def test_no_hook_is_left_and_patches_that_do_not_fit_are_refused():
    model = wrap(build("llama"), None, name="llama")
    ids, state = [[5, 6, 7]], torch.zeros(1, model.width)
    patched_texts(model, ids, StreamPatches(state, [0], [1], [2], [0]), max_new_tokens=1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    for patches, said in (
        (StreamPatches(state, [0], [3], [2], [0]), "Layer 3 to patch does not exist"),
        (StreamPatches(state, [0], [1], [3], [0]), "Position 3 to patch is not among the 3 tokens"),
        (StreamPatches(state, [1], [1], [2], [0]), "not there"),
        (StreamPatches(state[:, :5], [0], [1], [2], [0]), "have 32 numbers each"),
    ):
        with pytest.raises(InputError, match=said):
            patched_texts(model, ids, patches, max_new_tokens=1)
