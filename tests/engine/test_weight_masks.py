"""Masks of single weights: in a pass, in files, as a folder; what each matrix of a block is for."""

import contextlib
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.architectures import build
from workbench import load, logits
from workbench.cli.main import run as command_line
from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.engine.edits import apply, describe
from workbench.engine.pickled_arrays import arrays_and_texts
from workbench.engine.weight_masks import WeightMask, parse_masks, read_masks, save_masks
from workbench.models.block_weights import block_weights
from workbench.models.loading import wrap

IDS = [[5, 9, 33, 7, 21, 40, 8]]
NAMES = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma2", "phi3", "falcon", "bloom", "opt", "gptj")


def random_masks(model, seed=0):
    draw = torch.Generator().manual_seed(seed)
    weights = block_weights(model, for_what="a test")
    return {own.name: torch.rand(own.shape, generator=draw) < 0.5 for own in weights}


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return wrap(build(request.param))


def without_biases(model):
    for own in block_weights(model, for_what="a test"):
        if own.module.bias is not None:
            own.module.bias.data.zero_()


def test_heads_without_their_values_say_nothing_and_without_queries_or_keys_they_look_evenly(model):
    """Whose output features are whose, by what the model does: also in maps that hold queries, keys and values."""
    without_biases(model)
    weights = block_weights(model, for_what="a test")
    for layer in (0, 2):
        mine = [own for own in weights if own.layer == layer]
        roles = [role for own in mine for role in own.roles]
        assert {"attention q", "attention k", "attention v", "attention o", "mlp out"} <= set(roles)
        assert len(roles) == len(set(roles))
        for own in mine:  # every output feature belongs to one role
            every = torch.cat(list(own.roles.values()))
            assert sorted(every.tolist()) == list(range(own.shape[1 if own.transposed else 0]))

        def dropped(role, mine=mine, weights=weights):
            masks = {own.name: torch.ones(own.shape).bool() for own in weights}
            own = next(own for own in mine if role in own.roles)
            side = 1 if own.transposed else 0
            masks[own.name].index_fill_(side, own.roles[role], False)
            return WeightMask.of(masks)

        def of_last(role, at, dropped=dropped):
            edits = [dropped(role)] if role else []
            return capture(model, IDS, [at], positions="all", edits=edits)[at][-1]

        site = f"head_out.{layer}"
        plain = of_last(None, site)
        assert plain.abs().max() > 1e-3 and of_last("attention v", site).abs().max() == 0
        if model.lacks("stream_adds_up", layers=[layer]) is None and not model.anatomy.post_norms:
            assert of_last("attention o", f"attn_out.{layer}").abs().max() == 0
        if model.architecture == "BloomForCausalLM":
            continue  # with positions in the scores, a query that is zero still looks unevenly
        even = [of_last(role, site) for role in ("attention q", "attention k")]
        torch.testing.assert_close(even[0], even[1])
        assert (even[0] - plain).abs().max() > 1e-4


def test_a_masked_pass_is_that_of_a_copy_with_zeros_and_leaves_nothing(model):
    masks = random_masks(model)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    found = [logits(model, IDS, edits=[WeightMask.of(masks, remove=remove)]) for remove in (False, True)]
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    for remove, scores in zip((False, True), found):
        own = {name: w * (masks[name] != remove) for name, w in model.hf.named_parameters() if name in masks}
        wanted = torch.func.functional_call(model.hf, own, (), {"input_ids": torch.tensor(IDS)}).logits[0, -1]
        torch.testing.assert_close(scores[0], wanted.detach().float(), atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def llama():
    return wrap(build("llama"))


def test_another_thread_computes_with_the_weights_as_they_are(llama):
    plain, seen = logits(llama, IDS), []
    with apply(llama, [WeightMask.of(random_masks(llama))]):
        thread = threading.Thread(target=lambda: seen.append(logits(llama, IDS)))
        thread.start()
        thread.join()
        assert not torch.equal(logits(llama, IDS), plain)
    assert torch.equal(seen[0], plain)


def test_masks_are_told_apart_in_a_cache_key(llama):
    one, two = random_masks(llama), random_masks(llama, 1)
    keys = [str(describe([WeightMask.of(masks, remove=remove)])) for masks in (one, two) for remove in (False, True)]
    assert len(set(keys)) == 4 and str(describe([WeightMask.of(one)])) == keys[0]


def test_a_mask_of_another_model_is_refused(llama):
    other = wrap(build("gpt2"))
    with pytest.raises(InputError, match="only one of it and .* has"), contextlib.ExitStack() as stack:
        stack.enter_context(apply(other, [WeightMask.of(random_masks(llama))]))
    wider = wrap(build("llama", intermediate_size=96))
    with pytest.raises(InputError, match="The weight mask is of another model: it has"):
        WeightMask.of(random_masks(llama)).check(wider)


def test_a_file_comes_back_equal_and_says_whose_it_is(llama, tmp_path):
    masks = random_masks(llama)
    save_masks(tmp_path / "m.safetensors", masks, note="half", model=llama)
    found = read_masks(tmp_path / "m.safetensors")
    assert found.note == "half" and found.mismatch_warning(llama) is None
    assert all(torch.equal(found.masks[name], mask) for name, mask in masks.items()) and len(found.masks) == len(masks)
    other = wrap(build("llama", seed=1))
    assert "not on these weights" in found.mismatch_warning(other)


def test_a_file_whose_header_begins_like_a_pickle_is_read_as_what_it_is(llama, tmp_path):
    """The first byte of a safetensors file is that of its header's length, which may be any."""
    masks, firsts = random_masks(llama), set()
    for size in range(0, 300, 8):
        save_masks(tmp_path / "m.safetensors", masks, note="x" * size)
        firsts.add((tmp_path / "m.safetensors").read_bytes()[:1])
        assert read_masks(tmp_path / "m.safetensors").note == "x" * size
    assert b"\x80" in firsts


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_pickle_that_names_code_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for bad in ({"a": Harm()}, Harm(), {"a": np.array([Harm()], dtype=object)}, [1], {"a": 3}, {"a": {}}):
        with pytest.raises(InputError):
            arrays_and_texts(pickle.dumps(bad), tmp_path / "bad.pickle")
    assert not (tmp_path / "harmed").exists()
    for data in (b"\x80", b"\x80\x04.", b"\x80\x04\x95" + b"\xff" * 8):
        with pytest.raises(InputError, match="no pickle of numpy arrays alone"):
            arrays_and_texts(data, tmp_path / "bad.pickle")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 40, pickle.dumps({"a": np.full((2, 2), 3)}), b"\x80\x04}."],
)
def test_what_is_no_mask_is_refused_in_a_sentence(data, tmp_path):
    with pytest.raises(InputError) as caught:
        parse_masks(data, tmp_path / "odd")
    assert "odd" in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_released_masks_of_every_protocol_are_read(tmp_path, protocol):
    arrays = {"a.weight": np.eye(3, 4, dtype=bool), "b.weight": np.asfortranarray(np.tri(4, 2, dtype=bool))}
    path = tmp_path / "subnetwork_dict_lambda1e1.pickle"
    path.write_bytes(pickle.dumps(arrays | {"orig_model_name": "EleutherAI/pythia-70m"}, protocol=protocol))
    found = read_masks(path)
    assert found.model == {"name": "EleutherAI/pythia-70m"}
    assert all(np.array_equal(found.masks[name].numpy(), array) for name, array in arrays.items())


def test_a_masked_model_is_written_as_a_folder_and_runs_in_plain_transformers(tiny_llama, tmp_path, capsys):
    model = load(str(tiny_llama))
    masks = random_masks(model)
    save_masks(tmp_path / "m.safetensors", masks, model=model)
    folder = tmp_path / "masked"
    assert command_line(["export-pruned", str(tiny_llama), str(tmp_path / "m.safetensors"), str(folder), "--json"]) == 0
    assert f'"weights": {sum(int(mask.sum()) for mask in masks.values())}' in capsys.readouterr().out
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        wanted = plain(torch.tensor(IDS)).logits[0, -1]
    torch.testing.assert_close(
        logits(model, IDS, edits=[WeightMask.of(masks)])[0], wanted.float(), atol=1e-5, rtol=1e-5
    )
