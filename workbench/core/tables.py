"""Reading what people bring: tables in csv, tsv, jsonl, json, parquet or txt, with errors that name file, row and
field."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.cells import label_column, text_column
from workbench.core.column_names import rename
from workbench.core.errors import InputError
from workbench.core.files import digest_path
from workbench.core.nearest_name import nearest
from workbench.core.packed_files import read_unpacked
from workbench.core.paths import is_there, user_path
from workbench.core.published_formats import fit
from workbench.core.table_files import FORMATS, OpenTable, decoded, headless, read_rows
from workbench.core.wording import cut

if TYPE_CHECKING:
    import polars as pl

__all__ = ["FORMATS", "asked", "existing", "fingerprint_file", "open_table", "read_table", "read_text"]


def read_table(
    path: str | Path,
    *,
    required: Sequence[str] = (),
    optional: Sequence[str] = (),
    labels: Sequence[str] = (),
    also: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    what: str = "data",
    tell: Callable[[str], None] | None = None,
) -> pl.DataFrame:
    """The rows of a file, as a polars DataFrame of at least one row.

    ``required`` columns must exist and be filled in every row; they and the ``optional`` ones come back as text, the
    ``labels`` (of either kind, or columns that need not be there) as labels: the same in every format, see
    :mod:`workbench.core.cells`. ``also``: columns that are asked for and come back as they are. NaN is null. Other
    columns keep what the file says (csv and tsv: text). ``columns`` maps the name asked for to the name in the file.
    Where a required column is not there, it is taken from a published format that the file has, and ``tell`` is given
    a sentence that says so (:mod:`workbench.core.published_formats`). Rows of nothing but a text (txt, a JSON list of
    texts) go into the first required column (else ``text``). ``what`` is the word used for the file in errors
    ("needles"). Rows are counted from 1, without the header. Raises InputError naming the file and, where there is one,
    the row and the field.
    """
    path = existing(path, what=what)
    name = (columns or {}).get(required[0], required[0]) if required else "text"
    table = open_table(path, columns=columns, what=what, text_column=name)
    return asked(
        table, path, required=required, optional=optional, labels=labels, also=also, chosen=columns or {}, tell=tell
    )


def open_table(
    path: Path, *, columns: Mapping[str, str] | None = None, what: str = "data", text_column: str = "text"
) -> OpenTable:
    """The rows of a file that is there, with nothing asked of them but the names in ``columns``."""
    table = read_rows(path, what=what, text_column=text_column)
    if not table.frame.height:
        raise InputError(f"{path} has no rows; the {what} file needs at least one.")
    again = {name: table.nested[there] for name, there in (columns or {}).items() if there in table.nested}
    return OpenTable(rename(table.frame, columns or {}, path), {**table.nested, **again})


def asked(
    table: OpenTable,
    path: Path,
    *,
    required: Sequence[str] = (),
    optional: Sequence[str] = (),
    labels: Sequence[str] = (),
    also: Sequence[str] = (),
    chosen: Collection[str] = (),
    tell: Callable[[str], None] | None = None,
) -> pl.DataFrame:
    """The rows of an open file with the columns that are asked for, as :func:`read_table` says. ``chosen``: columns
    that the user has named, which no published format replaces."""
    more = [name for name in dict.fromkeys([*optional, *labels, *also]) if name not in required]
    found = fit(table.frame, path, required=required, optional=more, chosen=chosen)
    frame = found.frame
    if found.said and tell is not None:
        tell(f"{path.name}: {found.said}")
    for column in required:
        if column not in frame.columns:
            raise InputError(
                f"{path} has no column '{column}'{nearest(column, frame.columns)}; it has "
                f"{', '.join(frame.columns)}{headless(frame.columns)}."
            )
    for column in dict.fromkeys([*required, *optional, *labels]):
        if column in frame.columns:
            own = found.sources.get(column, (column,))
            _refuse_nested(table, own, path)
            read = label_column if column in labels else text_column
            series = frame[column].alias(" and ".join(own))  # errors name what the file has
            frame = frame.with_columns(read(series, str(path)).alias(column))
    for column in required:
        empty = frame[column].is_null() | (frame[column].str.strip_chars() == "")
        if empty.any():
            own = " and ".join(f"'{name}'" for name in found.sources.get(column, (column,)))
            raise InputError(f"{path}, row {empty.arg_true()[0] + 1}: the field {own} is empty.")
    return frame


def _refuse_nested(table: OpenTable, names: Sequence[str], path: Path) -> None:
    for name in names:
        if name in table.nested:
            raise InputError(
                f"{path}, row {table.nested[name]}: the field '{name}' must hold text, as in other rows, not a list or "
                f"an object."
            )


def read_text(path: str | Path, *, what: str = "text") -> str:
    """The whole text of a UTF-8 file (a byte-order mark is dropped), unpacked where it is packed; InputError for an
    empty or otherwise encoded file."""
    path = existing(path, what=what)
    return decoded(read_unpacked(path), path, what=what)


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
