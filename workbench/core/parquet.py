"""Parquet files, read and written in one place: no path is a pattern, no damaged file is more than a sentence.

polars takes ``[ ] * ?`` in a path for a pattern, and a damaged file can end the whole process inside it (a panic, an
allocation of terabytes). So the bytes are read here, from the file that was named, and unpacked by pyarrow, which
answers damage with an exception. Writing goes through memory: a full disk then speaks as the system does.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import InputError, is_panic
from workbench.core.files import read_plain, write_bytes
from workbench.core.wording import one_line

if TYPE_CHECKING:
    import polars as pl


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
        frame = pl.from_arrow(table)
    except Exception as error:  # pyarrow raises many kinds, plain OSError and UnicodeDecodeError among them
        raise InputError(f"{what} cannot be read as parquet: {one_line(error)}.") from None
    except BaseException as error:
        if not is_panic(error):
            raise
        raise InputError(f"{what} cannot be read as parquet: {one_line(error)}.") from None
    assert isinstance(frame, pl.DataFrame)
    return frame


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a table, complete or not at all. OSError, with the system's number, where the disk refuses it."""
    write_bytes(path, parquet_bytes(frame))


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """The Parquet file of a table."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
