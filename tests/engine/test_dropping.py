"""Dropped modules: exactly the model without them, on every architecture, with nothing left behind."""

from __future__ import annotations

import contextlib
import functools
import threading

import pytest
import torch

from tests.support.architectures import NAMES, PARTLY, build
from workbench.core.errors import InputError
from workbench.engine.capture import capture, logits
from workbench.engine.dropping import DropModules, is_modules, parse_modules, read_modules, save_modules
from workbench.engine.edits import HeadAblation
from workbench.engine.generate import greedy
from workbench.models.loading import wrap
from workbench.models.sites import Site
from workbench.models.skipping import skipping

IDS = [[5, 9, 21, 33, 2, 17, 40, 8], [7, 3, 50]]
ALL = {"attention": [("attention", 1)], "mlp": [("mlp", 0)], "block": [("block", 2), ("block", 0)]}
ALL["joint"] = [("attention", 0), ("mlp", 0), ("mlp", 2)]


@pytest.fixture(scope="module")
def models():
    """models(name) → a tiny model, made once."""
    return functools.cache(lambda name: wrap(build(name), name=name))


def by_hand(hf, model, modules):
    """Logits [T, V] of plain Hugging Face, one text at a time, where hooks of the test set what a sub-layer adds to
    zero and put a block's input in place of its output."""
    handles, entered = [], {}

    def zero(_module, _args, output):
        if isinstance(output, torch.Tensor):
            return torch.zeros_like(output)
        return (torch.zeros_like(output[0]), *output[1:])

    for component, layer in modules:
        block = model.anatomy.blocks[layer]
        if component == "block":

            def enter(_m, args, kwargs, at=layer):
                entered[at] = (args[0] if args else kwargs["hidden_states"]).clone()

            def leave(_m, _args, output, at=layer):
                return entered[at] if isinstance(output, torch.Tensor) else (entered[at], *output[1:])

            handles += [block.block.register_forward_pre_hook(enter, with_kwargs=True)]
            handles += [block.block.register_forward_hook(leave)]
        else:
            writer = block.attention_writer if component == "attention" else block.mlp_writer
            handles.append(writer.register_forward_hook(zero))
    try:
        with torch.no_grad():
            return [hf(input_ids=torch.tensor([row]), use_cache=False).logits[0].float() for row in IDS]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_dropped_modules_give_the_logits_of_plain_hugging_face_with_zeros_bit_for_bit(models, name):
    model = models(name)
    for modules in ALL.values():
        wanted = by_hand(model.hf, model, modules)
        with skipped(model, modules), torch.no_grad():
            found = [model.hf(input_ids=torch.tensor([row]), use_cache=False).logits[0].float() for row in IDS]
        plain = by_hand(model.hf, model, [])
        for a, b, c in zip(found, wanted, plain):
            assert torch.equal(a, b) and not torch.equal(a, c)
    assert not [module for module in model.hf.modules() if "forward" in vars(module)]


def skipped(model, modules):
    stack = contextlib.ExitStack()
    for component, layer in modules:
        stack.enter_context(skipping(model, component, layer))
    return stack


def test_what_is_dropped_is_not_computed(models):
    model = models("llama")
    run: list[str] = []
    block = model.anatomy.blocks[1]
    inner = [block.o_proj, block.mlp_hidden]
    own = [module.forward for module in inner]
    for module, forward in zip(inner, own):
        module.forward = lambda *a, f=forward, **k: run.append("ran") or f(*a, **k)
    try:
        for component, times in (("attention", 1), ("mlp", 1), ("block", 0)):
            run.clear()
            logits(model, IDS[:1], edits=[DropModules(((component, 1),))])
            assert len(run) == times
    finally:
        for module in inner:
            del module.forward


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "opt", "gptj", "mixtral"])
def test_sites_inside_are_there_and_what_is_added_is_zero(models, name):
    model = models(name)
    edit = DropModules((("attention", 1), ("mlp", 2), ("block", 0)))
    wanted = [Site(k, n) for n in range(3) for k in ("resid_pre", "attn_out", "mlp_out", "resid_post", "head_out")]
    seen = capture(model, IDS, wanted, positions="all", edits=[edit])
    for site in ("attn_out.1", "mlp_out.2", "attn_out.0", "mlp_out.0"):
        assert not seen[site].any(), site
    assert seen["attn_out.2"].any() and seen["head_out.1"].any()
    assert torch.equal(seen["resid_post.0"], seen["resid_pre.0"])
    # looked into or not, the logits are the same
    looked = logits(model, IDS, edits=[edit, HeadAblation(((1, 0),))])
    assert torch.equal(looked, logits(model, IDS, edits=[edit]))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon"])
def test_texts_go_on_without_the_modules_as_whole_passes_say(models, name):
    model = models(name)
    edit = DropModules((("block", 0), ("attention", 1)))
    found = greedy(model, IDS, max_new_tokens=4, edits=[edit])
    for row, text in zip(IDS, found):
        ids = list(row)
        for token in text:
            assert int(logits(model, [ids], edits=[edit])[0].argmax()) == token
            ids.append(token)


def test_batches_give_the_numbers_of_single_prompts_and_other_threads_run_the_whole_model(models):
    model = models("llama")
    edit = DropModules((("attention", 0), ("mlp", 1)))
    alone = torch.cat([logits(model, [row], edits=[edit]) for row in IDS])
    assert (logits(model, IDS, edits=[edit]) - alone).abs().max() < 1e-5
    plain, elsewhere = logits(model, IDS), []
    with skipping(model, "block", 1):
        thread = threading.Thread(target=lambda: elsewhere.append(logits(model, IDS)))
        thread.start()
        thread.join()
        assert not torch.equal(logits(model, IDS), plain)
    assert torch.equal(elsewhere[0], plain) and torch.equal(logits(model, IDS), plain)


def test_the_engine_that_cannot_leave_modules_out_says_so(models):
    with pytest.raises(InputError, match="dropped by the engine 'hf' only"):
        capture(models("llama"), IDS, ["resid_post.1"], edits=[DropModules((("block", 1),))], engine="nnsight")


@pytest.mark.parametrize("name", [n for n in PARTLY if n in ("granite", "bloom")])
def test_a_sub_layer_that_does_more_than_add_is_refused_and_a_block_is_not(name):
    model = wrap(build(name), name=name)
    with pytest.raises(InputError, match="does not fit dropping attention 1"):
        logits(model, IDS, edits=[DropModules((("attention", 1),))])
    found = logits(model, IDS[:1], edits=[DropModules((("block", 1),))])
    assert torch.allclose(found[0], by_hand(model.hf, model, [("block", 1)])[0][-1], atol=1e-4)


@pytest.mark.parametrize(
    "modules, message",
    [((), "nothing to drop"), ((("attention", 3),), "layers 0–2"), ((("norm", 0),), "'norm' cannot be dropped")],
)
def test_modules_that_are_not_there_are_refused(models, modules, message):
    with pytest.raises(InputError, match=message):
        logits(models("llama"), IDS, edits=[DropModules(modules)])


def test_a_file_of_modules_comes_back_and_says_which_weights_it_was_found_on(models, tmp_path):
    path, model = tmp_path / "dropped.json", models("llama")
    save_modules(path, [("attention", 1), ("block", 0), ("block", 0)], note="two", model=model)
    found = read_modules(path)
    assert found.modules == (("attention", 1), ("block", 0)) and found.note == "two"
    assert is_modules(path.read_bytes()) and found.mismatch_warning(model) is None
    assert "not on these weights" in found.mismatch_warning(models("gpt2"))
    for bad in (b"[]", b'{"drop": []}', b'{"drop": [["attention", -1]]}', b'{"drop": [["head", 1]]}', b'{"drop": 3}'):
        with pytest.raises(InputError, match="dropped.json"):
            parse_modules(bad, path)
    assert not is_modules(b'{"heads": [[0, 1]]}')
