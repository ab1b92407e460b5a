"""Columns of a data file by other names: the config key `columns`, and the renaming that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.registry import option

if TYPE_CHECKING:
    import polars as pl


def columns_option(example: str, *, later: bool = True) -> Any:
    """The config key `columns`. ``example``: as in `subject:Subject,answer:Answer`. ``later``: see
    :func:`workbench.core.config.option`."""
    return option(
        (),
        f"names of the columns in the data file where they differ, as name:name in the file, e.g. {example}",
        later=later,
    )


def column_map(pairs: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """``("subject:entity", ...)`` of a config -> ``{"subject": "entity"}`` for ``read_table(columns=...)``."""
    mapping = {}
    for pair in pairs:
        name, colon, there = pair.partition(":")
        if not colon or not there:
            raise InputError(f"Columns are given as name:column_in_the_file, not '{pair}'.")
        if name not in known:
            raise InputError(
                f"There is no column '{name}'{nearest(name, known)} to rename; there are {', '.join(known)}."
            )
        if name in mapping:
            raise InputError(f"The column '{name}' is given twice, as '{mapping[name]}' and as '{there}'; keep one.")
        mapping[name] = there
    return mapping


def rename(frame: pl.DataFrame, columns: Mapping[str, str], path: Path) -> pl.DataFrame:
    """The table with the columns that ``columns`` (name asked for -> name in the file) gives other names; one may be
    asked for under several. InputError, with the nearest name, for a column that is not there."""
    import polars as pl

    wanted = {name: there for name, there in columns.items() if there != name}
    for there in columns.values():
        if there not in frame.columns:
            raise InputError(
                f"{path} has no column '{there}'{nearest(there, frame.columns)}; it has {', '.join(frame.columns)}."
            )
    kept = []
    for column in frame.columns:
        names = [name for name, there in wanted.items() if there == column]
        kept += [pl.col(column).alias(name) for name in names]
        if column not in wanted and (not names or columns.get(column) == column):  # else another takes its name
            kept.append(pl.col(column))
    return frame.select(kept)
