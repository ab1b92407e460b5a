"""Tables of samples that a model is trained or scored on: a column `text`, or `prompt` and `response`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import InputError
from workbench.core.tables import read_table

if TYPE_CHECKING:
    import polars as pl


def read_samples(path: Path, *, what: str, tokens: str = "all") -> pl.DataFrame:
    """The rows of a file with `prompt` and `response`, or else `text`; none of them may be empty.

    Raises InputError naming file, row and field, also when `tokens` asks for a part that a text does not have."""
    table = read_table(path, what=what)
    if {"prompt", "response"} <= set(table.columns):
        return read_table(path, required=("prompt", "response"), what=what)
    if tokens != "all":
        raise InputError(
            f"{path} needs the columns 'prompt' and 'response' for tokens={tokens}; it has {', '.join(table.columns)}."
        )
    if "text" not in table.columns:
        raise InputError(
            f"{path} needs a column 'text', or 'prompt' and 'response'; it has {', '.join(table.columns)}."
        )
    return read_table(path, required=("text",), what=what)


def texts(table: pl.DataFrame, tokens: str = "all") -> list[str]:
    """What is written in each sample, or in the part of it that counts, without any template."""
    if not {"prompt", "response"} <= set(table.columns):
        return table["text"].to_list()
    return (
        table[tokens].to_list()
        if tokens != "all"
        else [f"{prompt} {response}" for prompt, response in table.select("prompt", "response").iter_rows()]
    )
