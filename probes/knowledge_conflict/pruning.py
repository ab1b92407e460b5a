"""Heads switched off for good: random controls, what it costs on neutral text, and a model folder with the heads
zeroed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from workbench import organisms
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.engine.edits import Edit, HeadAblation
from workbench.models.model import Model

Head = tuple[int, int]


def random_heads(heads: Sequence[Head], n_heads: int, rng: np.random.Generator, *, n_layers: int) -> tuple[Head, ...]:
    """As many random heads in every layer as `heads` has there, none of them in `heads` where the layer has others
    left.

    A layer that has too few others gives what is missing to layers that still have some. Raises InputError when there
    are not enough other heads in the whole model."""
    chosen: set[Head] = set()
    missing = 0
    for layer in sorted({layer for layer, _ in heads}):
        taken = [h for at, h in heads if at == layer]
        others = [h for h in range(n_heads) if h not in taken]
        count = min(len(taken), len(others))
        missing += len(taken) - count
        chosen |= {(layer, int(h)) for h in rng.choice(others, count, replace=False)} if count else set()
    if missing:
        rest = [
            (layer, h)
            for layer in range(n_layers)
            for h in range(n_heads)
            if (layer, h) not in chosen and (layer, h) not in set(heads)
        ]
        if len(rest) < missing:
            raise InputError(
                f"There are not enough other heads for a random control of {len(heads)} heads; prune fewer."
            )
        chosen |= {rest[i] for i in rng.choice(len(rest), missing, replace=False)}
    return tuple(sorted(chosen))


def random_draws(
    heads: Sequence[Head], n_heads: int, rng: np.random.Generator, *, n_layers: int, draws: int
) -> list[tuple[Head, ...]]:
    """Up to `draws` different sets of `random_heads`; fewer only where the layers do not allow that many."""
    found: dict[tuple[Head, ...], None] = {}
    for _ in range(100 * draws):  # of fewer sets than that, each is met with near certainty
        found[random_heads(heads, n_heads, rng, n_layers=n_layers)] = None
        if len(found) == draws:
            break
    return list(found)


def ablation(heads: Sequence[Head], how: str, mean: torch.Tensor | None = None) -> tuple[Edit, ...]:
    """The edit that switches `heads` off; nothing for no heads."""
    return (HeadAblation(tuple(heads), how, mean),) if heads else ()


def neutral_texts(
    model: Model, named: str | Path, *, essays: Path, otherwise: Sequence[list[int]]
) -> tuple[list[list[int]], str]:
    """Token ids of at most 64 texts of at most 256 tokens each, on which perplexity is watched, and in words what they
    are.

    `named`: a text file or a table with a column text, or "auto": the organism's documents for models with its
    vocabulary, else the `essays`, else, where a tenth of their tokens is unknown to the tokenizer, the texts
    `otherwise` (token ids). It hangs on the tokenizer alone, so that a model and its copies are measured on the same
    text. Raises InputError when no text has two tokens."""

    def read(path: str | Path) -> list[list[int]]:
        return [
            model.encode(text)
            for text in read_table(path, required=("text",), what="neutral text")["text"].to_list()[:64]
        ]

    if str(named) != "auto":
        texts, which = read(named), str(named)
    elif _speaks_organism(model):
        texts, which = read(organisms.data("texts")), "documents of the organism"
    else:
        texts, which = read(essays), "English essays that ship with the project"
        unknown = getattr(model.tokenizer, "unk_token_id", None)
        if unknown is not None and sum(row.count(unknown) for row in texts) > 0.1 * sum(map(len, texts)):
            texts, which = list(otherwise), "the clean prompts with their answers, as the tokenizer knows no English"
    texts = [ids[: min(256, model.context_length or 256)] for ids in texts if len(ids) > 1][:64]
    if not texts:
        raise InputError("The neutral text has no line of at least two tokens.")
    return texts, which


def _speaks_organism(model: Model) -> bool:
    """The tokenizer knows exactly the words of the organism's, whatever the model is called."""
    path = organisms.WEIGHTS / "organism" / "tokenizer.json"
    return (
        path.is_file()
        and model.tokenizer is not None
        and Tokenizer.from_file(str(path)).get_vocab() == model.tokenizer.get_vocab()
    )
