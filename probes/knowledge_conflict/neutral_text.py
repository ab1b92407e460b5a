"""Neutral text, on which the perplexity of pruned models is watched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from workbench import organisms
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.engine.evaluation import token_losses
from workbench.engine.passes import Pass
from workbench.models.model import Model

TOKENS = 2048  # of one batch


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
        texts, which = read(named), Path(named).name
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


def neutral_loss(model: Model, texts: Sequence[Sequence[int]], run: Pass) -> dict[str, np.ndarray]:
    """Summed −log p of the tokens of every text after the first (nats), and how many tokens that is."""
    losses = token_losses(model, texts, run=run, max_tokens=TOKENS)
    return {"nll": np.array([row.sum() for row in losses]), "count": np.array([len(row) for row in losses])}
