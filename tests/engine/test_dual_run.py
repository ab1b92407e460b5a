"""`DualRun` against two plain forward passes of the Hugging Face model, the first recorded by hooks, the second changed
by them."""

import json

import pytest
import torch

from tests.support.architectures import build
from workbench import DualRun
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.edits import HeadAblation, HeadScale, describe
from workbench.engine.generate import greedy, sample
from workbench.engine.head_masks import load_edits, read_mask, save_heads
from workbench.engine.patching import direct_mlp_effects
from workbench.models.loading import wrap

PROMPTS = [[5, 9, 13, 21, 7], [33, 8, 2], [3, 4, 5, 6]]
HEADS, SCALES = ((0, 1), (2, 3), (1, 0)), (3.0, -1.0, 2.0)
PROJECTION = {  # where a hook finds the heads' outputs side by side
    "llama": lambda hf, layer: hf.model.layers[layer].self_attn.o_proj,  # grouped queries
    "gemma2": lambda hf, layer: hf.model.layers[layer].self_attn.o_proj,  # a norm after attention, a window of 6
    "gpt2": lambda hf, layer: hf.transformer.h[layer].attn.c_proj,
    "gpt_neox": lambda hf, layer: hf.gpt_neox.layers[layer].attention.dense,
}


@pytest.fixture(scope="module", params=PROJECTION)
def both(request):
    """(the model, the module of a layer by plain Hugging Face)."""
    hf = build(request.param)
    return wrap(hf, None, name=request.param), lambda layer: PROJECTION[request.param](hf, layer)


def twice(model, projection, ids, scales):
    """Last scores of one prompt: a pass that hooks record, and one in which they add what was recorded."""
    first = {}
    hooks = [
        projection(layer).register_forward_pre_hook(
            lambda _m, args, layer=layer: first.update({layer: args[0].clone()})
        )
        for layer in range(model.n_layers)
    ]
    with torch.no_grad():
        model.hf(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()

    def adding(layer):
        def added(_module, args):
            x, d = args[0].clone(), model.d_head
            for (at, head), scale in scales.items():
                if at == layer:
                    part = slice(head * d, (head + 1) * d)
                    x[..., part] += scale * first[layer].view(x.shape)[..., part]
            return (x,)

        return projection(layer).register_forward_pre_hook(added)

    hooks = [adding(layer) for layer in range(model.n_layers)]
    try:
        with torch.no_grad():
            return model.hf(torch.tensor([ids])).logits[0, -1].float()
    finally:
        for hook in hooks:
            hook.remove()


def test_scores_are_those_of_two_plain_passes(both):
    model, projection = both
    found = logits(model, PROMPTS, edits=(DualRun(HEADS, SCALES),))
    for ids, row in zip(PROMPTS, found):
        torch.testing.assert_close(row, twice(model, projection, ids, dict(zip(HEADS, SCALES))), atol=2e-4, rtol=1e-4)
    assert (found - logits(model, PROMPTS, edits=(HeadScale(HEADS, tuple(s + 1 for s in SCALES)),))).abs().max() > 0.1


def test_generated_tokens_are_those_of_two_passes_over_the_whole_text_for_each(both):
    model, projection = both
    expected = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(7):
            ids.append(int(twice(model, projection, ids, dict(zip(HEADS, SCALES))).argmax()))
        expected.append(ids[len(prompt) :])
    edits = (DualRun(HEADS, SCALES),)
    assert greedy(model, PROMPTS, max_new_tokens=7, eos=False, edits=edits) == expected
    assert greedy(model, PROMPTS, max_new_tokens=7, eos=False) != expected


def test_rows_that_end_and_samples_that_share_a_prompt_go_on_with_their_own_first_run():
    model, edits = wrap(build("llama"), None, name="llama"), (DualRun(HEADS, SCALES),)
    whole = greedy(model, PROMPTS, max_new_tokens=9, edits=edits)
    alone = [greedy(model, [ids], max_new_tokens=9, edits=edits)[0] for ids in PROMPTS]
    assert whole == alone
    drawn = sample(model, PROMPTS, samples=3, max_new_tokens=5, edits=edits, eos=False)
    for row, ids in enumerate(PROMPTS):
        said = drawn.tokens(row, 2)
        scores = logits(model, [[*ids, *said[:-1]]], edits=edits)[0]
        found = float(drawn.statistic("logprob_full")[row, 2, 4])
        assert found == pytest.approx(float(scores.log_softmax(-1)[said[-1]]), abs=1e-4)


def test_in_the_first_layer_it_is_a_head_scaled_by_one_more():
    model = wrap(build("llama"), None, name="llama")
    for heads, scales in ((((0, 1), (0, 2)), (-1.0, 0.5)), (((0, 3),), (2.0,))):
        found = logits(model, PROMPTS, edits=(DualRun(heads, scales),))
        expected = logits(model, PROMPTS, edits=(HeadScale(heads, tuple(s + 1 for s in scales)),))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_is_captured_is_of_the_second_run_and_the_model_is_as_before():
    model = wrap(build("gpt2"), None, name="gpt2")
    before = logits(model, PROMPTS)
    found = capture(model, PROMPTS, ["head_out.1", "resid_post.2"], edits=(DualRun(((1, 0),), 2.0),))
    plain = capture(model, PROMPTS, ["head_out.1", "resid_post.2"])
    site = next(site for site in found if site.kind == "head_out")
    torch.testing.assert_close(found[site][:, 0], 3 * plain[site][:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[site][:, 1:], plain[site][:, 1:])
    assert torch.equal(logits(model, PROMPTS), before)


def test_the_other_engine_records_the_same():
    model = wrap(build("llama"), None, name="llama")
    options = {"sites": ["head_out.2", "resid_post.2"], "edits": (DualRun(HEADS, SCALES),)}
    found, expected = (capture(model, PROMPTS, engine=engine, **options) for engine in ("nnsight", "hf"))
    for site in expected:
        torch.testing.assert_close(found[site], expected[site], atol=1e-4, rtol=1e-4)


def test_other_edits_act_in_the_second_run_only():
    model = wrap(build("llama"), None, name="llama")
    found = logits(model, PROMPTS, edits=(HeadAblation(((0, 1),)), DualRun(((0, 1),), -1.0)))
    expected = logits(model, PROMPTS, edits=(HeadScale(((0, 1),), -1.0),))  # 0 minus what it says by itself
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused():
    model = wrap(build("llama"), None, name="llama")
    for edit, words in (
        (DualRun(((9, 0),)), "Head 9.0 does not exist"),
        (DualRun(()), "needs heads"),
        (DualRun(((0, 1), (0, 1))), "each named once"),
        (DualRun(((0, 1),), (1.0, 2.0)), "2 scales for 1 heads"),
        (DualRun(((0, 1),), float("inf")), "inf times"),
    ):
        with pytest.raises(InputError, match=words):
            logits(model, PROMPTS, edits=(edit,))
    with pytest.raises(InputError, match="needs whole passes"):
        direct_mlp_effects(model, [[5, 9, 13]], [[5, 8, 13]], [[1, 2]], edits=(DualRun(((2, 1),)),))


def test_a_file_holds_a_dual_run_for_the_command_line(tmp_path):
    model = wrap(build("llama"), None, name="llama")
    save_heads(tmp_path / "dual.json", HEADS, how="dual run", scales=SCALES, note="x", model=model)
    (edit,) = load_edits(tmp_path / "dual.json")
    assert describe([edit]) == describe([DualRun(HEADS, SCALES)])
    assert read_mask(tmp_path / "dual.json").mismatch_warning(model) is None
    content = json.loads((tmp_path / "dual.json").read_text())
    for wrong in ({"scales": [1.0]}, {"heads": [[0, 1]] * 3}, {"scales": ["a", 1, 2]}):
        (tmp_path / "wrong.json").write_text(json.dumps(content | wrong))
        with pytest.raises(InputError, match=r"scales|convert"):
            load_edits(tmp_path / "wrong.json")
    with pytest.raises(InputError, match="0 scales for 3 heads"):
        save_heads(tmp_path / "none.json", HEADS, how="dual run")
