"""The texts of a run, cut into stretches of one length: some to search on, others that only the evaluation reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.bigram_subnetwork.config import FEWEST_TEXTS, Config, read_texts
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.repeats import without_repeats
from workbench.core.tables import read_table
from workbench.models.text_side import TextSide
from workbench.stats.clusters import FEWEST


@dataclass(frozen=True)
class Piece:
    """Token ids of a piece of text, BOS in front where the tokenizer puts one; `text`: the row that it is of. `first`:
    the first token that counts as a next token: a BOS that stands in front of a text's middle says nothing of what
    follows."""

    ids: list[int]
    text: int
    first: int


@dataclass(frozen=True, eq=False)
class FedTexts:
    """Stretches to search on and stretches to judge on; `counted`: token ids of the texts that bigrams are counted in,
    whole; `vocabulary`: how many ids the tokenizer has."""

    search: list[Piece]
    held_out: list[Piece]
    counted: list[list[int]]
    vocabulary: int


def texts_of(model: TextSide, config: Config, context: Context) -> FedTexts:
    """The texts as they are fed. Which are held out is drawn by the seed. Raises InputError for too few texts with two
    tokens."""
    words = read_texts(config, context.data, context.read_as)["text"].to_list()[: config.limit]
    ids = model.encode_all(words)
    usable = without_repeats(ids, [row for row, tokens in enumerate(ids) if len(tokens) >= 2], context)
    if len(usable) < FEWEST_TEXTS:
        raise InputError(
            f"{context.data}: {len(usable)} different texts have the two tokens that a bigram needs, and two are "
            f"needed, one to search on and one to judge on."
        )
    context.rows_used = len(usable)
    order = context.rng("held-out texts").permutation(len(usable))
    apart = min(len(usable) - 1, max(1, round(config.held_out * len(usable)), min(FEWEST, len(usable) // 2)))
    held = sorted(usable[i] for i in order[:apart][: config.eval_texts])
    rest = sorted(usable[i] for i in order[apart:])
    length = min(config.length, model.context_length or config.length)
    bos = model.bos_id if model.prepends_bos else None
    counted = [ids[row] for row in rest] if not config.reference else _reference(model, config.reference)
    cut = [[piece for row in rows for piece in stretches(ids[row], row, length, bos)] for rows in (rest, held)]
    if not all(cut):
        raise InputError(f"{context.data}: stretches of {length} tokens leave no next token to judge; raise length.")
    return FedTexts(*cut, counted, vocabulary_of(model, counted))


def _reference(model: TextSide, path: str) -> list[list[int]]:
    return model.encode_all(read_table(path, required=("text",), what="reference text")["text"].to_list())


def vocabulary_of(model: TextSide, counted: Sequence[Sequence[int]]) -> int:
    """How many token ids the tokenizer has: a model may have rows of its unembedding beyond them (padding)."""
    known = model.tokenizer.get_vocab().values()
    return 1 + max(max(known, default=0), max((max(ids, default=0) for ids in counted), default=0))


def stretches(ids: Sequence[int], text: int, length: int, bos: int | None) -> list[Piece]:
    """A text in pieces of at most `length` tokens, BOS in front of each where the text begins with one. Pieces with
    nothing to predict are left out."""
    begins = bos is not None and ids[0] == bos
    own = list(ids[1:]) if begins else list(ids)
    room = length - begins
    front = [ids[0]] if begins else []
    found = []
    for start in range(0, len(own), max(room, 1)):
        piece = front + own[start : start + max(room, 1)]
        first = 2 if begins and start else 1
        if len(piece) > first:
            found.append(Piece(piece, text, first))
    return found


def inputs_table(texts: FedTexts) -> pl.DataFrame:
    """`inputs`: what was fed, row by row of the data file."""
    rows = [("search", piece) for piece in texts.search] + [("held out", piece) for piece in texts.held_out]
    return pl.DataFrame(
        {
            "stretch": np.arange(len(rows)),
            "row": [piece.text for _, piece in rows],
            "split": [split for split, _ in rows],
            "first": [piece.first for _, piece in rows],
            "ids": [piece.ids for _, piece in rows],
        },
        schema_overrides={"stretch": pl.Int64, "row": pl.Int64, "first": pl.Int64, "ids": pl.List(pl.Int64)},
    )
