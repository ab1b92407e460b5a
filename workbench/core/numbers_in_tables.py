"""Numbers in the cells of tables that others have written, read strictly: a cell that is none is named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.wording import cut

if TYPE_CHECKING:
    import polars as pl

_EMPTY = ("", "nan", "null", "none", "na", "n/a")


def number_of(value: Any, *, where: str, field: str, low: float = -math.inf, high: float = math.inf) -> float | None:
    """The number that a cell or a JSON value holds (text is read as a number); None for an empty one and for NaN.
    Raises InputError, beginning with ``where``, for what is no number, infinite or beyond ``low`` and ``high``."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _EMPTY):
        return None
    shown = cut(repr(value) if not isinstance(value, str) else f"'{value}'", 40)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise InputError(f"{where}: the field '{field}' is {shown}, which is no number.")
    try:
        found = float("" if isinstance(value, str) and "_" in value else value)  # Python takes 1_000 for a number
    except (ValueError, OverflowError):
        raise InputError(f"{where}: the field '{field}' is {shown}, which is no number.") from None
    if math.isnan(found):
        return None
    if math.isinf(found):
        raise InputError(f"{where}: the field '{field}' is infinite.")
    if not low <= found <= high:
        limits = f"at least {low:.4g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise InputError(f"{where}: the field '{field}' is {found:g}; it must be {limits}.")
    return found


def whole_number_of(value: Any, *, where: str, field: str) -> int:
    """The whole number from 0 that a cell or a JSON value holds, as ``7``, ``"7"`` or ``7.0``. InputError for any
    other, and for an empty cell."""
    found = number_of(value, where=where, field=field, low=0, high=2**53)
    if found is None:
        raise InputError(f"{where}: the field '{field}' is empty.")
    if found != int(found):
        raise InputError(f"{where}: the field '{field}' is {found:g}, and a whole number is needed.")
    return int(found)


def number_column(
    frame: pl.DataFrame, column: str, path: Path, *, low: float = -math.inf, high: float = math.inf, empty: bool = False
) -> list[float | None]:
    """The numbers of a column; rows are counted from 1. ``empty``: a cell may be empty."""
    found = [
        number_of(value, where=f"{path}, row {row}", field=column, low=low, high=high)
        for row, value in enumerate(frame[column].to_list(), 1)
    ]
    if not empty and None in found:
        raise InputError(f"{path}, row {found.index(None) + 1}: the field '{column}' is empty or NaN.")
    return found


def column_for(
    field: str, names: Sequence[str], there: Sequence[str], named: dict[str, str] | None, path: Path
) -> str | None:
    """The column of a table (``there``) that holds a field: the one that the person ``named``, else the only one of the
    ``names`` that it usually has, in any case of letters; None where there is none. Raises InputError where a named
    column is not there, and where several would do."""
    from workbench.core.nearest_name import nearest

    if named and field in named:
        if named[field] not in there:
            raise InputError(
                f"{path} has no column '{named[field]}'{nearest(named[field], list(there))}; it has {', '.join(there)}."
            )
        return named[field]
    found = [column for column in there if column.strip().lower().replace(" ", "_") in names]
    if len(found) > 1:
        raise InputError(
            f"{path} has the columns {' and '.join(found)}, each of which could be the {field}; say which with "
            f"--columns {field}:{found[0]}."
        )
    return found[0] if found else None
