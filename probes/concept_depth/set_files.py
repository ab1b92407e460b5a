"""What stands in the file of a concept set: texts, labels, and what else belongs to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from probes.concept_depth.published_sets import STSA, PublishedSet, recognised
from workbench.core.cells import cell_text, label_column, text_column
from workbench.core.errors import InputError
from workbench.core.json_text import parse_json
from workbench.core.nearest_name import nearest
from workbench.core.packed_files import bare_name
from workbench.core.tables import existing, open_table, read_text

_NESTED = (pl.Struct, pl.List, pl.Array, pl.Object)
LABELLED_LINES = (".train", ".dev", ".test", ".txt")  # a label and a text in each line


def read_set(path: Path, columns: Mapping[str, str]) -> tuple[pl.DataFrame, PublishedSet | None]:
    """The table of a file with the columns text, label and perhaps group, answer (all as text), and those that it has
    besides; which of the published sets it is, if any.

    `columns`: the name of any of the four in the file, with dots for a part of a nested one. Raises InputError naming
    file, row and field for a column that is not there, an empty field, and a nested one of which no part is named."""
    nested: Mapping[str, int] = {}
    if _is_labelled_lines(path):
        frame, published = _labelled_lines(path)
    else:
        table = open_table(existing(path, what="concept"), what="concept")
        frame, nested = table.frame, table.nested
        published = None if {"text", "label"} & columns.keys() else recognised(path, frame)
    names = {"text": "text" if "text" in frame.columns else "statement", "label": "label"}
    if published is not None:
        names = {"text": published.text, "label": published.label}
    names |= {name: name for name in ("group", "answer") if name in frame.columns and name not in names.values()}
    names |= columns
    if "text" not in columns and names["text"] == "statement" and "statement" not in frame.columns:
        names["text"] = "text"  # the name to miss
    if (there := next((there for there in names.values() if there in nested), None)) is not None:
        raise InputError(
            f"{path}, row {nested[there]}: the field '{there}' must hold text, as in other rows, not a list or an "
            f"object."
        )
    read = {name: _column(frame, there, name, path) for name, there in names.items()}
    if published is not None and published.evidence:
        read["text"] = _with_evidence(read["text"], text_column(frame[published.evidence], str(path)))
    if published is not None and published.labels:
        read["label"] = _renamed(read["label"], published, path)
    used = {*read, *names.values(), *(published.columns if published is not None and published.evidence else ())}
    return frame.drop(*used, strict=False).with_columns(**read), published


def _is_labelled_lines(path: Path) -> bool:
    """Whether each line is a label and a text: by the name, unless it begins as JSON does."""
    named = Path(bare_name(path)).suffix.lower() in LABELLED_LINES
    return named and read_text(path, what="concept").lstrip()[:1] not in ("{", "[")


def _labelled_lines(path: Path) -> tuple[pl.DataFrame, PublishedSet | None]:
    lines = [line.rstrip("\r") for line in read_text(path, what="concept").split("\n")]
    rows = [(number, re.fullmatch(r"(\S+)\s+(.*\S)\s*", line)) for number, line in enumerate(lines, 1) if line.strip()]
    bad = next((number for number, match in rows if match is None or not re.fullmatch(r"-?\d+", match[1])), None)
    if bad is not None:
        raise InputError(f"{path}, line {bad}: a line must be a label and a text, as in '1 a stirring film'.")
    frame = pl.DataFrame({"text": [m[2] for _, m in rows], "label": [m[1] for _, m in rows]})  # pyright: ignore
    name = Path(bare_name(path))
    reviews = name.suffix.lower() != ".txt" or name.stem.lower().startswith(("sst", "stsa"))
    return frame, STSA if reviews else None


def _column(frame: pl.DataFrame, there: str, name: str, path: Path) -> pl.Series:
    """A column of the file as text (text, answer) or as labels (label, group)."""
    series = _part(frame, there, name, path).alias(there)
    series = (label_column if name in ("label", "group") else text_column)(series, str(path))
    if name != "answer":
        empty = series.is_null() | (series.str.strip_chars() == "")
        if empty.any():
            raise InputError(f"{path}, row {empty.arg_true()[0] + 1}: the field '{there}' is empty.")
    return series


def _part(frame: pl.DataFrame, there: str, name: str, path: Path) -> pl.Series:
    """A column, or the part of a nested one that is named with dots."""
    head, *parts = (there,) if there in frame.columns else there.split(".")
    if head not in frame.columns:
        raise InputError(
            f"{path} has no column '{head}'{nearest(head, frame.columns)}; it has {', '.join(frame.columns)}. Say "
            f"which one is meant with columns={name}:NAME."
        )
    series = frame[head]
    if not parts and not isinstance(series.dtype, _NESTED):
        return series
    words = []
    for row, value in enumerate(series.to_list(), 1):
        for part in parts:
            value = _inside(value, part, f"{path}, row {row}: the field '{there}'")
        if isinstance(value, list) and len(value) == 1:  # an answer in a list of its own
            value = value[0]
        if isinstance(value, list | dict):
            some = f"its parts {', '.join(value)}" if isinstance(value, dict) else "one text in place of a list"
            raise InputError(
                f"{path}, row {row}: the field '{there}' is nested; name one of {some}, as in "
                f"columns={name}:{there}.PART."
            )
        words.append(cell_text(value))
    return pl.Series(there, words, dtype=pl.String)


def _inside(value: Any, part: str, where: str) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "["):
        value = parse_json(value, where)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or part not in value:
        has = f"it has {', '.join(value)}" if isinstance(value, dict) else "it is not nested so"
        raise InputError(f"{where} has no part '{part}'; {has}.")
    return value[part]


def _with_evidence(text: pl.Series, evidence: pl.Series) -> pl.Series:
    """Each text followed by its evidence, without the answer that this begins with: not closed-book."""
    cut = [
        re.sub(r"^(Yes|No)\.", "", line).strip() if line.startswith(("Yes.", "No.")) else line
        for line in evidence.fill_null("").to_list()
    ]
    return pl.Series("text", [f"{a} {b}" for a, b in zip(text.to_list(), cut)])


def _renamed(labels: pl.Series, published: PublishedSet, path: Path) -> pl.Series:
    found = []
    for row, label in enumerate(labels.to_list(), 1):
        if label.lower() not in published.labels:
            raise InputError(
                f"{path}, row {row}: the field '{published.label}' must be one of {', '.join(published.labels)} in a "
                f"{published.name} file, not '{label}'."
            )
        found.append(published.labels[label.lower()])
    return pl.Series("label", found)
