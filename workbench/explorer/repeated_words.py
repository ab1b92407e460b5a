"""What heads are scored on: words said twice, and the same with the second saying shuffled.

On words in a random order nothing but having seen them before predicts the second saying. Shuffled so that no word
follows the word that it followed before, it predicts nothing, and what a head still gives to the same places is owed to
where they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from workbench.core.errors import InputError
from workbench.models.model import Model

PERIODS = (8, 12, 16, 24, 32)  # words before they are said again; several, so that no head fits by its distance
SHORTEST = 4  # the fewest words of which a shuffled saying keeps no place and no neighbour
ENOUGH = 40  # words, so that most periods leave as many that are not in the sequence
SEQUENCES = 20  # over all periods
TRIES = 200  # about one order in seven keeps no place and no neighbour
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
BEGINS = ("▁", "Ġ")  # how a tokenizer marks that a word begins


def words(model: Model) -> list[int]:
    """Tokens that read as words: whole words of letters, else (a tokenizer that has few) pieces of letters, else
    whatever is seen in a text. Never special tokens, single bytes or ids beyond the vocabulary; without a tokenizer,
    every id."""
    if model.tokenizer is None:
        return list(range(model.vocab_size))
    tokenizer = model.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {})
    barred = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    ids = [i for i in range(min(model.vocab_size, len(tokenizer))) if i not in barred]
    pieces = dict(zip(ids, map(str, tokenizer.convert_ids_to_tokens(ids))))
    pieces = {i: piece for i, piece in pieces.items() if not BYTE.fullmatch(piece)}
    marked = any(piece.startswith(BEGINS) and len(piece) > 1 for piece in pieces.values())
    letters = {i: bare for i, piece in pieces.items() if len(bare := piece.lstrip("".join(BEGINS))) > 1}
    letters = {i: bare for i, bare in letters.items() if bare.isalpha() and _reads(model, i, bare)}
    whole = [i for i in letters if not marked or pieces[i].startswith(BEGINS)]
    if len(whole) >= ENOUGH:
        return whole
    if len(letters) >= ENOUGH:
        return list(letters)
    return [i for i in pieces if (text := tokenizer.decode([i])).strip() and "�" not in text]


def _reads(model: Model, i: int, piece: str) -> bool:
    """Whether a piece is text: letters beyond ASCII may be parts of characters in the alphabet of a byte tokenizer."""
    return piece.isascii() or "�" not in model.tokenizer.decode([i])


def periods(model: Model, known: int) -> list[int]:
    """How many words are said before they are said again: those of PERIODS that fit the context and leave as many
    of the ``known`` words unsaid, else the longest that fits. InputError where fewer than SHORTEST fit."""
    front = int(model.prepends_bos)
    room = known if model.context_length is None else min(known, (model.context_length - front) // 2)
    room = min(room, max(SHORTEST, known // 2))
    if room < SHORTEST:
        raise InputError(
            f"Heads of {model.name} cannot be scored on repeated words: {SHORTEST} different ones, said twice, are "
            f"needed, and its tokenizer has {known} for a context of {model.context_length or 'any number of'} tokens; "
            f"score them on a prompt."
        )
    return [period for period in PERIODS if period <= room] or [room]


def said_twice(model: Model, known: Sequence[int], *, sequences: int = SEQUENCES, seed: int = 0) -> list[list[int]]:
    """So many sequences (or a few more, as many of every period): different ones of the ``known`` words in a random
    order, then the same again, BOS in front where the tokenizer puts it there."""
    rng = np.random.default_rng(seed)
    front = [model.bos_id] if model.prepends_bos and model.bos_id is not None else []
    lengths = periods(model, len(known))
    each = -(-sequences // len(lengths))
    halves = (rng.choice(np.asarray(known), period, replace=False).tolist() for period in lengths for _ in range(each))
    return [[*front, *half, *half] for half in halves]


def shuffled(ids: Sequence[int], *, first: int, seed: int) -> list[int]:
    """The same tokens, those that are said again in another order: none keeps its place and none follows what it
    followed before, as far as the tokens allow it. ``first``: where the text begins (1 after a BOS)."""
    text = np.asarray(ids[first:])
    _, once = np.unique(text, return_index=True)
    again = np.setdiff1d(np.arange(len(text)), once)
    if len(again) < 2:
        return list(ids)
    rng, best, fewest = np.random.default_rng(seed), text, len(text) * 2
    pairs = _pairs(text, text)
    for _ in range(TRIES):
        tried = text.copy()
        tried[again] = text[rng.permutation(again)]
        wrong = int((tried == text)[again].sum() + np.isin(_pairs(tried, text)[again - 1], pairs).sum())
        if wrong < fewest:
            best, fewest = tried, wrong
        if not wrong:
            break
    return [*ids[:first], *best.tolist()]


def _pairs(text: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A number for every token and the one after it, [T - 1]."""
    return text[:-1].astype(np.int64) * (int(like.max()) + 1) + text[1:]


def unsaid(ids: Sequence[int], known: Sequence[int], *, seed: int) -> list[int] | None:
    """For every token of a text a word that is not in it, the same for the same token; None where there is none."""
    rest = sorted(set(known) - set(ids))
    if not rest:
        return None
    rng = np.random.default_rng(seed)
    kinds = sorted(set(ids))
    order = [rest[i % len(rest)] for i in rng.permutation(max(len(kinds), len(rest)))[: len(kinds)]]
    other = dict(zip(kinds, order))
    return [other[i] for i in ids]
