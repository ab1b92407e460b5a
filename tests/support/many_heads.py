"""Folders of tiny random models with as many heads as large ones have."""

from __future__ import annotations

from pathlib import Path

from tests.support import architectures, tiny_llama


def save(folder: Path, layers: int, heads: int, *, kv_heads: int | None = None, context: int = 512) -> Path:
    """A Llama of this many layers and heads of width 4, with the tokenizer of `tiny_llama`."""
    hf = architectures.build(
        "llama",
        vocab_size=tiny_llama.VOCABULARY,
        hidden_size=4 * heads,
        head_dim=4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=context,
    )
    hf.save_pretrained(folder)
    tiny_llama.tokenizer().save_pretrained(folder)
    return folder
