"""What stands in a cell of a data file, as a person would write it: the same text whatever the file's format.

Text stays what it is. A number becomes the shortest text at 15 significant digits, and a whole one has no decimal
point: 0.1 + 0.2 is "0.3", and the integers that pandas keeps as 1.0 where others are missing are "1". NaN is a missing
value, as null is. A *label* (a class, a group: what is compared and never read) goes one step further, because csv has
only text: blanks around it are nothing, a number counts by its value at twelve significant digits (1, 1.0 and 1e0 are
one label, 0 and -0.0 too, and sums that should be 100 but end in 99.9999999999986), true and false count in any case,
and the word NaN is missing. Whole numbers are never rounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError

if TYPE_CHECKING:
    import polars as pl

_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # as JSON writes one
_WHOLE = 1e22  # from here on a float is written with an exponent: its digits would be made up


def text_column(series: pl.Series, where: str) -> pl.Series:
    """The column as text. InputError, beginning with ``where``, for one that holds no words or numbers (lists,
    objects, bytes), and for an infinite number."""
    return _written(series, where, lambda value: value)


def label_column(series: pl.Series, where: str) -> pl.Series:
    """The column as labels; the errors are those of :func:`text_column`."""
    return _written(series, where, as_label)


def as_label(text: str) -> str | None:
    """One label as it is compared; None for NaN. OverflowError for a number beyond all floats."""
    text = text.strip()
    word = text.lower()
    if word in ("true", "false"):
        return word
    if word == "nan":
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    if match[3] is None and match[4] is None:
        return "0" if text == "-0" else text  # as many digits as it has
    return _number(float(text), 12)


def _written(series: pl.Series, where: str, finish: Callable[[str], str | None]) -> pl.Series:
    import polars as pl

    words = []
    for row, value in enumerate(_values(series, where), 1):
        try:
            text = cell_text(value)
            words.append(None if text is None else finish(text))
        except OverflowError:
            raise InputError(infinite(where, row, series.name)) from None
    return pl.Series(series.name, words, dtype=pl.String)


def infinite(where: str, row: int, field: str) -> str:
    """The sentence for an infinite number where text is needed."""
    said = "is infinite, which is no text; write what is meant, or leave it empty"
    return f"{where}, row {row}: the field '{field}' {said}."


def _values(series: pl.Series, where: str) -> list[Any]:
    """The values of a column of words, numbers or dates."""
    import numpy as np
    import polars as pl

    kind = series.dtype
    if kind in (pl.Float32, pl.Float16):  # of so many digits as it has: 0.3 is not 0.30000001192092896
        own = np.float16 if kind == pl.Float16 else np.float32
        return [None if value is None else float(str(own(value))) for value in series.to_list()]
    if kind == pl.Binary:
        raise InputError(f"{where}: the column '{series.name}' must hold text, not bytes; save it as text.")
    if kind == pl.Duration:
        return series.dt.to_string("iso").to_list()
    words = (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null, pl.Date, pl.Datetime, pl.Time)
    if kind in words or kind.is_numeric():
        return series.to_list()
    said = "lists" if isinstance(kind, pl.List | pl.Array) else "objects" if isinstance(kind, pl.Struct) else str(kind)
    raise InputError(f"{where}: the column '{series.name}' must hold text, not {said}.")


def cell_text(value: Any) -> str | None:
    """One word, number or date as text; None for NaN. OverflowError for an infinite number."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value, 15)
    if isinstance(value, (int, Decimal)):
        return format(value, "f") if isinstance(value, Decimal) else str(value)
    return value.isoformat()  # a date, a time


def _number(value: float, digits: int) -> str | None:
    """A float as text; None for NaN, OverflowError for an infinite one."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise OverflowError
    exact = value if value.is_integer() else float(f"{value:.{digits}g}")
    return str(int(exact)) if exact.is_integer() and abs(exact) < _WHOLE else f"{exact:.{digits}g}"
