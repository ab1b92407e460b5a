"""Curves of the branching factor along the output as others publish them: tables with a row for each position, such as
the official `stitched_bf.csv` (model, series, x, bf), or the table `positions` of a run here written as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

from workbench.core.errors import InputError
from workbench.core.numbers_in_tables import column_for, number_column, whole_number_of
from workbench.core.wording import cut
from workbench.runs.imported import ImportedResult, PublishedFile

# what a field may be called in a file whose columns nobody has named
NAMES = {
    "position": ("position", "x", "pos", "output_position", "token_position", "step"),
    "bf": ("bf", "bf_prefix", "branching_factor"),
    "series": ("series", "condition", "curve"),
    "model": ("model", "model_name"),
}
# columns of `positions` that are read under their own names where the file has them
OWN = (
    "bf_window",
    "bf_cohort",
    "entropy",
    "alive",
    "ci_low",
    "ci_high",
    "window_low",
    "window_high",
    "cohort_low",
    "cohort_high",
)
COUNTS = ("prompts", "prefix_prompts", "cohort_prompts", "alive_samples")
SERIES = "published"  # of a file that has one curve and no name for it


def read(file: PublishedFile) -> ImportedResult | None:
    """``positions`` of such a file; None for one without a column of positions and one of branching factors.

    What the file does not say is null. Raises InputError for a cell that is no number, a factor below 1, a position
    that a curve has twice, and a file of several models of which none was named."""
    frame = file.table
    if frame is None or not file.names_only((*NAMES, *OWN, *COUNTS)):
        if file.expected and frame is None:
            raise InputError(f"{file.path} is no table; curves of the branching factor are csv, tsv or parquet.")
        return None
    named, there = dict(file.columns), frame.columns
    if not file.expected and not named and not _looks_like(there):
        return None
    place = {field: column_for(field, names, there, named, file.path) for field, names in NAMES.items()}
    missing = [field for field in ("position", "bf") if place[field] is None]
    if missing:
        if not file.expected:
            return None
        raise InputError(
            f"{file.path} has no column that is known to hold the {missing[0]} (its columns are "
            f"{cut(', '.join(there), 200)}); name it with --columns {missing[0]}:COLUMN."
        )
    frame, model, warnings, chosen = _of_one_model(frame, place["model"], file)
    table = _positions(frame, place, named, file)
    if place["bf"] != "bf_prefix":
        warnings.append(
            f"The column '{place['bf']}' was read as the branching factor of everything up to a position (bf_prefix), "
            f"as the official curves are."
        )
    return ImportedResult(
        tables={"positions": table},
        summary=_summary(table),
        model={"name": model} if model else {},
        warnings=tuple(warnings),
        chosen=chosen,
    )


def _looks_like(there: Sequence[str]) -> bool:
    plain = {column.strip().lower().replace(" ", "_") for column in there}
    return all(plain & set(NAMES[field]) for field in ("position", "bf"))


def _of_one_model(
    frame: pl.DataFrame, column: str | None, file: PublishedFile
) -> tuple[pl.DataFrame, str | None, list[str], dict[str, str]]:
    """(the rows of one model, its name in the file, warnings, what was chosen). Raises InputError where there are
    several models and none of them is the one that was named."""
    if column is None:
        return frame, None, [], {}
    names = [str(name) for name in frame[column].drop_nulls().unique(maintain_order=True).to_list()]
    if frame[column].null_count():
        row = frame[column].is_null().arg_true()[0] + 1
        raise InputError(f"{file.path}, row {row}: the field '{column}' is empty, and names the model.")
    if len(names) == 1:
        other = file.model is not None and _plain(file.model) != _plain(names[0])
        said = f"The file calls the model {names[0]}, not {file.model}."
        return frame, names[0], [said] if other else [], {}
    found = [name for name in names if file.model is not None and _plain(file.model) == _plain(name)]
    if len(found) != 1:
        asked = f" and none of them is {file.model}" if file.model is not None and not found else ""
        raise InputError(
            f"{file.path} holds curves of {len(names)} models ({cut(', '.join(names), 200)}){asked}; choose one with "
            f"--model."
        )
    kept = frame.with_row_index("row in the file", offset=1).filter(pl.col(column).cast(pl.String) == found[0])
    return kept, found[0], [], {"model": found[0]}


def _plain(name: str) -> str:
    """A model's name without its owner."""
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _positions(
    frame: pl.DataFrame, place: dict[str, str | None], named: dict[str, str], file: PublishedFile
) -> pl.DataFrame:
    position, bf, series = place["position"], place["bf"], place["series"]
    assert position is not None and bf is not None
    rows = frame["row in the file"].to_list() if "row in the file" in frame.columns else range(1, frame.height + 1)
    at = [whole_number_of(v, where=f"{file.path}, row {r}", field=position) for r, v in zip(rows, frame[position])]
    # our own curves are corrected for the bias of few samples and may end a little below 1, or have no value at all
    ours = bf == "bf_prefix"
    factor = number_column(frame, bf, file.path, low=0 if ours else 1 - 1e-6, empty=ours)
    conditions = [SERIES] * frame.height if series is None else frame[series].cast(pl.String).to_list()
    if None in conditions:
        raise InputError(f"{file.path}, row {rows[conditions.index(None)]}: the field '{series}' is empty.")
    seen: set[tuple[str, int]] = set()
    for row, key in zip(rows, zip(conditions, at)):
        if key in seen:
            raise InputError(
                f"{file.path}, row {row}: the curve '{key[0]}' has the position {key[1]} twice; where the file has "
                f"several curves, name the column that tells them apart with --columns series:COLUMN."
            )
        seen.add(key)
    columns: dict[str, object] = {"condition": conditions, "position": at, "bf_prefix": factor}
    taken = {position, bf, series, place["model"]}
    for name in (*OWN, *COUNTS):
        column = column_for(name, (name,), frame.columns, named, file.path)
        there = column is not None and column not in taken
        low = 0.0 if name == "alive" or name in COUNTS else -math.inf
        empty = [None] * len(at)
        columns[name] = number_column(frame, column, file.path, low=low, empty=True) if there and column else empty
    schema = {"condition": pl.String, "position": pl.Int64} | dict.fromkeys(("bf_prefix", *OWN, *COUNTS), pl.Float64)
    table = pl.DataFrame(columns, schema_overrides=schema)
    return (
        table.with_columns(pl.col(*COUNTS).round().cast(pl.Int64))
        .sort("position", maintain_order=True)
        .sort(
            pl.col("condition").replace_strict({name: k for k, name in enumerate(dict.fromkeys(conditions))}),
            maintain_order=True,
        )
    )


def _summary(table: pl.DataFrame) -> dict:
    """Where each curve begins and ends."""
    out: dict[str, object] = {"curves": table["condition"].n_unique()}
    for name in table["condition"].unique(maintain_order=True).to_list():
        own = table.filter(pl.col("condition") == name).drop_nulls("bf_prefix")
        for row in (own.row(0, named=True), own.row(-1, named=True)) if own.height else ():
            out[f"bf of {name} at {row['position']}"] = row["bf_prefix"]
    return out
