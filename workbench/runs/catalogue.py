"""Many runs as one table: what they were asked, what they found, searched, filtered, grouped."""

from __future__ import annotations

import json
import operator
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.wording import cut
from workbench.runs.folder import Run

Read = Callable[[Run], Mapping[str, Any]]

ALWAYS = {
    "probe": pl.String,
    "model": pl.String,
    "status": pl.String,
    "finished": pl.String,
    "seconds": pl.Float64,
    "seed": pl.Int64,
    "tags": pl.String,
    "note": pl.String,
    "id": pl.String,
}
_SETTING = "config "  # before the name of a config key, which may be that of another column
_COMPARES = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"(?P<column>[^<>=!]+)(?P<sign>>=|<=|!=|>|<|=)(?P<value>.*)", re.DOTALL)


def catalogue(
    runs: Sequence[Run],
    *,
    notes: Read,
    settings: Sequence[str] = (),
    metrics: Sequence[str] = (),
    summaries: Read | None = None,
) -> pl.DataFrame:
    """One row per run, in their order. Columns: those of `ALWAYS`, then one for each of the ``settings`` (of
    `settings_of`) and ``metrics`` (of `metrics_of`; numbers). ``notes``: tags and note of a run; ``summaries``: its
    summary, needed for metrics."""
    said = [notes(run) for run in runs]
    columns: dict[str, Sequence[Any]] = {
        "probe": [run.probe for run in runs],
        "model": [_model(run) for run in runs],
        "status": [run.status for run in runs],
        "finished": [str(run.of("finished") or run.of("started") or "")[:16].replace("T", " ") for run in runs],
        "seconds": [run.of("seconds", "total") for run in runs],
        "seed": [_seed(run) for run in runs],
        "tags": [", ".join(entry["tags"]) for entry in said],
        "note": [str(entry["note"]) for entry in said],
        "id": [run.folder.name for run in runs],
    }
    frame = pl.DataFrame(columns, schema=ALWAYS, strict=False)
    more = [pl.Series(name, _plain([_setting(run, name) for run in runs])) for name in settings]
    found = [summaries(run) if summaries is not None and metrics else {} for run in runs]
    more += [pl.Series(name, [_metric(entry.get(name)) for entry in found], dtype=pl.Float64) for name in metrics]
    return frame.with_columns(more)


def settings_of(runs: Iterable[Run]) -> list[str]:
    """The config keys (as columns: ``config lengths``) in which runs of one probe differ."""
    seen: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for key, value in (run.of("config", default={}) or {}).items():
            seen.setdefault((run.probe, key), set()).add(json.dumps(value, sort_keys=True))
    return list(dict.fromkeys(_SETTING + key for (_, key), values in seen.items() if len(values) > 1))


def metrics_of(runs: Iterable[Run], summaries: Read) -> list[str]:
    """The entries of summaries that are a number, alone or with its interval."""
    found = (key for run in runs for key, value in summaries(run).items() if _metric(value) is not None)
    return [name for name in dict.fromkeys(found) if name not in ALWAYS and not name.startswith(_SETTING)]


def conditions(text: str) -> tuple[list[str], list[tuple[str, str, str]]]:
    """What is typed into the search: words, and conditions as (column, sign, value). Quotes hold a text with spaces
    together."""
    try:
        parts = shlex.split(text)
    except ValueError:  # a quotation that is not closed yet
        parts = [part.strip("\"'") for part in text.split()]
    words, found = [], []
    for part in parts:
        match = _CONDITION.fullmatch(part)
        if match:
            found.append((match["column"].strip(), match["sign"], match["value"].strip()))
        else:
            words.append(part)
    return words, found


def columns_named(text: str, known: Iterable[str]) -> list[str]:
    """The columns among the ``known`` that the conditions of a search name, as `searched` reads them."""
    known = list(known)
    return [name for column, _, _ in conditions(text)[1] if (name := _column(column, known)) is not None]


def searched(frame: pl.DataFrame, text: str) -> pl.DataFrame:
    """The rows in which every word occurs, whatever the column, and for which every condition (``seconds>10``,
    ``model=organism``, ``note="to do"``) holds. A row without a value meets no condition but ``!=``.

    Raises InputError for a column that is not there, and for a number that is none."""
    words, found = conditions(text)
    for column, sign, value in found:
        frame = frame.filter(_condition(frame, column, sign, value))
    if words:
        row = pl.concat_str(pl.all().cast(pl.String).fill_null(""), separator="\n").str.to_lowercase()
        frame = frame.filter([row.str.contains(word.lower(), literal=True) for word in words])
    return frame


def grouped(frame: pl.DataFrame, by: str, metric: str | None = None) -> pl.DataFrame:
    """The runs counted by the values of a column, the largest group first; with a metric also how many have it, its
    mean, min and max."""
    aggregates = [pl.len().alias("runs")]
    if metric is not None:
        value = pl.col(metric).cast(pl.Float64)
        value = value.filter(value.is_finite())
        aggregates += [
            value.len().alias(f"with {metric}"),
            value.mean().alias("mean"),
            value.min().alias("min"),
            value.max().alias("max"),
        ]
    return frame.group_by(by, maintain_order=True).agg(aggregates).sort("runs", descending=True, maintain_order=True)


def _condition(frame: pl.DataFrame, column: str, sign: str, value: str) -> pl.Expr:
    name = _column(column, frame.columns)
    if name is None:
        raise InputError(f"There is no column '{cut(column, 40)}' in the list of runs{nearest(column, frame.columns)}.")
    compare = _COMPARES[sign]
    if frame[name].dtype.is_numeric():
        try:
            number = float(value)
        except ValueError:
            raise InputError(
                f"'{cut(value, 40)}' is not a number, which the column '{name}' is compared with."
            ) from None
        holds = compare(pl.col(name), number)
    else:
        holds = compare(pl.col(name).cast(pl.String).str.to_lowercase(), value.lower())
    return holds.fill_null(sign == "!=")


def _column(text: str, known: Sequence[str]) -> str | None:
    """The column that a person means: by its name, without ``config``, with spaces or underscores."""
    plain = {name.lower().replace("_", " "): name for name in reversed(known)}
    wanted = text.lower().replace("_", " ")
    return plain.get(wanted) or plain.get(_SETTING + wanted)


def _model(run: Run) -> str:
    name = str(run.of("model", "name", default="?")).rstrip("/").rsplit("/", 1)[-1]
    return cut(name, 34)


def _seed(run: Run) -> int | None:
    seed = run.of("seed", default=None if run.of("imported") else 0)
    return seed if seed is None or seed < 2**63 else None


def _setting(run: Run, name: str) -> Any:
    return run.of("config", name.removeprefix(_SETTING))


def _plain(values: Sequence[Any]) -> list[Any]:
    """Values of one column: numbers as they are where all are numbers, else texts."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
        return [None if value is None else float(value) for value in values]
    return [None if v is None else v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]


def _metric(value: Any) -> float | None:
    """The number in an entry of a summary."""
    if isinstance(value, dict):
        value = value.get("value")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
