"""Tiny random models with the tokenizers that people use, or with one built in their manner."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ("qwen3", "llama3_1", "llama2", "gemma3", "deepseek_v3")  # in the shared data


def save(folder: Path, tokenizer) -> Path:
    """A random Llama of width 32 with this tokenizer."""
    torch.manual_seed(0)
    words = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=words, max_position_embeddings=2048, **shape, **ends))
    for parameter in hf.parameters():
        if parameter.ndim >= 2:
            parameter.data *= 6
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_real(folder: Path, tokenizer: Path, *, template: str | None = None) -> Path:
    """The same with the tokenizer of a folder, and `template` as its chat template."""
    found = AutoTokenizer.from_pretrained(tokenizer)
    if template is not None:
        found.chat_template = template
    return save(folder, found)


def byte_level() -> PreTrainedTokenizerFast:
    """In the manner of GPT-2 and Qwen: bytes, no BOS, and many words that nothing is made of."""
    merges = [*(("Ġ", letter) for letter in string.ascii_letters), ("h", "e"), ("Ġt", "he")]
    names = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    made = Tokenizer(BPE({name: n for n, name in enumerate([*names, *(f"<unused{k}>" for k in range(20000))])}, merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
