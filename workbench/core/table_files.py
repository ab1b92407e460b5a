"""What a data file holds, as it stands there: rows of csv, tsv, JSON, JSON Lines, Parquet or plain lines.

The kind of a file goes by its content first. Parquet and JSON are known under any name; JSON may be a list of objects,
a list of texts, one object a line, or an object with such a list in it. csv, tsv and txt, which anything could be, go
by the name. Any of them may be packed (:mod:`workbench.core.packed_files`).
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.cells import cell_text, infinite
from workbench.core.errors import InputError
from workbench.core.json_text import parse_json
from workbench.core.packed_files import bare_name, read_unpacked
from workbench.core.parquet import parse_parquet

if TYPE_CHECKING:
    import polars as pl

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")
_EXACT = 2**53  # beyond it a float does not hold every whole number
_LINES = (".jsonl", ".ndjson")  # where one object is one row, whatever is in it
ROW_LISTS = ("messages", "conversations", "instances")  # lists that belong to one row
_TABLES = ("data", "examples", "rows", "items", "records", "samples")  # what a list of rows inside an object is called
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file itself"),
    (b"PK\x03\x04", "a zip archive (an Excel sheet is one too)"),
    (b"BZh", "packed by bzip2"),
    (b"\xfd7zXZ", "packed by xz"),
    (b"7z\xbc\xaf", "packed by 7-Zip"),
    (b"ARROW1", "an Arrow file"),
    (b"%PDF", "a PDF"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3", "an SQLite database"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
)


@dataclass(frozen=True)
class OpenTable:
    """The table in a file. ``nested``: columns of mixed kinds, which became text, with lists or objects among them ->
    the first row (from 1) that holds one."""

    frame: pl.DataFrame
    nested: Mapping[str, int] = field(default_factory=dict)


def read_rows(path: Path, *, what: str, text_column: str) -> OpenTable:
    """The table in a file that is there, its columns as the file has them. Rows of nothing but a text (plain lines, a
    JSON list of texts) go into ``text_column``. InputError for what is no table, with what it looks like."""
    import polars as pl

    data = read_unpacked(path)
    suffix = Path(bare_name(path)).suffix.lower()
    _refuse_foreign(data, path, what)
    if suffix == ".parquet" or data.startswith(b"PAR1"):
        return OpenTable(parse_parquet(data, what=str(path)))
    text = decoded(data, path, what=what)
    rows = _json_rows(text, suffix, path, what)
    if rows is None and suffix in (".csv", ".tsv"):
        return OpenTable(_delimited(text, _delimiter(text, suffix), path))
    if rows is None and suffix != ".txt":
        raise InputError(
            f"{path}: the {what} file must be one of {', '.join(FORMATS)}, not '{suffix or path.name}', and it holds "
            f"neither JSON nor Parquet; it looks like {_text_kind(text)}."
        )
    if rows is None:
        rows = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if rows and all(isinstance(row, str) for row in rows):
        rows = [{text_column: row} for row in rows]
    frame = _of_objects(rows, path)
    return OpenTable(frame, _nested(rows, {name for name, kind in frame.schema.items() if kind == pl.String}))


def _nested(rows: Sequence[Any], names: set[str]) -> dict[str, int]:
    """Of these columns those with a list or an object -> the first row that holds one."""
    found: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        for name in names.intersection(row):
            if isinstance(row[name], list | dict):
                found.setdefault(name, number)
    return found


def _of_objects(rows: Sequence[Any], path: Path) -> pl.DataFrame:
    """A column for every key of the rows."""
    import polars as pl

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


def decoded(data: bytes, path: Path, *, what: str) -> str:
    """The text of a UTF-8 file (a byte-order mark is dropped); InputError for an empty or otherwise encoded file."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} is not UTF-8 (line {line}, byte {error.start}); save it as UTF-8.") from None
    if not text.strip():
        raise InputError(f"{path} is empty; the {what} file needs some text.")
    return text


def _refuse_foreign(data: bytes, path: Path, what: str) -> None:
    kind = next((kind for begin, kind in _FOREIGN if data.lstrip()[: len(begin)] == begin), None)
    if kind is None and data[257:262] == b"ustar":
        kind = "a tar archive"
    if kind is not None:
        raise InputError(
            f"{path} looks like {kind}; the {what} file must be one of {', '.join(FORMATS)}, packed as .gz or .zst or "
            f"not at all."
        )


def _text_kind(text: str) -> str:
    """What a text that is no JSON may be, and how to say so in its name."""
    lines = [line for line in text.split("\n") if line.strip()][:20]
    for sign, suffix in (("\t", ".tsv"), (",", ".csv")):
        found = {line.count(sign) for line in lines}
        if len(found) == 1 and 0 not in found:
            return f"{suffix[1:]} (name it {suffix})"
    return "plain text (name it .txt for one row a line)"


def _json_rows(text: str, suffix: str, path: Path, what: str) -> list[Any] | None:
    """The rows of a JSON or JSON Lines text; None for one that is neither and need not be, by its name."""
    named = suffix in (".json", *_LINES)
    begin = text.lstrip()[:1]
    if not named and begin not in ("[", "{", '"'):
        return None
    try:
        return _rows_in(text, suffix, path, what)
    except InputError:
        if named or (suffix not in (".csv", ".tsv", ".txt") and begin != '"') or _is_json_lines(text):
            raise
        return None  # the name says what it is: a text that begins with a bracket


def _is_json_lines(text: str) -> bool:
    """Whether a text can only be meant as one JSON object a line: most of several lines are one."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return len(lines) > 1 and 2 * sum(line.startswith("{") and _is_whole(line) for line in lines) > len(lines)


def _rows_in(text: str, suffix: str, path: Path, what: str) -> list[Any]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and (_is_whole(lines[0][1]) or _is_json_lines(text)):
        return [parse_json(line, str(path), line=number) for number, line in lines]
    value = parse_json(text, str(path))
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return _inside(value, suffix, path, what)
    raise InputError(f"{path}: the {what} file must be a JSON list of objects, one per row, not a single value.")


def _is_whole(line: str) -> bool:
    """Whether a line is a JSON value by itself (one that is damaged further on counts as none)."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _inside(value: dict[str, Any], suffix: str, path: Path, what: str) -> list[Any]:
    """The rows in one JSON object: its one list of objects, else its one list of texts, else columns side by side.

    InputError where there is none, or more than one that could be meant."""
    if any(isinstance(value.get(name), list) for name in ROW_LISTS):
        return [value]
    columns = list(value.values())
    aligned = len(columns) > 1 and all(isinstance(entry, list) and len(entry) == len(columns[0]) for entry in columns)
    for kind in (dict, str):
        if kind is str and aligned and suffix not in _LINES:
            return [dict(zip(value, row)) for row in zip(*columns)]
        lists = {
            name: entry
            for name, entry in value.items()
            if isinstance(entry, list) and entry and all(isinstance(item, kind) for item in entry)
        }
        known = [name for name in _TABLES if name in lists]
        if suffix in _LINES and (kind is str or not known):
            continue
        if len(lists) == 1 or len(known) == 1:
            return lists[known[0] if known else next(iter(lists))]
        if len(lists) > 1 and kind is dict:
            raise InputError(
                f"{path} holds several lists of rows ({', '.join(lists)}); save the one that is meant as a {what} "
                f"file of its own."
            )
    if suffix in _LINES:
        return [value]
    mixed = [name for name in _TABLES if isinstance(value.get(name), list) and value[name]]
    if len(mixed) == 1:
        return value[mixed[0]]  # which of its rows is none is said of the row
    raise InputError(
        f"{path}: the {what} file must be a JSON list of objects, one per row, or an object with such a list; it is an "
        f"object with the keys {', '.join(list(value)[:12])}."
    )


def headless(header: Sequence[str]) -> str:
    """What may be wrong with the names of columns that do not read like names; "" where they do."""
    odd = any(len(name) > 60 or name.endswith((".", "?", "!")) or re.fullmatch(r"-?[0-9.]+", name) for name in header)
    return "; its first line looks like a row, so put the names of the columns above it" if odd else ""


def _delimiter(text: str, suffix: str) -> str:
    """What stands between the columns: as the name says, and where the header has none of that, what it has instead
    (spreadsheets write csv with semicolons or tabs)."""
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    own, *others = (",", ";", "\t") if suffix == ".csv" else ("\t", ",", ";")
    return own if own in header else next((sign for sign in others if sign in header), own)


def _delimited(text: str, delimiter: str, path: Path) -> pl.DataFrame:
    """Every cell as text; an empty cell is null. Strict: a row of another width is an error, not a guess."""
    import polars as pl

    before = csv.field_size_limit(sys.maxsize)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        if delimiter == "\t" and (bare := _bare_quotes(text, rows)) is not None:
            rows = bare
    except csv.Error as error:
        rows = _bare_quotes(text, None) if delimiter == "\t" else None
        if rows is None:
            kind = "tsv" if delimiter == "\t" else "csv"
            raise InputError(f"{path} cannot be read as {kind}: {error}.") from None
    finally:
        csv.field_size_limit(before)
    header, *body = [row for row in rows if row]
    header = [name.strip() for name in header]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{path}: the column '{twice}' is there twice{headless(header)}.")
    for number, row in enumerate(body, 1):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number}: {len(row)} fields, where the header has {len(header)}.")
    return pl.DataFrame(
        [pl.Series(name, [row[index] or None for row in body], dtype=pl.String) for index, name in enumerate(header)]
    )


def _bare_quotes(text: str, quoted: Sequence[Sequence[str]] | None) -> list[list[str]] | None:
    """The rows of a tsv in which a quotation mark is text, as it is written without quoting; None for one that quotes.

    It is bare where every line has the width of the first and reading it as quoted fails (``quoted`` None), gives rows
    of another width, or makes one field of several lines."""
    rows = [line.split("\t") for line in re.split(r"\r\n|\r|\n", text) if line]
    if len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return None
    if quoted is None or any(len(row) != len(rows[0]) for row in quoted if row) or len(rows) != sum(map(bool, quoted)):
        return rows
    return None


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
