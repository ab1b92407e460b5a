"""`HeadScale` against plain hooks on the Hugging Face model: grouped queries, absolute positions, decoding."""

import pytest
import torch

from tests.support.architectures import build
from workbench import HeadScale
from workbench.core.errors import InputError
from workbench.engine.capture import logits
from workbench.engine.edits import HeadAblation, describe
from workbench.engine.generate import greedy
from workbench.models.loading import wrap

PROMPTS = [[5, 9, 13, 21, 7], [33, 8, 2], [3, 4, 5, 6]]
HEADS = ((0, 1), (2, 3), (2, 0))
PROJECTION = {  # where a hook finds the heads' outputs side by side
    "llama": lambda hf, layer: hf.model.layers[layer].self_attn.o_proj,
    "gpt2": lambda hf, layer: hf.transformer.h[layer].attn.c_proj,
    "gpt_neox": lambda hf, layer: hf.gpt_neox.layers[layer].attention.dense,
}


@pytest.fixture(scope="module", params=PROJECTION)
def both(request):
    """(the model, the module of a layer by plain Hugging Face)."""
    hf = build(request.param)
    return wrap(hf, None, name=request.param), lambda layer: PROJECTION[request.param](hf, layer)


def by_hooks(model, projection, ids, scales, positions=None):
    """Last scores of one prompt by the plain model, heads multiplied by forward hooks at these positions."""

    def hook(layer):
        def scaled(_module, args):
            x = args[0].clone()
            parts = x.view(*x.shape[:-1], model.n_heads, model.d_head)
            for (at, head), scale in scales.items():
                for t in range(len(ids)) if positions is None else positions:
                    if at == layer:
                        parts[:, t, head] *= scale
            return (x,)

        return projection(layer).register_forward_pre_hook(scaled)

    handles = [hook(layer) for layer in range(model.n_layers)]
    try:
        with torch.no_grad():
            return model.hf(torch.tensor([ids])).logits[0, -1].float()
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("scale", [0.5, -1.0, 3.0, (0.0, 2.0, -0.5)])
@pytest.mark.parametrize("positions", [None, (0, -1)])
def test_scaled_heads_give_the_scores_of_plain_hooks(both, scale, positions):
    model, projection = both
    scales = dict(zip(HEADS, scale if isinstance(scale, tuple) else [scale] * 3))
    found = logits(model, PROMPTS, edits=(HeadScale(HEADS, scale, positions),))
    for ids, row in zip(PROMPTS, found):
        torch.testing.assert_close(row, by_hooks(model, projection, ids, scales, positions), atol=2e-5, rtol=1e-4)
    assert (found - logits(model, PROMPTS)).abs().max() > 1e-3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_zero_is_zero_ablation_and_one_changes_nothing(both):
    model, _ = both
    assert torch.equal(
        logits(model, PROMPTS, edits=(HeadScale(HEADS, 0.0),)), logits(model, PROMPTS, edits=(HeadAblation(HEADS),))
    )
    assert torch.equal(logits(model, PROMPTS, edits=(HeadScale(HEADS, 1.0),)), logits(model, PROMPTS))


def test_a_scale_holds_while_decoding_as_if_every_step_read_the_text_again(both):
    model, projection = both
    ids = list(PROMPTS[0])
    for _ in range(5):
        ids.append(int(by_hooks(model, projection, ids, dict.fromkeys(HEADS, 2.5)).argmax()))
    found = greedy(model, PROMPTS[:1], max_new_tokens=5, edits=(HeadScale(HEADS, 2.5),), eos=False)
    assert found == [ids[len(PROMPTS[0]) :]]


def test_two_scales_multiply_and_what_is_written_down_tells_scales_apart(both):
    model, _ = both
    twice = logits(model, PROMPTS, edits=(HeadScale(HEADS, 0.5), HeadScale(HEADS, 0.5)))
    torch.testing.assert_close(twice, logits(model, PROMPTS, edits=(HeadScale(HEADS, 0.25),)), atol=1e-5, rtol=1e-5)
    told = [describe([HeadScale(HEADS, scale)]) for scale in (0.5, 0.25, (0.5, 0.5, 0.25))]
    assert told[0] != told[1] != told[2] and told[0][0]["edit"] == "HeadScale"


@pytest.mark.parametrize(
    "edit, says",
    [
        (HeadScale(((9, 0),)), "Head 9.0 does not exist"),
        (HeadScale(HEADS, (1.0, 2.0)), "2 scales for 3 heads"),
        (HeadScale(((0, 1), (0, 1)), 2.0), "named twice"),
        (HeadScale(HEADS, float("nan")), "cannot be scaled by nan"),
        (HeadScale(HEADS, (1.0, float("inf"), 0.0)), "cannot be scaled by inf"),
        (HeadScale(HEADS, 2.0, (4,)), "Position 4 to edit is not among"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(both, edit, says):
    with pytest.raises(InputError, match=says):
        logits(both[0], PROMPTS, edits=(edit,))
