"""Which rows of a set a split should keep together: those of a group, those about one thing, near-identical ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import polars as pl

from workbench.core.cells import label_column
from workbench.stats.near_duplicates import MOST, near_duplicates

NEAR = "near-identical"
_WORD = re.compile(r"\w+")
_IN_TEXT = 0.95  # share of the rows whose text holds what a column says they are about
_LARGEST = 0.02  # of all rows: the most that are about one thing; more is a class, not a thing


def groups_of(texts: Sequence[str], others: pl.DataFrame) -> tuple[tuple[str, ...] | None, str]:
    """The group of each text (None where every text is alone) and what made them: the name of a column or `NEAR`.

    `others` [n]: the further columns of the file. One of them names what each row is about where its value stands in
    the text (a subject, a city) and few rows share it; of several the one with the most different values. Else the
    texts speak for themselves."""
    padded = [_padded(text) for text in texts]
    best: tuple[int, str, list[str]] | None = None
    for column in others.iter_columns():
        values = _about(column, padded)
        if values is not None and (best is None or len(set(values)) > best[0]):
            best = (len(set(values)), column.name, values)
    if best is not None:
        return tuple(best[2]), best[1]
    first = near_duplicates(texts)
    if len(set(first.tolist())) == len(texts):
        return None, ""
    # named by a text, not by a number, so that a split does not change with a row that is left out
    return tuple(texts[row] for row in first.tolist()), NEAR


def _about(column: pl.Series, padded: Sequence[str]) -> list[str] | None:
    """What each text is about, where the column says so."""
    if column.null_count() or not (column.dtype == pl.String or column.dtype.is_integer()):
        return None
    values = label_column(column, "").to_list()
    sizes = Counter(values)
    if None in sizes or len(sizes) == len(values) or max(sizes.values()) > max(MOST, _LARGEST * len(values)):
        return None
    inside = sum(_padded(value) in text for value, text in zip(values, padded))
    return values if inside >= _IN_TEXT * len(values) else None


def _padded(text: str) -> str:
    """The words of a text with a blank around each, so that 5 is not found in 15."""
    return f" {' '.join(re.findall(_WORD, text.lower()))} "


def repeated_share(groups: Sequence[str]) -> float:
    """Share of the rows that are there besides the first of their group."""
    return 1 - len(set(groups)) / max(1, len(groups))


def grouped_rows(groups: Sequence[str] | None) -> int:
    """How many rows share their group with another."""
    return sum(size for size in Counter(groups or ()).values() if size > 1)
