"""Parquet files, read and written in one place: no path is a pattern, no damaged file is more than a sentence.

polars takes ``[ ] * ?`` in a path for a pattern, and a damaged file can end the whole process inside it (a panic, an
allocation of terabytes). So the bytes are read here, from the file that was named, and unpacked by pyarrow, which
answers damage with an exception. Writing goes through memory: a full disk then speaks as the system does.
"""

from __future__ import annotations

import datetime
import io
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import InputError, is_panic
from workbench.core.files import read_plain, write_bytes
from workbench.core.wording import one_line

if TYPE_CHECKING:
    import polars as pl
    import pyarrow

_EPOCH = datetime.date(1970, 1, 1).toordinal()
_TICKS = {"ms": 10**3, "us": 10**6, "ns": 10**9}  # in a second


def read_parquet(path: Path) -> pl.DataFrame:
    """The table in a Parquet file; InputError (one sentence, with the path) for what is none. OSError as the system
    raises it for a file that is not there or cannot be opened."""
    return parse_parquet(read_plain(path), what=str(path))


def parse_parquet(data: bytes, *, what: str) -> pl.DataFrame:
    """The table in the bytes of a Parquet file, which errors call ``what``."""
    import polars as pl
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
        frame = pl.from_arrow(_within_polars(table))
    except Exception as error:  # pyarrow raises many kinds, plain OSError and UnicodeDecodeError among them
        raise InputError(f"{what} cannot be read as parquet: {one_line(error)}.") from None
    except BaseException as error:
        if not is_panic(error):
            raise
        raise InputError(f"{what} cannot be read as parquet: {one_line(error)}.") from None
    assert isinstance(frame, pl.DataFrame)
    _check_times(frame, what)
    return frame


def _within_polars(table: pyarrow.Table) -> pyarrow.Table:
    """The same values in columns that polars has a kind for: decimals of more digits than it knows as text, times with
    an offset in place of the name of a zone (as pandas writes "+05:30") as the same moments in UTC."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        kind, column = field.type, table.column(index)
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_decimal256(kind):
            to = pa.string()
        elif pa.types.is_timestamp(kind) and kind.tz is not None and kind.tz not in zoneinfo.available_timezones():
            to = pa.timestamp(kind.unit, "UTC")
        else:
            continue
        table = table.set_column(index, field.name, (column if kind == field.type else column.cast(kind)).cast(to))
    return table


def _check_times(frame: pl.DataFrame, what: str) -> None:
    """InputError for a date or time that Python has none for, where polars would panic when it is read."""
    import polars as pl

    for column in frame.get_columns():
        per_second = _TICKS.get(getattr(column.dtype, "time_unit", None) or "", 1)
        if column.dtype == pl.Date:
            least, most = (day - _EPOCH for day in (datetime.date.min.toordinal(), datetime.date.max.toordinal()))
        elif column.dtype == pl.Datetime:  # a day less, for the offsets of zones
            least = (datetime.date.min.toordinal() + 1 - _EPOCH) * 86_400 * per_second
            most = (datetime.date.max.toordinal() - _EPOCH) * 86_400 * per_second
        elif column.dtype == pl.Duration:
            most = 999_999_999 * 86_400 * per_second
            least = -most
        elif column.dtype == pl.Time:
            least, most = 0, 86_400 * 10**9 - 1
        else:
            continue
        ticks = column.to_physical().cast(pl.Int64)
        odd = ((ticks < max(least, -(2**63))) | (ticks > min(most, 2**63 - 1))).arg_true()
        if len(odd):
            raise InputError(
                f"{what}, row {odd[0] + 1}: the field '{column.name}' is outside the years 1 to 9999 that dates and "
                f"times can have; write it as text, or leave it empty."
            )


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a table, complete or not at all. OSError, with the system's number, where the disk refuses it."""
    write_bytes(path, parquet_bytes(frame))


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """The Parquet file of a table."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
