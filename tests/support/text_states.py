"""States of texts the slow way: plain Hugging Face, eager attention, float64, one text per forward."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def token_states(folder: Path, ids: Iterable[Sequence[int]]) -> list[np.ndarray]:
    """Of every text [layers, tokens, d]: block outputs, that of the last layer after the final norm."""
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    with torch.no_grad():
        return [
            np.stack([s[0].numpy() for s in hf(torch.tensor([list(row)]), output_hidden_states=True).hidden_states[1:]])
            for row in ids
        ]


def last_states(folder: Path, ids: Iterable[Sequence[int]]) -> np.ndarray:
    """The states of the last tokens, [layers, texts, d]."""
    return np.stack([states[:, -1] for states in token_states(folder, ids)], axis=1)
