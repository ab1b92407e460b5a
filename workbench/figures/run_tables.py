"""What a figure takes from a run, and the sentence a reader gets when it is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from workbench.core.errors import InputError
from workbench.core.wording import origin


def need(run: Any, table: str, columns: Sequence[str] = ()) -> pl.DataFrame:
    """The table of a run. Raises InputError where it is absent, empty or without one of the ``columns``."""
    frame = maybe(run, table)
    where = f"The run {identity(run)}"
    if frame is None:
        raise InputError(f"{where} has no table '{table}', from which this figure is drawn.")
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise InputError(f"The table '{table}' of the run {identity(run)} lacks the column '{missing[0]}'.")
    if frame.is_empty():
        raise InputError(f"{where} has an empty table '{table}': there is nothing to draw.")
    return frame


def maybe(run: Any, table: str, columns: Sequence[str] = ()) -> pl.DataFrame | None:
    """The table of a run, or None where the run has not made it (or not with these columns)."""
    names = list(run.tables() if callable(run.tables) else run.tables)
    if table not in names:
        return None
    frame = run.table(table)
    return frame if all(c in frame.columns for c in columns) else None


def identity(run: Any) -> str:
    """How messages name a run."""
    return str(getattr(run, "id", None) or (run.info or {}).get("id") or "without an id")


def finite(frame: pl.DataFrame, column: str, *, what: str) -> pl.DataFrame:
    """The rows in which a column is a finite number. Raises InputError when none is."""
    kept = frame.filter(pl.col(column).cast(pl.Float64).is_finite())
    if kept.is_empty():
        raise InputError(f"There is no {what} to draw: the column '{column}' holds no finite number.")
    return kept


def numbers(frame: pl.DataFrame, column: str) -> np.ndarray:
    """A column as float64, null as NaN; all NaN where the table has no such column."""
    if column not in frame.columns:
        return np.full(frame.height, np.nan)
    return frame[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def info(run: Any, *path: str, default: Any = None) -> Any:
    """A value of run.json; ``default`` where it is absent."""
    value: Any = run.info
    for key in path:
        if not isinstance(value, Mapping) or key not in value or value[key] is None:
            return default
        value = value[key]
    return value


def model_name(run: Any) -> str:
    """The name of the model as figures write it: the last part of a folder or hub id."""
    return str(info(run, "model", "name", default="model")).rstrip("/").rsplit("/", 1)[-1]


def source(run: Any) -> str:
    """Which weights a run is of, or where it was imported from."""
    imported = origin(run.info or {})
    return (
        f"imported from {imported}"
        if imported
        else f"weights {str(info(run, 'model', 'fingerprint', default=''))[:12]}"
    )


def summary_value(run: Any, key: str) -> float | None:
    """A number of the run's summary, whether it is kept plain or with its interval."""
    value = (run.summary or {}).get(key)
    if isinstance(value, Mapping):
        value = value.get("value")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def collect(run: Any, builders: Mapping[str, Callable[[Any], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """(figures, reasons): every figure that the run's tables allow, and why the others were not drawn."""
    figures: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, build in builders.items():
        try:
            figures[name] = build(run)
        except InputError as error:
            reasons[name] = str(error)
    return figures, reasons


def drawn(run: Any, builders: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """The figures of :func:`collect`. Raises InputError when there is none, with the first reason."""
    figures, reasons = collect(run, builders)
    if not figures:
        raise InputError(next(iter(reasons.values()), f"The run {identity(run)} has no figures."))
    return figures
