"""Rows of a data file that are longer than the model's context: refused, left out, or cut, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.registry import option

_DONE = {"skip": "left out", "cut": "cut"}


def long_option(default: str = "refuse", *, cut: bool, choices: Sequence[str] = ("refuse", "skip", "cut")) -> Any:
    """The config key `long`. `cut`: whether a text without its end is still one that the probe can measure."""
    return option(
        default,
        "rows longer than the model's context (or than max_length): refuse the run, skip them"
        + (", or cut them at its end" if cut else "")
        + "; how many is in the summary",
        choices=[how for how in choices if cut or how != "cut"],
        later=True,
    )


def fitting(
    lengths: Sequence[int], limit: int | None, *, long: str, context: Context, where: Callable[[int], str], what: str
) -> list[int]:
    """The rows that are measured, of texts of so many tokens each, where at most ``limit`` fit: all of them, those
    that fit (skip), or all again (cut: the caller cuts them at ``limit``).

    What is skipped or cut is counted in run.json and warned of. ``where(row)`` begins a sentence with the place of a
    row, as in "a.csv, row 3: the text".

    Raises InputError for the first row that does not fit (refuse), and when none is left."""
    over = [row for row, length in enumerate(lengths) if limit is not None and length > limit]
    if not over:
        return list(range(len(lengths)))
    if long == "refuse":
        raise InputError(
            f"{where(over[0])} has {lengths[over[0]]:,} tokens, where {limit:,} fit; shorten it, or leave such rows "
            f"out with long=skip."
        )
    counter = f"rows_{'skipped' if long == 'skip' else 'cut'}_too_long"
    context.counters[counter] = context.counters.get(counter, 0) + len(over)
    context.warn(
        f"{len(over)} of {len(lengths)} {what} are longer than the {limit} tokens that fit and were {_DONE[long]} "
        f"(long={long})."
    )
    kept = list(range(len(lengths))) if long == "cut" else sorted(set(range(len(lengths))) - set(over))
    if not kept:
        raise InputError(f"None of the {len(lengths)} {what} fits into {limit} tokens; nothing is left to measure.")
    return kept


def counted_rows(context: Context) -> dict[str, int]:
    """How many rows were skipped or cut, for a summary; nothing where none was."""
    return {
        key: context.counters[key] for key in ("rows_skipped_too_long", "rows_cut_too_long") if key in context.counters
    }
