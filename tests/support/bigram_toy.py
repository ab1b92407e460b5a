"""A Llama whose first MLP holds a table of bigram log-probabilities and whose other weights are small and random, with
texts that have exactly those bigrams: what a bigram subnetwork has to find is known weight by weight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.organisms.circuits.gpt2 import SPECIALS, save

WORDS = [*SPECIALS, *"abcdefghi"]
FIRST, SMALL, COMMON, NEVER = len(SPECIALS), 0.001, 55, -14.0


def counts(seed: int = 0) -> np.ndarray:
    """How often each pair occurs in the text that bigrams are counted in, [V, V]: after each word one to four words
    are `COMMON` times as likely as two others, and the rest never come."""
    rng = np.random.default_rng(seed)
    size = len(WORDS) - FIRST
    found = np.zeros((len(WORDS), len(WORDS)), int)
    for word in range(size):
        order = rng.permutation(size)
        common = 1 + word % 4
        found[FIRST + word, FIRST + order[:common]] = COMMON
        found[FIRST + word, FIRST + order[common : common + 2]] = 1
    return found


def walks(pairs: np.ndarray, texts: int = 60, length: int = 40, seed: int = 0) -> list[list[int]]:
    """Token ids of texts in which pairs of the table alone occur, the seldom ones more often than the table says."""
    rng = np.random.default_rng(seed)
    law = pairs.astype(float) ** 0.3 * (pairs > 0)
    found = []
    for _ in range(texts):
        row = [int(rng.integers(FIRST, len(WORDS)))]
        while len(row) < length:
            row.append(int(rng.choice(len(WORDS), p=law[row[-1]] / law[row[-1]].sum())))
        found.append(row)
    return found


def write_texts(path: Path, rows: list[list[int]]) -> Path:
    path.write_text("".join(json.dumps({"text": " ".join(WORDS[t] for t in row)}) + "\n" for row in rows))
    return path


def build(folder: Path, seed: int = 0) -> tuple[Path, Path, Path]:
    """(folder of the model, file of its texts, file of the pairs that are counted).

    A Llama whose norms change nothing (their epsilon drowns what they read), with one coordinate for each token that is
    read and one for each that is written."""
    pairs = counts(seed)
    size = len(WORDS)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=2 * size,
        intermediate_size=size,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        hidden_act="relu",
        rms_norm_eps=2.0**40,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.fill_(2.0**20) if weight.ndim == 1 else weight.normal_(0, SMALL)
    mlp = model.model.layers[0].mlp
    for module in (model.model.embed_tokens, model.lm_head, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        module.weight.zero_()
    model.model.embed_tokens.weight[:, :size] = torch.eye(size)
    model.lm_head.weight[:, size:] = torch.eye(size)
    mlp.gate_proj.weight[:, :size] = torch.eye(size)
    mlp.up_proj.weight[:, :size] = torch.eye(size)
    # logarithms of the counts beside the largest of their row; what never comes has one of ordinary size
    logs = np.where(pairs > 0, np.log(np.maximum(pairs, 1) / COMMON), NEVER)
    mlp.down_proj.weight[size:, FIRST:] = torch.tensor(logs[FIRST:].T, dtype=torch.float32)
    mlp.gate_proj.weight[:FIRST] = mlp.up_proj.weight[:FIRST] = 0
    save(folder, model, WORDS, {"circuit": "bigram-toy"})
    counted = [[one, two] for one in range(size) for two in range(size) for _ in range(pairs[one, two])]
    texts = write_texts(folder / "texts.jsonl", walks(pairs, seed=seed))
    return folder, texts, write_texts(folder / "pairs.jsonl", counted)


def oracle(model) -> dict[str, torch.Tensor]:
    """The weights that hold the table, and no other: those of the first MLP that are not zero."""
    from workbench.models.block_weights import block_weights

    return {
        own.name: (own.weight != 0) if own.layer == 0 and ".mlp." in own.name else torch.zeros(own.shape).bool()
        for own in block_weights(model, for_what="a test")
    }
