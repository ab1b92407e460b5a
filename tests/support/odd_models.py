"""Folders of tiny random models that some probes cannot run on, and of models with short contexts: what a stranger may
name to the app."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.support import architectures, tiny_llama

NO_ATTENTION = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": tiny_llama.VOCABULARY, "state_size": 8}


def save(folder: Path, name: str, *, context: int | None = 512, tokenizer: bool = True) -> Path:
    """A model of an architecture of `architectures` (or "mamba", "t5"), with a tokenizer that was learnt from a few
    sentences."""
    if name == "mamba":
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**NO_ATTENTION))
    elif name == "t5":
        from transformers import T5Config, T5ForConditionalGeneration

        sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        hf = T5ForConditionalGeneration(T5Config(**sizes, vocab_size=tiny_llama.VOCABULARY))
    else:
        key = "n_positions" if name in ("gpt2", "gptj") else "max_position_embeddings"
        hf = architectures.build(name, vocab_size=tiny_llama.VOCABULARY, **({} if context is None else {key: context}))
    hf.save_pretrained(folder)
    if tokenizer:
        tiny_llama.tokenizer().save_pretrained(folder)
    return folder
