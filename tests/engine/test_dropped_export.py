"""Models written without modules: plain Hugging Face gives the logits of the model without them, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.architectures import build
from workbench.cli.main import run as command_line
from workbench.core.errors import InputError
from workbench.engine.capture import logits
from workbench.engine.dropping import DropModules, read_modules, save_modules
from workbench.engine.pruned_export import export_without
from workbench.models.loading import load, wrap
from workbench.models.skipping import StandIn, skipping

IDS = [5, 9, 21, 33, 2, 17, 40, 8, 11]
MODULES = (("block", 1), ("attention", 0), ("mlp", 2))
NAMES = ("llama", "gpt2", "gemma2", "gemma3_text", "olmo2", "gpt_neox", "mixtral", "opt", "falcon", "qwen2", "mistral")


def plain(hf, ids=IDS):
    with torch.no_grad():
        return hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def eager_without(hf, modules):
    """The model itself with the layers taken out of its list and the writers zeroed by hand, eager attention."""
    model = wrap(hf)
    hf.set_attn_implementation("eager")
    with contextlib_stack(model, modules):
        return plain(hf)


def contextlib_stack(model, modules):
    import contextlib

    stack = contextlib.ExitStack()
    for component, layer in modules:
        stack.enter_context(skipping(model, component, layer))
    return stack


@pytest.mark.parametrize("name", NAMES)
def test_plain_hugging_face_gives_the_logits_of_the_model_without_the_modules_bit_for_bit(name, tmp_path):
    hf = build(name)
    folder = export_without(wrap(hf, name=name), MODULES, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert torch.equal(plain(written), eager_without(build(name), MODULES))
    assert not torch.equal(plain(written), plain(hf))
    config = json.loads((folder / "config.json").read_text())
    count = written.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    assert config[count] == 2 and config["dropped_modules"] == {"attention": [0], "mlp": [1]}
    assert all(len(config[key]) == 2 for key in ("layer_types",) if config.get(key))
    assert "workbench" not in json.dumps(config)
    assert len(written.state_dict()) < len(hf.state_dict())  # the block is gone, not silent


def test_layers_keep_their_kind_and_a_window_that_is_dropped_leaves_the_others_theirs(tmp_path):
    hf = build("gemma2")
    assert hf.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    folder = export_without(wrap(hf), [("block", 0)], tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(folder).config.layer_types == ["full_attention", "sliding_attention"]


def test_loading_leaves_out_what_was_dropped_and_gives_the_same_logits(tmp_path):
    model = wrap(build("llama"), name="llama")
    wanted = logits(model, [IDS], edits=[DropModules(MODULES)])
    folder = export_without(model, MODULES, tmp_path / "out")
    again = load(str(folder))
    standing = [name for name, module in again.hf.named_modules() if isinstance(vars(module).get("forward"), StandIn)]
    assert standing == ["model.layers.0.self_attn", "model.layers.1.mlp"] and not again.warnings
    assert torch.equal(logits(again, [IDS]), wanted)
    # an edit on top comes and goes, and what was dropped for good stays dropped
    logits(again, [IDS], edits=[DropModules((("attention", 0), ("mlp", 0)))])
    assert torch.equal(logits(again, [IDS]), wanted)
    # exported once more, both count
    twice = export_without(again, [("block", 0)], tmp_path / "twice")
    assert json.loads((twice / "config.json").read_text())["dropped_modules"] == {"mlp": [0]}


def test_a_model_that_was_trained_on_runs_as_it_is_and_says_so(tmp_path):
    folder = export_without(wrap(build("llama")), [("mlp", 1)], tmp_path / "out")
    hf = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[0, 0] = 1.0
    hf.save_pretrained(folder)
    model = load(str(folder))
    assert "mlp 1 was dropped, and its weights are not zero" in model.warnings[0]
    assert "forward" not in vars(model.hf.model.layers[1].mlp)


@pytest.mark.parametrize("said", [{"attention": [7]}, {"block": [0]}, [1], {"mlp": "x"}])
def test_a_config_that_names_no_module_is_refused(said):
    hf = build("llama")
    hf.config.dropped_modules = said
    with pytest.raises(InputError, match="has a dropped_modules that is none"):
        wrap(hf)


def test_the_command_writes_the_folder_and_the_model_in_memory_stays(tiny_llama, tmp_path, capsys):
    model = load(str(tiny_llama))
    mask, folder = tmp_path / "dropped_block_2.json", tmp_path / "out"
    save_modules(mask, [("block", 3), ("block", 1)], model=model)
    assert command_line(["export-pruned", str(tiny_llama), str(mask), str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["modules"] == ["block.3", "block.1"] and said["warnings"] == []
    written = load(str(folder))
    assert written.n_layers == 3
    ids = model.encode("Once upon a time there was a dog.")
    assert written.encode("Once upon a time there was a dog.") == ids
    wanted = logits(model, [ids], edits=[DropModules((("block", 1), ("block", 3)))])
    assert torch.equal(logits(written, [ids]), wanted)
    assert read_modules(folder / "dropped_modules.json").modules == (("block", 3), ("block", 1))


@pytest.mark.parametrize(
    "modules, message",
    [
        ([["block", layer] for layer in range(5)], "no model is left"),
        ([["block", 9]], "layers 0–4"),
        ([], "names no module"),
        ([["head", 1]], "not a list of modules"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence_and_nothing_is_written(
    tiny_llama, tmp_path, capsys, modules, message
):
    path, out = tmp_path / "mask.json", tmp_path / "out"
    path.write_text(json.dumps({"drop": modules}))
    assert command_line(["export-pruned", str(tiny_llama), str(path), str(out)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said and said.endswith(".") and not out.exists()


def test_a_model_that_comes_out_as_another_is_refused_and_nothing_is_left(tmp_path):
    """GPT-2 with scores scaled by the number of the layer: without a block the numbers move."""
    model = wrap(build("gpt2", scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(InputError, match="other scores than the model without them"):
        export_without(model, [("block", 0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_without(model, [("block", 2)], tmp_path / "last")  # no other layer gets another number
