"""A file of questions with their passages: question, passages (a list of texts), gold (the one that answers)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.core.wording import cut


@dataclass(frozen=True)
class PassageRow:
    """A row of a file of passages; `gold`: the number of the passage that answers, from 0."""

    question: str
    passages: tuple[str, ...]
    gold: int


def read_passages(source: str | Path) -> list[PassageRow]:
    """The rows of a file with the columns question, passages (a list of texts) and gold (the number of the one that
    answers, from 0). Raises InputError that names row and field."""
    found = read_table(source, required=("question",), also=("passages", "gold"), what="passages")
    for column in ("passages", "gold"):
        if column not in found.columns:
            raise InputError(f"{source} has no column '{column}'; it needs question, passages and gold.")
    rows = []
    for number, row in enumerate(found.select("question", "passages", "gold").iter_rows(named=True), 1):
        where = f"{source}, row {number}"
        passages = _listed(row["passages"])
        if passages is None or len(passages) < 2 or not all(any(c.isalnum() for c in text) for text in passages):
            raise InputError(f"{where}: the field 'passages' must be a list of at least two texts, none of them empty.")
        gold = _index(row["gold"])
        if gold is None or not 0 <= gold < len(passages):
            raise InputError(
                f"{where}: the field 'gold' is {cut(repr(row['gold']), 40)}; it is the number of the passage that "
                f"answers, from 0 to {len(passages) - 1}."
            )
        rows.append(PassageRow(row["question"].strip(), tuple(text.strip() for text in passages), gold))
    others_of([row.passages[row.gold] for row in rows], [row.question for row in rows], source, what="gold passages")
    return rows


def _listed(value: Any) -> list[str] | None:
    """A list of texts, as it is or as JSON in a cell; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, pl.Series):
        value = value.to_list()
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else None


def _index(value: Any) -> int | None:
    """A whole number, as it is or as text; None for anything else."""
    try:
        return int(value) if not isinstance(value, bool) and float(value) == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def others_of(passages: Sequence[Any], questions: Sequence[str], source: str | Path, *, what: str) -> list[int]:
    """For every row the next one, round the file, with another passage and another question. Raises InputError where a
    row has none."""
    n, found = len(passages), []
    for k in range(n):
        steps = ((k + step) % n for step in range(1, n))
        other = next((i for i in steps if passages[i] != passages[k] and questions[i] != questions[k]), None)
        if other is None:
            raise InputError(
                f"{source} needs at least two different {what} with different questions, so that each can be asked "
                f"what the other answers."
            )
        found.append(other)
    return found
