"""Reading what people bring: tables in csv, tsv, jsonl, json, parquet or txt, with errors that name file, row and
field."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.cells import cell_text, infinite, label_column, text_column
from workbench.core.errors import InputError
from workbench.core.files import digest_path, read_plain
from workbench.core.json_text import parse_json
from workbench.core.nearest_name import nearest
from workbench.core.parquet import read_parquet
from workbench.core.paths import is_there, user_path
from workbench.core.wording import cut

if TYPE_CHECKING:
    import polars as pl

_EXACT = 2**53  # beyond it a float does not hold every whole number
FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")


def read_table(
    path: str | Path,
    *,
    required: Sequence[str] = (),
    optional: Sequence[str] = (),
    labels: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    what: str = "data",
) -> pl.DataFrame:
    """The rows of a file, as a polars DataFrame of at least one row.

    ``required`` columns must exist and be filled in every row; they and the ``optional`` ones come back as text, the
    ``labels`` (of either kind, or columns that need not be there) as labels: the same in every format, see
    :mod:`workbench.core.cells`. NaN is null. Other columns keep what the file says (csv and tsv: text). ``columns``
    maps the name asked for to the name in the file. A txt file is one row per non-empty line, in the first required
    column (else ``text``). ``what`` is the word used for the file in errors ("needles"). Rows are counted from 1,
    without the header. Raises InputError naming the file and, where there is one, the row and the field.
    """
    path = existing(path, what=what)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: the {what} file must be one of {', '.join(FORMATS)}, not '{suffix or path.name}'.")
    if suffix == ".parquet":
        frame = read_parquet(path)
    else:
        text = read_text(path, what=what)
        name = (columns or {}).get(required[0], required[0]) if required else "text"
        frame = _parse(text, suffix, path, what, name)
    if not frame.height:
        raise InputError(f"{path} has no rows; the {what} file needs at least one.")
    frame = _rename(frame, columns or {}, path)
    for column in required:
        if column not in frame.columns:
            raise InputError(
                f"{path} has no column '{column}'{nearest(column, frame.columns)}; it has {', '.join(frame.columns)}."
            )
    for column in dict.fromkeys([*required, *optional, *labels]):
        if column in frame.columns:
            read = label_column if column in labels else text_column
            frame = frame.with_columns(read(frame[column], str(path)))
    for column in required:
        empty = frame[column].is_null() | (frame[column].str.strip_chars() == "")
        if empty.any():
            raise InputError(f"{path}, row {empty.arg_true()[0] + 1}: the field '{column}' is empty.")
    return frame


def read_text(path: str | Path, *, what: str = "text") -> str:
    """The whole text of a UTF-8 file (a byte-order mark is dropped); InputError for an empty or otherwise encoded
    file."""
    path = existing(path, what=what)
    raw = read_plain(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} is not UTF-8 (line {line}, byte {error.start}); save it as UTF-8.") from None
    if not text.strip():
        raise InputError(f"{path} is empty; the {what} file needs some text.")
    return text


def existing(path: str | Path, *, what: str = "data") -> Path:
    """``path`` as a Path to a file that is there; InputError, with the nearest name in its folder, where it is not."""
    path = user_path(path)
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise InputError(f"The name of the {what} file {cut(shown, 200)} is not UTF-8; rename it.")
    if not is_there(path):
        raise InputError(f"There is no {what} file {cut(path, 300)}{_near(path)}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a {what} file is needed.")
    if not path.is_file():
        raise InputError(f"{path} is no file that can be read more than once; save it as a {what} file.")
    if not os.access(path, os.R_OK):
        raise InputError(f"The {what} file {path} cannot be read: permission denied.")
    return path


def _near(path: Path) -> str:
    try:
        return nearest(path.name, [item.name for item in path.parent.iterdir()])
    except (OSError, ValueError):  # no folder, or none that may be looked into
        return ""


def fingerprint_file(path: str | Path) -> str:
    """SHA-256, in hex, of the content of a file (or of all the files below a folder)."""
    return digest_path(Path(path))


def _parse(text: str, suffix: str, path: Path, what: str, text_column: str) -> pl.DataFrame:
    import polars as pl

    if suffix == ".txt":
        return pl.DataFrame({text_column: [line.rstrip("\r") for line in text.split("\n") if line.strip()]})
    if suffix in (".csv", ".tsv"):
        return _delimited(text, "," if suffix == ".csv" else "\t", path)
    if suffix == ".json":
        rows = parse_json(text, str(path))
        if not isinstance(rows, list):
            raise InputError(f"{path}: the {what} file must be a JSON list of objects, one per row.")
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                rows.append(parse_json(line, str(path), line=number))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: a JSON object is needed, not {type(row).__name__}.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return pl.DataFrame([_series(name, [row.get(name) for row in rows], path) for name in names])
    except UnicodeEncodeError:
        for number, row in enumerate(rows, 1):
            for name, value in row.items():
                if any("\ud800" <= letter <= "\udfff" for letter in json.dumps([name, value], ensure_ascii=False)):
                    raise InputError(
                        f"{path}, row {number}: the field '{name}' has half a character (an unpaired "
                        f"surrogate), which is no text; repair it."
                    ) from None
        raise


def _delimited(text: str, delimiter: str, path: Path) -> pl.DataFrame:
    """Every cell as text; an empty cell is null. Strict: a row of another width is an error, not a guess."""
    import polars as pl

    before = csv.field_size_limit(sys.maxsize)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {error}.") from None
    finally:
        csv.field_size_limit(before)
    header, body = [name.strip() for name in rows[0]], [row for row in rows[1:] if row]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{path}: the column '{twice}' is there twice.")
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number}: {len(row)} fields, where the header has {len(header)}.")
    return pl.DataFrame(
        [pl.Series(name, [row[index] or None for row in body], dtype=pl.String) for index, name in enumerate(header)]
    )


def _series(name: str, values: list[Any], path: Path) -> pl.Series:
    """A column of JSON values; one of mixed kinds becomes text."""
    import polars as pl

    kinds = {type(value) for value in values if value is not None}
    try:
        if len(kinds) > 1 and kinds != {int, float}:  # polars would take true for 1
            raise TypeError
        if kinds == {int, float} and any(type(value) is int and abs(value) > _EXACT for value in values):
            raise TypeError  # the whole numbers would be rounded
        series = pl.Series(name, values, strict=kinds != {int, float})
        if (
            kinds & {dict, list} and series.to_list() != values
        ):  # polars takes the keys of the first rows for those of all
            raise TypeError
        return series
    except (TypeError, OverflowError, RecursionError, pl.exceptions.PolarsError):
        return pl.Series(name, [_word(value, path, row, name) for row, value in enumerate(values, 1)], dtype=pl.String)


def _word(value: Any, path: Path, row: int, field: str) -> str | None:
    """A value of a column of mixed kinds."""
    try:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else cell_text(value)
    except OverflowError:
        raise InputError(infinite(str(path), row, field)) from None
    except RecursionError:
        raise InputError(f"{path}, row {row}: the field '{field}' is nested too deeply to be read.") from None


def _rename(frame: pl.DataFrame, columns: Mapping[str, str], path: Path) -> pl.DataFrame:
    wanted = {there: name for name, there in columns.items() if there != name}
    for there in wanted:
        if there not in frame.columns:
            raise InputError(
                f"{path} has no column '{there}'{nearest(there, frame.columns)}; it has {', '.join(frame.columns)}."
            )
    clash = [name for name in wanted.values() if name in frame.columns and name not in wanted]
    return frame.drop(clash).rename(wanted)


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
        mapping[name] = there
    return mapping
