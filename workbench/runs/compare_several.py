"""More than two runs of a probe: what differs between them, how alike they rank the same rows, the ranks of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from workbench.core.errors import InputError
from workbench.core.wording import cut, significant
from workbench.runs.comparable import comparable
from workbench.runs.compare import check_same_probe, joined, model_name_of, settings_apart
from workbench.runs.folder import Run, open_run

LEAST = 3  # rows that a rank correlation needs


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's rho of every pair of runs over the rows that both have. ``rho`` [i][j]: None where it is not defined,
    1 for a run with itself; ``rows`` [i][j]: how many rows it rests on; ``not_compared``: why it is not defined, a
    sentence for each pair."""

    rho: list[list[float | None]]
    rows: list[list[int]]
    not_compared: list[str]


def compare_several(runs: Sequence[Run | str | Path]) -> dict[str, Any]:
    """What runs of one probe have in common and where they differ, as plain data.

    ``runs``: id, model, folder of each. ``settings``: what differs between them, a value for each. ``tables``: of each
    table that all have, per column of floating-point numbers ``means`` (one for each run, over its finite values),
    ``spearman`` and ``rows`` (matrices, see :class:`RankAgreement`) and ``not_compared``. InputError for fewer than two
    runs, one that is named twice, different probes, and no table in common."""
    found = check_several([open_run(run) for run in runs])
    tables = {}
    for name in shared_tables(found):
        columns = {}
        for column in measured(found, name):
            agreement = rank_agreement(found, name, column)
            columns[column] = {
                "means": [_mean(run.table(name)[column]) for run in found],
                "spearman": agreement.rho,
                "rows": agreement.rows,
                "not_compared": agreement.not_compared,
            }
        tables[name] = {"columns": columns}
    return {
        "probe": found[0].probe,
        "runs": [{"id": run.id, "model": model_name_of(run), "folder": str(run.folder)} for run in found],
        "settings": settings_apart([run.info for run in found]),
        "tables": tables,
    }


def check_several(runs: Sequence[Run]) -> list[Run]:
    """The runs; InputError for what cannot be held against each other at all."""
    if len(runs) < 2:
        raise InputError("Comparing needs at least two runs.")
    for run in runs[1:]:
        check_same_probe(runs[0], run)
    twice = [run.id for i, run in enumerate(runs) if run.folder in [other.folder for other in runs[:i]]]
    if twice:
        raise InputError(f"The run {twice[0]} is named twice; name each run once.")
    if not shared_tables(runs):
        raise InputError(f"The runs {', '.join(run.id for run in runs)} have no table in common.")
    return list(runs)


def shared_tables(runs: Sequence[Run]) -> list[str]:
    """The tables that all of the runs have."""
    return [name for name in runs[0].tables if all(name in run.tables for run in runs)]


def measured(runs: Sequence[Run], table: str) -> list[str]:
    """The columns of a table that are floating-point numbers in every run, but for the ends of intervals."""
    schemas = [run.table(table).schema for run in runs]
    return [
        name
        for name in schemas[0]
        if all(name in schema and schema[name].is_float() for schema in schemas)
        and not name.endswith(("_low", "_high"))
    ]


def rank_agreement(runs: Sequence[Run], table: str, column: str) -> RankAgreement:
    """How alike the runs rank the rows of a table by a column of numbers."""
    count = len(runs)
    rho: list[list[float | None]] = [[1.0 if i == j else None for j in range(count)] for i in range(count)]
    rows = [[_finite(run.table(table)[column]) if i == j else 0 for j in range(count)] for i, run in enumerate(runs)]
    said = []
    for i, j in combinations(range(count), 2):
        try:
            x, y = _pair(runs[i], runs[j], table, column)
            value = spearman_of(x, y)
        except InputError as error:
            said.append(f"{runs[i].id} and {runs[j].id}: {str(error).rstrip('.')}.")
            continue
        rho[i][j] = rho[j][i] = value
        rows[i][j] = rows[j][i] = len(x)
    return RankAgreement(rho, rows, said)


def head_ranks(runs: Sequence[Run], table: str, column: str) -> pl.DataFrame:
    """Heads by their ranks in the runs, the best mean rank first: layer, head, one column per run id (1 is the highest
    value, equal values share the mean of their ranks), mean_rank. Heads that every run has a finite value for.

    Raises InputError where models have different shapes."""
    whole = None
    for run in runs:
        _check_shapes(runs[0], run, run.table(table).columns)
        frame = run.table(table).select("layer", "head", pl.col(column).cast(pl.Float64).alias(run.id))
        frame = frame.filter(pl.col(run.id).is_finite())
        whole = frame if whole is None else whole.join(frame, on=["layer", "head"], maintain_order="left")
    assert whole is not None
    ids = [run.id for run in runs]
    ranks = whole.with_columns(pl.col(name).rank("average", descending=True) for name in ids)
    return ranks.with_columns(pl.mean_horizontal(ids).alias("mean_rank")).sort("mean_rank", "layer", "head")


def spearman_of(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho of x and y [n], finite; ties at their mean rank. InputError where it is not defined."""
    if len(x) < LEAST:
        raise InputError(f"they have {len(x)} rows in common, and {LEAST} are needed")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError("the column is constant in one of them")
    ranks = [pl.Series(values).rank("average").to_numpy() for values in (x, y)]
    return float(np.clip(np.corrcoef(*ranks)[0, 1], -1, 1))


def lines_of_several(found: dict[str, Any]) -> list[str]:
    """The comparison as text."""
    names = [f"[{i}]" for i in range(1, len(found["runs"]) + 1)]
    out = [f"{name} {run['id']}  {run['model']}" for name, run in zip(names, found["runs"])]
    out += [
        f"differs in {key}: " + " | ".join(cut(value, 30) for value in values)
        for key, values in found["settings"].items()
    ]
    for table, entry in found["tables"].items():
        out += ["", table]
        for column, said in entry["columns"].items():
            out.append(f"  {column}: mean " + ", ".join(significant(value) for value in said["means"]))
            pairs = [
                f"{names[i]}{names[j]} {said['spearman'][i][j]:.3f}"
                for i, j in combinations(range(len(names)), 2)
                if said["spearman"][i][j] is not None
            ]
            out += [f"    spearman {', '.join(pairs)}"] if pairs else []
            out += [f"    not compared, {reason}" for reason in said["not_compared"]]
    return out


def _pair(one: Run, two: Run, table: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of the rows that both runs have, where both are finite."""
    _check_shapes(one, two, one.table(table).columns)
    said = comparable(one, two)
    if column in said.apart.get(table, ()):
        raise InputError(said.reason or f"'{column}' is not of one measure in them")
    both = joined(one, two, table)
    if f"{column}_first" not in both.columns:
        raise InputError(f"'{column}' tells their rows apart")
    x, y = (both[f"{column}{end}"].cast(pl.Float64).to_numpy() for end in ("_first", "_second"))
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good]


def _check_shapes(one: Run, two: Run, columns: Sequence[str]) -> None:
    """Heads of models of different shapes have only their numbers in common."""
    if not {"layer", "head"} <= set(columns):
        return
    shapes = [(run.of("model", "layers"), run.of("model", "heads")) for run in (one, two)]
    if shapes[0] != shapes[1]:
        (a, b), (c, d) = shapes
        raise InputError(f"the models have different shapes ({a} × {b} and {c} × {d} layers × heads)")


def _mean(values: pl.Series) -> float | None:
    found = values.cast(pl.Float64).to_numpy()
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else None


def _finite(values: pl.Series) -> int:
    return int(np.isfinite(values.cast(pl.Float64).to_numpy()).sum())
