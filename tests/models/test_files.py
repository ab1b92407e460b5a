"""A model's fingerprint is of what is in its folder; what is not the model is refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.core import file_hashes
from workbench.core.errors import InputError
from workbench.core.paths import cache_root
from workbench.models import loading
from workbench.models.files import check_folder, fingerprint_folder
from workbench.models.loading import load


@pytest.fixture
def copied(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "model")


def other_weights(folder, **kept):
    """Change one weight, and leave size and time of the file as they were."""
    file = folder / "model.safetensors"
    about, weights = file.stat(), load_file(file)
    name = sorted(weights)[0]
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)


def test_other_weights_of_the_same_size_and_time_are_another_model(copied, monkeypatch):
    monkeypatch.setattr(file_hashes, "TICK", -60.0)
    first = load(str(copied))
    assert (cache_root() / "fingerprints.json").is_file()
    other_weights(copied)
    second = load(str(copied))
    assert second.fingerprint == fingerprint_folder(copied) != first.fingerprint


def test_a_model_keeps_the_fingerprint_of_what_was_loaded(copied):
    model = load(str(copied))
    before = fingerprint_folder(copied)
    other_weights(copied)
    assert model.fingerprint == before != fingerprint_folder(copied)


def test_files_that_change_during_loading_are_refused(copied, monkeypatch):
    plain = loading._from_files

    def while_it_loads(*args):
        found = plain(*args)
        other_weights(copied)
        return found

    monkeypatch.setattr(loading, "_from_files", while_it_loads)
    with pytest.raises(InputError, match="changed while it was loaded"):
        load(str(copied))


def test_a_damaged_memory_of_fingerprints_stops_no_model(copied):
    wanted = fingerprint_folder(copied)
    for content in ("[" * 50_000, '{"files": {"1:2:3:4:5": 7}}', "null", '"' + "x" * 70):
        (cache_root() / "fingerprints.json").write_text(content)
        assert fingerprint_folder(copied) == wanted


def test_two_indexes_over_the_same_files_are_two_models(copied):
    """Files that hold a tensor twice, or that the index leaves out: then the index decides what is loaded."""
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    for name, factor in (("a", 1), ("b", 2)):
        save_file({key: value * factor for key, value in weights.items()}, copied / f"{name}.safetensors")
    found = set()
    for name in "ab":
        index = {"metadata": {}, "weight_map": {key: f"{name}.safetensors" for key in weights}}
        (copied / "model.safetensors.index.json").write_text(json.dumps(index))
        found.add(load(str(copied)).fingerprint)
    assert len(found) == 2


def test_weights_in_a_folder_below_count(copied):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    (copied / "part").mkdir()
    index = {"metadata": {}, "weight_map": {key: "part/one.safetensors" for key in weights}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    found = set()
    for factor in (1, 2):
        save_file({key: value * factor for key, value in weights.items()}, copied / "part" / "one.safetensors")
        found.add(fingerprint_folder(copied))
    assert len(found) == 2


def test_the_index_of_plain_shards_leaves_the_fingerprint_to_the_weights(copied):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(weights)
    place = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(names)}
    for file in set(place.values()):
        save_file({key: weights[key] for key in names if place[key] == file}, copied / file)
    found = set()
    for size in (1, 2):
        index = {"metadata": {"total_size": size}, "weight_map": place}
        (copied / "model.safetensors.index.json").write_text(json.dumps(index))
        found.add(fingerprint_folder(copied))
    assert len(found) == 1


def test_the_code_that_comes_with_a_model_counts_where_it_is_run(copied):
    plain, with_code = fingerprint_folder(copied), fingerprint_folder(copied, code=True)
    (copied / "modeling.py").write_text("x = 1\n")
    assert fingerprint_folder(copied) == plain and fingerprint_folder(copied, code=True) != with_code


@pytest.mark.parametrize("place", ["../other.safetensors", "/tmp/other.safetensors"])
def test_weights_outside_the_folder_are_refused(copied, place):
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": place}}))
    with pytest.raises(InputError, match="outside the folder"):
        check_folder(copied, "model")


def test_a_config_that_chooses_its_own_file_of_weights_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"transformers_weights": "sub/x.safetensors"}))
    with pytest.raises(InputError, match="transformers_weights"):
        load(str(copied))


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 6000, "{", "5", ""])
def test_an_odd_config_is_one_sentence(copied, content):
    (copied / "config.json").write_text(content)
    with pytest.raises(InputError, match="config.json of .*(not valid JSON|no JSON object|too deeply|too many digits)"):
        load(str(copied))


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "x" * 300, "~nobody-here/model", "nul\0byte", " "])
def test_a_name_that_can_be_no_model_is_one_sentence(name):
    with pytest.raises(InputError):
        load(name)


@pytest.mark.parametrize("name", ["organism", "organism@step-100", "circuit-copy", "FOLDER", "./absent"])
@pytest.mark.parametrize("revision", ["main", "step-100", ""])
def test_a_revision_of_what_has_none_is_refused(tiny_llama, name, revision):
    name = name.replace("FOLDER", str(tiny_llama))
    with pytest.raises(InputError, match="revision"):
        load(name, revision)


ERRORS = [
    ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes"),
    ModuleNotFoundError("No module named 'gptqmodel'"),
    RuntimeError("No GPU found. A GPU is needed for quantization."),
    AttributeError("'NoneType' object has no attribute 'x'"),
    NotImplementedError(),
    AssertionError(),
    TypeError("odd\nlines"),
    type("PanicException", (BaseException,), {})("a Rust panic"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["_from_files", "wrap"])
def test_whatever_a_library_raises_is_one_sentence(copied, monkeypatch, error, place):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(loading, place, fail)
    with pytest.raises(InputError, match="The model .* cannot be loaded: .") as caught:
        load(str(copied))
    assert caught.value.__cause__ is error and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_being_stopped_is_no_bad_model(copied, monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(loading, "_from_files", fail)
    with pytest.raises(error):
        load(str(copied))


def test_too_little_memory_is_no_bad_input(copied, monkeypatch):
    def fail(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loading, "_from_files", fail)
    with pytest.raises(Exception, match="not enough memory for the model") as caught:
        load(str(copied))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "wanted",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "nothing-that-is"},
        {},
    ],
    ids=lambda wanted: wanted.get("quant_method", "none"),
)
def test_quantised_weights_that_cannot_be_read_here_are_one_sentence(copied, wanted):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"quantization_config": wanted}))
    with pytest.raises(InputError, match="quantised") as caught:
        load(str(copied), device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_whole_numbers_are_not_read_as_weights(copied):
    weights = load_file(copied / "model.safetensors")
    key = next(key for key in weights if "q_proj" in key)
    weights[key] = (weights[key] / weights[key].abs().max() * 127).to(torch.int8)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"whole numbers .{key} is I8"):
        load(str(copied))


def test_fp8_weights_are_read_with_their_scales(copied):
    """On a CPU transformers takes them apart; what comes out is the weights, within fp8's three bits."""
    before = load(str(copied), device="cpu").hf.state_dict()
    weights, found = load_file(copied / "model.safetensors"), {}
    for key, value in weights.items():
        found[key] = value
        if "proj" in key:
            scale = value.abs().max() / 448
            found[key] = (value / scale).to(torch.float8_e4m3fn)
            found[f"{key}_scale_inv"] = torch.full([-(-size // 128) for size in value.shape], float(scale))
    save_file(found, copied / "model.safetensors", metadata={"format": "pt"})
    asked = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"quantization_config": asked}))
    after = load(str(copied), device="cpu").hf.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0.07, atol=1e-2)
