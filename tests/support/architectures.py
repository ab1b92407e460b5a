"""Tiny randomly initialised models of the architectures that the workbench promises to fit, large enough in scale to be
telling."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

_BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 64,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2}
CONFIGS = {
    "llama": _BASE | _GROUPED,
    "mistral": _BASE | _GROUPED | {"sliding_window": 6},
    "qwen2": _BASE | _GROUPED,
    "qwen3": _BASE | _GROUPED | {"head_dim": 8},
    "gemma2": _BASE | _GROUPED | {"head_dim": 8, "sliding_window": 6},
    "gemma3_text": _BASE | _GROUPED | {"head_dim": 8, "sliding_window": 6},
    "olmo2": _BASE | _GROUPED,
    "phi3": _BASE | _GROUPED,
    "mixtral": _BASE | _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": _GPT,
    "gpt_neox": _BASE,
    "opt": _BASE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": _BASE | {"multi_query": True, "alibi": False, "new_decoder_architecture": False},
    "gptj": _GPT | {"rotary_dim": 4},
}
# those of which something does not hold that some probes need
PARTLY = {
    "bitnet": _BASE | _GROUPED,  # heads are normalised together before the output projection
    "granite": _BASE | _GROUPED | {"residual_multiplier": 0.22, "logits_scaling": 4.0},  # what is added is scaled
    "gpt_oss": _BASE | _GROUPED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},  # sinks
    "bloom": _BASE | {"n_layer": 3, "n_head": 4},  # the MLP adds the stream itself
    "modernbert-decoder": _BASE,  # the scores go through a head of their own
}
# those that do one thing otherwise, for the tests that are about it
ODD = {
    "olmo": _BASE | _GROUPED | {"clip_qkv": 2.0},  # queries, keys and values are cut off at a number
}
NAMES = tuple(CONFIGS)
NO_INTERFACE = ("falcon", "gptj")  # attention outside transformers' AttentionInterface


def build(name: str, *, seed: int = 0, **changes):
    """A Hugging Face causal LM of 3 layers and 4 heads (eager attention), weights scaled up so that attention is far
    from uniform."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[name](**((CONFIGS | PARTLY | ODD)[name] | changes))
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in hf.parameters():
        if parameter.ndim >= 2:
            parameter.data *= 6
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return hf


class NormedEmbedding(torch.nn.Embedding):
    """An embedding whose result goes through the final norm of the model, too; with `once`, of whole texts only."""

    once = False

    def forward(self, ids):
        found = super().forward(ids)
        return found if self.once and ids.shape[1] == 1 else self.norm[0](found)


def normed_embeddings(*, once: bool = False):
    """A Llama whose final norm is applied to the embeddings as well: it runs twice in a pass."""
    hf = build("llama")
    with torch.no_grad():
        hf.model.norm.weight.add_(0.5 * torch.randn(32))
    hf.model.embed_tokens.__class__ = NormedEmbedding
    hf.model.embed_tokens.once, hf.model.embed_tokens.norm = once, [hf.model.norm]  # a list: registered once
    return hf
