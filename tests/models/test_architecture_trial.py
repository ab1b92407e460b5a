"""What a config alone says of an architecture, against the same architecture loaded."""

from __future__ import annotations

import json
import resource

import pytest
import torch

from tests.support import architectures
from tests.support.odd_models import save
from workbench.models.architecture_trial import try_out
from workbench.models.loading import load


@pytest.mark.parametrize("name", [*architectures.NAMES, *architectures.PARTLY])
def test_a_trial_finds_what_loading_finds(name, tmp_path):
    folder = save(tmp_path / name, name)
    model, tried = load(str(folder)), try_out(folder)
    assert tried is not None and tried.refusal is None and tried.facts is not None
    for fact in vars(model.facts):
        assert (tried.facts.why_not(fact) is None) == (model.facts.why_not(fact) is None), fact
    assert tried.attention_interface == model.attention_interface


def test_a_trial_reads_no_weights_and_leaves_random_numbers_and_the_config_as_they_are(tmp_path):
    folder = save(tmp_path / "m", "qwen2")
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"no weights")
    config = (folder / "config.json").read_bytes()
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    assert try_out(folder).why_not(("heads_apart", "attention_rows")) is None
    assert torch.equal(torch.rand(3), wanted) and (folder / "config.json").read_bytes() == config


@pytest.mark.parametrize("name,said", [("mamba", "has no attention"), ("t5", "is a T5, which is no causal language")])
def test_an_architecture_that_cannot_be_read_is_refused_with_the_reason(name, said, tmp_path):
    tried = try_out(save(tmp_path / name, name))
    assert said in tried.refusal and tried.why_not(()) == tried.refusal


def test_a_large_model_is_tried_out_as_a_small_one(tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "vocab_size": 128256}
    config |= {"num_hidden_layers": 80, "num_attention_heads": 32, "num_key_value_heads": 8, "eos_token_id": [128001]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 14336, "bos_token_id": 128000}))
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried = try_out(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun < 400_000  # KiB: a layer of it takes 870 MB
    assert tried is not None and tried.why_not(("heads_apart", "attention_rows", "stream_adds_up")) is None


@pytest.mark.parametrize("change", [{"auto_map": {"AutoModelForCausalLM": "x.Y"}}, {"model_type": "new"}])
def test_what_a_config_cannot_tell_is_not_known(change, tmp_path):
    base = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(base | change))
    assert try_out(tmp_path) is None
    (tmp_path / "config.json").unlink()
    assert try_out(tmp_path) is None
