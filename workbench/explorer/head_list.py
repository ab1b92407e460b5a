"""All heads of a model as one table: what this prompt says of each, and what every finished run says."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import polars as pl

from workbench.core.errors import InputError, WorkbenchError
from workbench.explorer import head_sets, readings
from workbench.explorer.head_score_passes import SCORES
from workbench.explorer.opened_model import Opened
from workbench.explorer.readings import Reading
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.figures.heads import head_map

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.runs.folder import Run

LIVE = ("attention", "direct_effect", "output_norm", *SCORES)
HEADS = ["layer", "head"]
_COMPARED = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"([^<>=!]+)(>=|<=|!=|=|>|<)(.+)")
_PLACE = re.compile(r"([0-9]{1,4})?\.(?:([0-9]{1,4})(?:-([0-9]{1,4}))?)?", re.ASCII)


def live_columns(
    opened: Opened,
    reading: Reading,
    target: Target,
    *,
    position: int = -1,
    switches: Switches = Switches(),
    scores: Callable[[], pl.DataFrame] | None = None,
) -> tuple[pl.DataFrame, list[str]]:
    """What a prompt says of every head, float64: layer, head, kv_group, attention (the largest weight of its row at
    `position`), direct_effect (there, on the target), output_norm (mean over the tokens), and the live scores of the
    prompt with nothing switched (`readings.head_scores`; `scores` where they are known). What the model does not have
    is null, with a sentence for each reason."""
    model, ids = opened.model, reading.ids
    at = position % len(ids)
    frame = pl.DataFrame(
        [(a, b, model.kv_group(b)) for a, b in model.heads()],
        schema={"layer": pl.Int64, "head": pl.Int64, "kv_group": pl.Int64},
        orient="row",
    )
    missing: list[str] = []

    def beside(frame: pl.DataFrame, columns: Sequence[str], compute: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        try:
            found = compute().select(*HEADS, *columns)
        except WorkbenchError as error:
            missing.append(str(error))
            return frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in columns)
        return frame.join(found, on=HEADS, how="left", maintain_order="left")

    def attention() -> pl.DataFrame:
        return readings.largest(opened, readings.attention_rows(opened, ids, at, switches))

    frame = beside(frame, ["attention"], attention)
    frame = beside(frame, ["direct_effect"], lambda: readings.direct_effects(opened, reading, target, at))
    frame = beside(frame, ["output_norm"], lambda: readings.output_norms(reading).rename({"norm": "output_norm"}))
    frame = beside(frame, list(SCORES), scores or (lambda: readings.head_scores(opened, [ids])))
    return frame, list(dict.fromkeys(missing))


def with_runs(live: pl.DataFrame, tables: Sequence[tuple[Run, pl.DataFrame]]) -> pl.DataFrame:
    """The table with the scores of runs (`head_sets.head_tables`) beside it, a column ``score · RUN`` each; null where
    a run has no row for a head."""
    whole = live
    for run, frame in tables:
        names = {name: f"{name} · {run.id}" for name in head_sets.score_columns(frame)}
        if names:
            mine = frame.select(*(pl.col(name).cast(pl.Int64) for name in HEADS), *names).rename(names)
            whole = whole.join(mine.unique(HEADS, keep="first"), on=HEADS, how="left", maintain_order="left")
    return whole


def list_figure(frame: pl.DataFrame, value: str, *, said: str = "", title: str = "") -> go.Figure:
    """The heads of such a table coloured by one of its columns. `said`: the target in words.

    Raises InputError for a column that is not there and for one without a value."""
    column = _column(frame, value)
    label = f"direct effect on {said}" if column == "direct_effect" and said else column.replace("_", " ")
    least = frame[column].cast(pl.Float64).fill_nan(None).min()
    diverging = isinstance(least, float) and least < 0
    return head_map(frame, value=column, label=label, diverging=diverging, title=title)


def filter_heads(frame: pl.DataFrame, text: str) -> pl.DataFrame:
    """The rows that a text asks for: ``3.`` (a layer), ``3.5``, ``3.0-7``, ``.5`` (a head of every layer), any of
    these; and every condition such as ``layer>10`` or ``induction>=0.5``, a column by its name or the beginning of it.
    A value that is missing meets no condition.

    Raises InputError for what is neither, for a column that is not there, and for a beginning that several have."""
    places: list[pl.Expr] = []
    conditions: list[pl.Expr] = []
    for part in re.sub(r"\s*(>=|<=|!=|=|>|<)\s*", r"\1", text).replace(",", " ").split():
        if place := _PLACE.fullmatch(part):
            places.append(_place(*place.groups()))
        elif condition := _CONDITION.fullmatch(part):
            conditions.append(_condition(frame, *condition.groups()))
        else:
            raise InputError(f"'{part[:40]}' is no filter of heads: write 3. or 3.5 or layer>10 or induction>=0.5.")
    if places:
        conditions.append(reduce(operator.or_, places))
    return frame.filter(*conditions) if conditions else frame


def _place(layer: str | None, first: str | None, last: str | None) -> pl.Expr:
    if layer is None and first is None:
        raise InputError("'.' is no filter of heads: write a layer before it, a head after it, or both.")
    holds = pl.lit(True) if layer is None else pl.col("layer") == int(layer)
    return holds if first is None else holds & pl.col("head").is_between(int(first), int(last or first))


def _condition(frame: pl.DataFrame, name: str, compared: str, value: str) -> pl.Expr:
    try:
        number = float(value)
    except ValueError as error:
        raise InputError(f"'{value[:40]}' in the filter of heads is no number to compare {name[:40]} with.") from error
    column = pl.col(_column(frame, name)).cast(pl.Float64)
    return column.is_not_nan() & _COMPARED[compared](column, number)


def _column(frame: pl.DataFrame, name: str) -> str:
    short = {column: re.sub(r"[\s_]+", "", column).lower() for column in frame.columns}
    wanted = re.sub(r"[\s_]+", "", name).lower()
    exact = [column for column, text in short.items() if text == wanted]
    found = exact or [column for column, text in short.items() if text.startswith(wanted)]
    if not found:
        raise InputError(f"The heads have no column '{name[:40]}' to filter by.")
    if len(found) > 1:
        raise InputError(f"'{name[:40]}' is the beginning of {len(found)} columns: {', '.join(found[:4])}; write more.")
    return found[0]
