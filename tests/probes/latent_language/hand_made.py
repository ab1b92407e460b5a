"""Small models whose lens is known: a bigram model over single letters, and one over whole words."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from workbench.organisms.circuits import gpt2

LAYERS = 3


def bigram_letters(folder: Path, seed: int = 0) -> tuple[Path, torch.Tensor]:
    """A model whose tokens are single bytes, and the logits [V, V] of the next byte after each: its stream is the
    present token alone, at every layer."""
    words = [*gpt2.SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    n = len(words) + len(words) % 2
    model = gpt2.blank(words, features=n, layers=LAYERS, heads=2, context=256)
    table = 3 * torch.randn(len(words), len(words), generator=torch.Generator().manual_seed(seed))
    tokens = torch.zeros(len(words), n)
    tokens[:, : len(words)] = torch.eye(len(words))
    gpt2.write_embeddings(model, tokens=tokens)
    gpt2.write_unembedding(model, torch.cat([table.T, torch.zeros(len(words), n - len(words))], 1))
    made = Tokenizer(BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(gpt2.SPECIALS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=gpt2.PAD, eos_token=gpt2.EOS, clean_up_tokenization_spaces=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, table


def fixed_words(folder: Path, words: list[str], logits: list[float]) -> Path:
    """A model that gives the same scores after every token, one for each of `words` (0 for signs and labels)."""
    vocabulary = [*gpt2.SPECIALS, '"', ":", "-", "A", "B", *words]
    model = gpt2.blank(vocabulary, features=4, layers=LAYERS, heads=2, context=128)
    positions = torch.zeros(128, 4)
    positions[:, 0] = 1.0
    gpt2.write_embeddings(model, tokens=torch.zeros(len(vocabulary), 4), positions=positions)
    rows = torch.zeros(len(vocabulary), 4)
    rows[-len(words) :, 0] = torch.tensor(logits)
    gpt2.write_unembedding(model, rows)
    folder.mkdir(parents=True, exist_ok=True)
    gpt2.save(folder, model, vocabulary, {})
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
