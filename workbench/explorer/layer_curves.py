"""What runs say of one layer: the columns that their probes declare as courses over the layers (`layer_curves`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from workbench.core import registry
from workbench.core.errors import InputError
from workbench.explorer.head_sets import INTERVAL, probe_of, runs_of
from workbench.runs.folder import Run

GUESSED = "layers"  # the table that a probe that is not installed here may have
MOST = 12  # rows of one run


@dataclass(frozen=True)
class Point:
    """``of``: what the value is of (a concept, a checkpoint), from the keys of its row. ``interval``: its ends, where
    it has one."""

    column: str
    of: str
    value: Any
    interval: tuple[float, float] | None
    run: Run


def at_layer(
    runs: Sequence[Run],
    layer: int,
    *,
    fingerprint: str | None = None,
    read: Callable[[Run, str], pl.DataFrame] = Run.table,
) -> list[Point]:
    """What the complete runs of this very model found at a layer. A table that cannot be read is left out."""
    found = []
    for run in runs_of(runs, fingerprint=fingerprint):
        for table in _tables(run):
            try:
                frame = read(run, table)
            except InputError:
                continue
            if "layer" in frame.columns:
                found += _points(run, table, frame.filter(pl.col("layer") == layer).head(MOST))
    return found


def probes_with_curves() -> list[str]:
    """The titles of the probes that say something about layers."""
    usable = [registry.get(name) for name in registry.names() if registry.problem(name) is None]
    return [probe.title for probe in usable if probe.layer_curves]


def _tables(run: Run) -> list[str]:
    probe = probe_of(run)
    declared = (GUESSED,) if probe is None else tuple(probe.layer_curves)
    return [name for name in declared if name in run.tables]


def _points(run: Run, table: str, rows: pl.DataFrame) -> list[Point]:
    probe = probe_of(run)
    if probe is None:  # names are words, what was measured are floating-point numbers
        keys = [c for c in rows.columns if rows[c].dtype == pl.String]
        columns = [c for c in rows.columns if rows[c].dtype.is_float() and not c.endswith(("_low", "_high"))][:4]
    else:
        keys = [c for c in probe.keys.get(table, ()) if c != "layer"]
        columns = list(probe.layer_curves[table])
    found = []
    for record in rows.iter_rows(named=True):
        of = " · ".join(str(record[c]) for c in keys if record.get(c) is not None)
        ends = (record.get(INTERVAL[0]), record.get(INTERVAL[1]))
        for column in columns:
            if column in record:
                interval = ends if column == columns[0] and None not in ends else None
                found.append(Point(column, of, record[column], interval, run))
    return found
