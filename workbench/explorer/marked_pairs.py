"""Which pairs of a query and a key count for which score of a head, as masks [T, T] bool."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def marked(ids: Sequence[int], *, first: int) -> dict[str, torch.Tensor]:
    """The pairs of each attention score of a text, and of the controls that are read off the same text. A BOS in front
    (``first`` is 1) is nobody's earlier occurrence."""
    query, key = torch.arange(len(ids))[:, None], torch.arange(len(ids))[None]
    return _repeats(ids, first=first) | {
        "previous_token": key == query - 1,
        "previous_token control": key == query - 2,
        "first_token": (key == 0) & (query > 0),
        "first_token control": (key == 1) & (query > 1),
    }


def marked_in_twin(ids: Sequence[int], twin: Sequence[int], *, first: int) -> dict[str, torch.Tensor]:
    """The pairs of the text that count for induction and duplicate_token, less those that count in its shuffled twin,
    too (where the tokens allowed no better shuffling)."""
    there = _repeats(twin, first=first)
    return {name: pairs & ~there[name] for name, pairs in _repeats(ids, first=first).items()}


def _repeats(ids: Sequence[int], *, first: int) -> dict[str, torch.Tensor]:
    T = len(ids)
    token = torch.tensor(ids)
    query, key = torch.arange(T)[:, None], torch.arange(T)[None]
    same = (token[:, None] == token[None]) & (key < query) & (key >= first)
    followed = torch.zeros(T, T, dtype=torch.bool)
    followed[:, 1:] = same[:, :-1]  # the key after an earlier occurrence of the query's token
    return {"induction": followed & (key < query), "duplicate_token": same}
