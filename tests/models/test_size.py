"""The size of a model from its config.json, against the weights of the model itself."""

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from workbench.core.errors import InputError
from workbench.models.size import size_of

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def saved(config, folder):
    config.save_pretrained(folder)
    return AutoModelForCausalLM.from_config(config), size_of(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model_and_a_looked_up_embedding_costs_no_arithmetic(tmp_path, tied):
    model, size = saved(LlamaConfig(**SHAPE, tie_word_embeddings=tied, dtype="bfloat16"), tmp_path)
    assert size.total == model.num_parameters()
    assert size.active == size.total - (0 if tied else 50 * 16)
    assert size.weight_bytes("float32") == 4 * size.total
    assert size.weight_bytes("auto") == 2 * size.total  # as stored


@pytest.mark.parametrize("kind", [MixtralConfig, Qwen3MoeConfig])
def test_of_a_mixture_of_experts_a_token_meets_the_chosen_ones(tmp_path, kind):
    few = {"num_local_experts": 8} if kind is MixtralConfig else {"num_experts": 8, "moe_intermediate_size": 24}
    model, size = saved(kind(**SHAPE, **few, num_experts_per_tok=2, tie_word_embeddings=True), tmp_path)
    of_experts = sum(w.numel() for name, w in model.named_parameters() if ".experts." in name)
    assert of_experts and size.total == model.num_parameters()
    assert size.active == size.total - of_experts * 6 // 8


def test_a_config_that_makes_no_model_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(InputError, match="size of the model cannot be told"):
        size_of(tmp_path)
