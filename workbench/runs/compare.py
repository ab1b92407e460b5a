"""Two runs of the same probe side by side: tables joined on their keys, differences, correlations with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from workbench.core import registry
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.wording import cut, origin, significant
from workbench.runs.comparable import Comparable, comparable
from workbench.runs.folder import Run, open_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.stats.intervals import Estimate

# Columns that say where in a model, a text or a training a row was measured: no correlation of theirs says anything.
_PLACES = ("layer", "head", "position", "depth", "step")
_NAMES = ("checkpoint", "step", "model")  # what a table calls the model itself
_SUFFIXES = ("_first", "_second")
_MOST_DRAWS, _LEAST_DRAWS, _WORK = 1000, 100, 20_000_000


def compare(first: Run | str | Path, second: Run | str | Path) -> dict[str, Any]:
    """What two runs (or their folders, or ids) have in common and where they differ, as plain data.

    ``settings``: what differs between them (model, seed, config keys). ``tables``: per table its ``keys``, the numbers
    of rows ``matched``, ``only_first``, ``only_second``, and per column ``mean_first``, ``mean_second``,
    ``mean_difference`` (second minus first), ``max_abs_difference``, ``n``, and, for floating-point columns that are
    neither keys nor ends of an interval, ``pearson`` and ``spearman`` with bootstrap intervals over the rows; for
    columns of text or lists, ``equal``: the share of equal values. What the probe says is not of one measure in the two
    runs has no column: ``not_compared`` (the reason, or None) and, in a table, ``apart`` (the columns) say so;
    ``headline`` is what the probe can say of both.
    """
    first, second = open_run(first), open_run(second)
    check_same_probe(first, second)
    shared = [name for name in first.tables if name in second.tables]
    if not shared:
        raise InputError(
            f"The runs {first.id} and {second.id} have no table in common ({first.status}, {second.status})."
        )
    said = comparable(first, second)
    return {
        "first": {"id": first.id, "model": model_name_of(first), "folder": str(first.folder)},
        "second": {"id": second.id, "model": model_name_of(second), "folder": str(second.folder)},
        "probe": first.probe,
        "settings": settings_apart([first.info, second.info]),
        "not_compared": said.reason or None,
        "headline": {name: _estimate(found) for name, found in said.headline.items()},
        "tables": {name: _compare_tables(first, second, name, said) for name in shared},
    }


def joined(first: Run, second: Run, table: str) -> pl.DataFrame:
    """The rows that both runs have: keys, then ``x_first``, ``x_second`` and, for numbers, ``x_difference`` (second
    minus first) of every column x that both have."""
    check_same_probe(first, second)
    said = comparable(first, second)
    both = _join(first.table(table), second.table(table), _declared_keys(first.probe, table), said.names)[0]
    return both.drop([f"{name}_difference" for name in said.apart.get(table, ())], strict=False)


def check_same_probe(first: Run, second: Run) -> None:
    if first.probe != second.probe:
        raise InputError(f"{first.id} and {second.id} are runs of different probes, {first.probe} and {second.probe}.")


def key_columns(
    one: pl.DataFrame, two: pl.DataFrame, declared: Sequence[str] = (), *, names: Sequence[str] = ()
) -> list[str]:
    """The columns that identify a row in both tables: the declared ones if they do, else what stands left of the first
    measured (floating-point) column. None for two tables of one row each that differ in their names only. InputError if
    nothing identifies the rows. ``names``: columns that may be a name of the model, as `checkpoint` may."""
    shared = [name for name in one.columns if name in two.columns]
    usable = [name for name in shared if not one[name].dtype.is_nested()]
    said = _without_names(one, two, [name for name in usable if name in declared], names)
    if said and _unique(one, two, said):
        return _spoken_of(one, two, said)
    if one.height == two.height == 1:
        return []
    measured = next((k for k, name in enumerate(shared) if one[name].dtype.is_float()), len(shared))
    left = _without_names(one, two, [name for name in usable if shared.index(name) < measured], names)
    if left and _unique(one, two, left):
        return left
    raise InputError(f"its rows cannot be told apart by {', '.join(left or said) or 'any known key column'}")


def _spoken_of(one: pl.DataFrame, two: pl.DataFrame, keys: list[str]) -> list[str]:
    """The keys but one of which one of the tables says nothing at all (a published list of features has no target): its
    rows are held against all of the other's that agree in the rest."""
    for blank, full in ((one, two), (two, one)):
        silent = [key for key in keys if blank.height and blank[key].null_count() == blank.height]
        rest = [key for key in keys if key not in silent]
        if silent and rest and any(full[key].null_count() < full.height for key in silent):
            if not blank.select(rest).is_duplicated().any():
                return rest
    return keys


def _without_names(one: pl.DataFrame, two: pl.DataFrame, keys: list[str], more: Sequence[str] = ()) -> list[str]:
    """The keys but a `checkpoint` that is one here and another one there: it names the model and must not keep its rows
    apart."""
    naming = [
        name
        for name in (*_NAMES, *more)
        if name in keys and one[name].n_unique() == two[name].n_unique() == 1 and one[name][0] != two[name][0]
    ]
    return [name for name in keys if name not in naming]


def _unique(one: pl.DataFrame, two: pl.DataFrame, keys: list[str]) -> bool:
    if not keys:
        return one.height == two.height == 1
    return not any(frame.select(keys).is_duplicated().any() for frame in (one, two))


def lines(found: dict[str, Any]) -> list[str]:
    """The comparison as text."""
    out = [
        f"first:  {found['first']['id']}  {found['first']['model']}",
        f"second: {found['second']['id']}  {found['second']['model']}",
    ]
    out += [
        f"differs in {name}: {cut(values[0], 60)} | {cut(values[1], 60)}" for name, values in found["settings"].items()
    ]
    out += [f"{name}: {_in_words(value)}" for name, value in found["headline"].items()]
    out += ["", found["not_compared"]] if found["not_compared"] else []
    known = False  # whether a correlation has an interval
    for name, table in found["tables"].items():
        if "problem" in table:
            out += ["", f"{name}: not compared, {table['problem']}"]
            continue
        extra = "".join(
            f", {table[key]} {key.replace('_', ' in ')}" for key in ("only_first", "only_second") if table[key]
        )
        how = f"rows matched on {', '.join(table['keys'])}" if table["keys"] else "row each"
        if not table["matched"]:
            out += ["", f"{name}: no {how}{extra}" if extra else f"{name}: no rows"]
            continue
        out += ["", f"{name}: {table['matched']} {how}{extra}"]
        for column, entry in table["columns"].items():
            if "equal" in entry:
                out.append(f"  {column}: {entry['equal']:.1%} equal")
                continue
            text = f"  {column}: {significant(entry['mean_first'])} -> {significant(entry['mean_second'])}"
            apart, most = significant(entry["mean_difference"]), significant(entry["max_abs_difference"])
            text += f" (difference {apart}, at most {most})"
            for kind in ("pearson", "spearman"):
                known = known or bool(entry.get(kind) and entry[kind]["low"] is not None)
                if entry.get(kind) is not None and entry[kind]["value"] is not None:
                    low, high = entry[kind]["low"], entry[kind]["high"]
                    text += f", {kind} {entry[kind]['value']:.3f}" + (
                        f" [{low:.3f}, {high:.3f}]" if low is not None else ""
                    )
            out.append(text)
        if table["apart"]:
            out.append(f"  not compared: {', '.join(table['apart'])}")
    if known:
        out += ["", "Intervals of correlations resample the rows of a table (heads, layers), not what was measured on."]
    return out


def _in_words(found: dict[str, Any]) -> str:
    """An estimate with its interval and what it rests on."""
    ends = f" [{significant(found['low'])}, {significant(found['high'])}]" if found["low"] is not None else ""
    return f"{significant(found['value'])}{ends}, n {found['n']}"


def _estimate(found: Estimate) -> dict[str, Any]:
    """As plain data, None for what is not defined."""
    values = found.as_dict().items()
    return {"low": None, "high": None} | {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in values}


def settings_apart(infos: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """What runs (by their run.json) were asked that differs, one value for each; where some were imported, as far as
    all say it."""
    flat = [
        {
            "imported": origin(info) or None,
            "model": _model_in_words(info.get("model") or {}),
            "dtype": (info.get("model") or {}).get("dtype"),
            "data": (info.get("data") or {}).get("fingerprint"),
            "seed": info.get("seed"),
            "engine": info.get("engine"),
            "edits": info.get("edits"),
            **{f"config {key}": value for key, value in (info.get("config") or {}).items()},
        }
        for info in infos
    ]
    values = {key: [said.get(key) for said in flat] for key in dict.fromkeys(key for said in flat for key in said)}
    found = {key: found for key, found in values.items() if any(value != found[0] for value in found)}
    if not any(said["imported"] for said in flat):
        return found
    return {key: values for key, values in found.items() if key == "imported" or None not in values}


def model_name_of(run: Run) -> str:
    return run.of("model", "name", default="an unnamed model")


def _model_in_words(about: dict[str, Any]) -> str:
    """The name of a model and the beginning of the hash of its weights, where they are known."""
    weights = str(about.get("fingerprint") or "weights unknown")[:15]
    return f"{about.get('name') or 'an unnamed model'} ({weights[:8] if about.get('fingerprint') else weights})"


def _declared_keys(probe: str, table: str) -> tuple[str, ...]:
    try:
        return registry.get(probe).keys.get(table, ())
    except WorkbenchError:  # a run of a probe that is not installed here can still be compared
        return ()


def _compare_tables(first: Run, second: Run, name: str, said: Comparable) -> dict[str, Any]:
    one, two = first.table(name), second.table(name)
    try:
        both, keys, values = _join(one, two, _declared_keys(first.probe, name), said.names)
    except InputError as error:
        return {"problem": str(error)}
    columns, apart = {}, [column for column in values if column in said.apart.get(name, ())]
    for column in [column for column in values if column not in apart]:
        a, b = (both[column + suffix] for suffix in _SUFFIXES)
        if f"{column}_difference" not in both.columns:
            columns[column] = _equality(a, b)
            continue
        # counts and addresses are numbers too; only what was measured agrees or does not, and the ends of its interval
        # say nothing more
        measured = (
            a.dtype.is_float()
            and b.dtype.is_float()
            and column not in _PLACES
            and not column.endswith(("_low", "_high"))
        )
        columns[column] = _numbers(a, b, correlated=measured)
    return {
        "keys": keys,
        "matched": both.height,
        "only_first": one.height - _rows_in(both, one, keys),
        "only_second": two.height - _rows_in(both, two, keys),
        "columns": columns,
        "apart": apart,
    }


def _rows_in(both: pl.DataFrame, table: pl.DataFrame, keys: list[str]) -> int:
    """How many rows of a table are in the joined rows: a row that several of the other table's belong to counts
    once."""
    once = keys and not table.select(keys).is_duplicated().any()
    return both.select(keys).n_unique() if once and both.height else both.height


def _join(
    one: pl.DataFrame, two: pl.DataFrame, declared: Sequence[str], names: Sequence[str] = ()
) -> tuple[pl.DataFrame, list[str], list[str]]:
    """(joined rows, keys, value columns)."""
    keys = key_columns(one, two, declared, names=names)
    values = [name for name in one.columns if name in two.columns and name not in keys]
    left = one.select([*keys, *(pl.col(name).alias(name + _SUFFIXES[0]) for name in values)])
    right = two.select([*keys, *(pl.col(name).alias(name + _SUFFIXES[1]) for name in values)])
    right = right.with_columns(
        [pl.col(key).cast(left.schema[key]) for key in keys if right.schema[key] != left.schema[key]]
    )
    if keys:
        both = left.join(right, on=keys, how="inner", nulls_equal=True, maintain_order="left")
    else:  # one row each
        both = left.join(right, how="cross")
    order = list(keys)
    for name in values:
        order += [name + suffix for suffix in _SUFFIXES]
        a, b = (both.schema[name + suffix] for suffix in _SUFFIXES)
        if all(dtype.is_numeric() or dtype == pl.Boolean for dtype in (a, b)):
            x, y = (pl.col(name + suffix).cast(pl.Float64) for suffix in _SUFFIXES)
            both = both.with_columns((y - x).alias(f"{name}_difference"))
            order.append(f"{name}_difference")
    return both.select(order), keys, values


def _numbers(a: pl.Series, b: pl.Series, *, correlated: bool) -> dict[str, Any]:
    from workbench.stats.intervals import pearson, spearman

    x, y = (series.cast(pl.Float64).to_numpy() for series in (a, b))
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if not len(x):
        return {"n": 0, "mean_first": None, "mean_second": None, "mean_difference": None, "max_abs_difference": None}
    entry: dict[str, Any] = {
        "n": len(x),
        "mean_first": float(x.mean()),
        "mean_second": float(y.mean()),
        "mean_difference": float((y - x).mean()),
        "max_abs_difference": float(np.abs(y - x).max()),
    }
    if correlated and len(x) >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
        draws = int(np.clip(_WORK // len(x), _LEAST_DRAWS, _MOST_DRAWS))
        for kind, function in (("pearson", pearson), ("spearman", spearman)):
            found = function(x, y, draws=draws, rng=np.random.default_rng(0))
            entry[kind] = {key: value if np.isfinite(value) else None for key, value in found.as_dict().items()}
    return entry


def _equality(a: pl.Series, b: pl.Series) -> dict[str, Any]:
    pairs = list(zip(a.to_list(), b.to_list()))
    return {"n": len(pairs), "equal": sum(x == y for x, y in pairs) / len(pairs) if pairs else None}
