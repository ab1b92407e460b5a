"""A merged adapter computes what peft computes with it beside the weights; what does not fit is refused."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.core.errors import InputError
from workbench.models.adapters import read_adapter
from workbench.models.loading import load

IDS = torch.arange(3, 40)[None]


def make(folder, base, *, tied=False, **options):
    """A LoRA with random weights, in a folder as peft writes it."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    hf = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options
    model = peft.get_peft_model(hf, peft.LoraConfig(**options))
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value) * 0.2
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(tiny_llama, tmp_path_factory):
    return make(tmp_path_factory.mktemp("adapters") / "lora", tiny_llama)


@pytest.fixture
def copied(lora, tmp_path):
    return shutil.copytree(lora, tmp_path / "lora")


def beside(base, adapter):
    """Logits of peft's own model, the adapter beside the weights, in float64."""
    import peft
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(hf, adapter).eval()(input_ids=IDS).logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3, "rank_pattern": {"down_proj": 2}},
        {"use_dora": True, "target_modules": "all-linear"},
        {"target_modules": ["v_proj", "lm_head"]},
    ],
    ids=["plain", "rslora", "dora", "head"],
)
def test_the_merged_model_computes_what_peft_computes_beside_the_weights(tiny_llama, tmp_path, options):
    folder = make(tmp_path / "lora", tiny_llama, **options)
    model = load(str(tiny_llama), dtype="float64", device="cpu", adapter=folder)
    plain = load(str(tiny_llama), dtype="float64", device="cpu")
    with torch.no_grad():
        found, base = (one.hf(input_ids=IDS).logits for one in (model, plain))
    torch.testing.assert_close(found, beside(tiny_llama, folder), rtol=1e-9, atol=1e-9)
    assert (found - base).abs().max() > 0.1
    assert [name for name, _ in model.hf.named_parameters()] == [name for name, _ in plain.hf.named_parameters()]


def test_the_fingerprint_is_of_model_and_adapter(tiny_llama, lora, tmp_path):
    plain, one = load(str(tiny_llama)), load(str(tiny_llama), adapter=lora)
    other = make(tmp_path / "other", tiny_llama, lora_alpha=3)
    two = load(str(tiny_llama), adapter=str(other))
    assert len({plain.fingerprint, one.fingerprint, two.fingerprint}) == 3
    assert load(str(tiny_llama), adapter=lora).fingerprint == one.fingerprint
    assert one.adapter.path == lora.resolve() and plain.adapter is None


def test_a_bridge_is_of_the_merged_model(tiny_llama, lora):
    model = load(str(tiny_llama), device="cpu", adapter=lora)
    with torch.no_grad():
        torch.testing.assert_close(model.bridge()(IDS), model.hf(input_ids=IDS).logits, rtol=1e-3, atol=1e-3)


def test_an_adapter_of_another_model_is_warned_of(tiny_llama, copied):
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "somebody/other-7b"}))
    (warning,) = load(str(tiny_llama), adapter=copied).warnings
    assert "somebody/other-7b" in warning
    assert load(str(tiny_llama)).warnings == ()
    for same in (str(tiny_llama), "somebody/Tiny-Llama", None):
        (copied / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": same}))
        assert load(str(tiny_llama), adapter=copied).warnings == ()


def change_config(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without_one(weights):
    return dict(list(weights.items())[1:])


def with_one_more(weights):
    key = next(key for key in weights if "layers.0" in key)
    return weights | {key.replace("layers.0", "layers.77"): weights[key].clone()}


FAULTS = {
    "targets that are not there": (lambda f: change_config(f, target_modules=["query"]), "does not fit"),
    "another rank": (lambda f: change_config(f, r=8), "does not fit"),
    "a weight too few": (lambda f: change_weights(f, without_one), "lack"),
    "a weight too many": (lambda f: change_weights(f, with_one_more), "has no place for"),
    "nothing but zeros": (
        lambda f: change_weights(f, lambda w: {key: torch.zeros_like(value) for key, value in w.items()}),
        "changes nothing",
    ),
    "NaN": (
        lambda f: change_weights(f, lambda w: {key: value * float("nan") for key, value in w.items()}),
        "NaN or infinite",
    ),
    "a kind that cannot be merged": (
        lambda f: change_config(f, peft_type="PROMPT_TUNING", num_virtual_tokens=3),
        "(does not fit|no weights can hold)",
    ),
    "a kind that nobody knows": (lambda f: change_config(f, peft_type="NOTHING"), "does not fit"),
    "a start that changes the model": (lambda f: change_config(f, init_lora_weights="pissa"), "plain LoRA"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    "an odd config": (lambda f: (f / "adapter_config.json").write_text("[" * 5000), "too deeply"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "no weights"),
    "pickled weights": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "only pickled weights",
    ),
    "damaged weights": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 40), "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused(tiny_llama, copied, fault):
    break_it, said = FAULTS[fault]
    break_it(copied)
    with pytest.raises(InputError, match=said) as caught:
        load(str(tiny_llama), adapter=copied)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_refused(tiny_llama, lora):
    with pytest.raises(InputError, match="does not fit"):
        load("organism", adapter=lora)


def test_an_adapter_of_an_embedding_that_is_also_the_head_is_refused(tmp_path, tiny_llama):
    """Merged into the one matrix, it would change both ends of the model."""
    from transformers import AutoModelForCausalLM

    tied = tmp_path / "tied"
    hf = AutoModelForCausalLM.from_pretrained(tiny_llama, tie_word_embeddings=True)
    hf.tie_weights()
    hf.save_pretrained(tied)
    folder = make(tmp_path / "lora", tied, target_modules=["lm_head"])
    with pytest.raises(InputError, match="does not fit"):
        load(str(tied), adapter=folder)


@pytest.mark.parametrize("adapter", ["", "./absent", "x" * 300])
def test_a_folder_that_is_not_there_is_one_sentence(adapter):
    with pytest.raises(InputError, match="no adapter folder"):
        read_adapter(adapter)


def test_without_peft_the_sentence_says_what_to_install(tiny_llama, lora, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"interpretability-workbench\[adapter\]"):
        load(str(tiny_llama), adapter=lora)


def test_an_adapter_beside_full_weights_is_refused(tiny_llama, lora, tmp_path):
    mixed = shutil.copytree(tiny_llama, tmp_path / "mixed")
    shutil.copy(lora / "adapter_config.json", mixed)
    with pytest.raises(InputError, match="adapter beside its weights.*--adapter"):
        load(str(mixed))
    shutil.copy(lora / "adapter_model.safetensors", mixed)
    with pytest.raises(InputError, match="adapter beside its weights.*--adapter"):
        load(str(mixed))


def test_a_folder_with_only_an_adapter_is_no_model(tiny_llama, lora):
    with pytest.raises(InputError, match=f"--model '{tiny_llama}' --adapter '{lora}'"):
        load(str(lora))
