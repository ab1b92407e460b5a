"""What runs say of the layers: the columns that their probes declare as courses over the layers (`layer_curves`)."""

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


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """What a run says of one thing over the layers. ``of``: what it is of (a concept, a checkpoint), from the keys of
    its rows. ``ends``: of the interval at each layer, None where there is none."""

    column: str
    of: str
    run: Run
    layers: tuple[int, ...]
    values: tuple[Any, ...]
    ends: tuple[tuple[float, float] | None, ...]

    def at(self, layer: int) -> tuple[Any, tuple[float, float] | None]:
        """The value and the interval at a layer; None for a layer that it says nothing of."""
        i = self.layers.index(layer) if layer in self.layers else None
        return (None, None) if i is None else (self.values[i], self.ends[i])


def curves(
    runs: Sequence[Run], *, fingerprint: str | None = None, read: Callable[[Run, str], pl.DataFrame] = Run.table
) -> list[LayerCurve]:
    """What the complete runs of this very model found over the layers, in the order of the runs; of a run the newest
    checkpoint first. A table that cannot be read is left out."""
    found = []
    for run in runs_of(runs, fingerprint=fingerprint):
        for table in tables_with_curves(run):
            try:
                frame = read(run, table)
            except InputError:
                continue
            if "layer" in frame.columns and frame["layer"].dtype.is_integer():
                found += _curves(run, table, frame.filter(pl.col("layer").is_not_null()))
    return found


def as_table(found: Sequence[LayerCurve]) -> pl.DataFrame:
    """The curves as rows: run, probe, column, of, layer, value (Float64), ci_low, ci_high."""
    rows = [
        (curve.run.id, curve.run.probe, curve.column, curve.of, layer, value, *(ends or (None, None)))
        for curve in found
        for layer, value, ends in zip(curve.layers, curve.values, curve.ends)
    ]
    schema = {name: pl.String for name in ("run", "probe", "column", "of")} | {"layer": pl.Int64}
    schema |= {name: pl.Float64 for name in ("value", *INTERVAL)}
    return pl.DataFrame(rows, schema=schema, orient="row", strict=False)


def probes_with_curves() -> list[str]:
    """The titles of the probes that say something about layers."""
    usable = [registry.get(name) for name in registry.names() if registry.problem(name) is None]
    return [probe.title for probe in usable if probe.layer_curves]


def tables_with_curves(run: Run) -> list[str]:
    """The tables of a run that say something about layers."""
    probe = probe_of(run)
    declared = (GUESSED,) if probe is None else tuple(probe.layer_curves)
    return [name for name in declared if name in run.tables]


def _curves(run: Run, table: str, frame: pl.DataFrame) -> list[LayerCurve]:
    probe = probe_of(run)
    if probe is None:  # names are words, what was measured are floating-point numbers
        keys = [c for c in frame.columns if frame[c].dtype == pl.String]
        columns = [c for c in frame.columns if frame[c].dtype.is_float() and not c.endswith(("_low", "_high"))][:4]
    else:
        keys = [c for c in probe.keys.get(table, ()) if c != "layer" and c in frame.columns]
        columns = [c for c in probe.layer_curves[table] if c in frame.columns]
    parts = frame.partition_by(keys, maintain_order=True) if keys else [frame]
    found = []
    for part in _newest_first(parts):
        part = part.sort("layer", maintain_order=True)
        of = " · ".join(str(part[c][0]) for c in keys if part[c][0] is not None)
        layers = tuple(part["layer"].to_list())
        for column in columns:
            mine = column == columns[0] and set(INTERVAL) <= set(part.columns)
            pairs = part.select(INTERVAL).iter_rows() if mine else [(None, None)] * len(layers)
            ends = tuple(None if None in pair else pair for pair in pairs)
            found.append(LayerCurve(column, of, run, layers, tuple(part[column].to_list()), ends))
    return found


def _newest_first(parts: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """Checkpoints from the last one back, by their step where they have one; whatever is no checkpoint as it is."""
    if not parts or "checkpoint" not in parts[0].columns:
        return parts
    late = parts[::-1]
    if "step" not in parts[0].columns:
        return late
    return sorted(late, key=lambda part: -1 if part["step"][0] is None else part["step"][0], reverse=True)
