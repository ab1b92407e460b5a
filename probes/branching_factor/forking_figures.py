"""The tokens at which a model's outputs fork, as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from probes.branching_factor.drawn_conditions import joined
from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.figures import style as theme
from workbench.figures import traces
from workbench.figures.choices import Choice
from workbench.figures.layout import dressed, sheet, ticks, x_axis, y_axis
from workbench.figures.run_tables import finite, maybe, need, numbers

MOST = 15  # tokens that are drawn


def forking_tokens(run: Any, *, condition: str | None = None) -> go.Figure:
    """How often the tokens fork that do so more often than expected; where none does, the most frequent ones."""
    columns = ("condition", "token", "count", "share", "ci_low", "ci_high", "expected", "forking")
    frame = finite(need(run, "forking_tokens", columns), "share", what="share of forks")
    known = frame["condition"].unique(maintain_order=True).to_list()
    condition = known[0] if condition is None else condition
    if condition not in known:
        raise InputError(
            f"There is no condition '{condition}'{nearest(condition, known)} in the run; there are {', '.join(known)}."
        )
    frame = frame.filter(condition=condition)
    found = frame.filter(pl.col("forking").fill_null(False)).sort("ci_low", "count", descending=True)
    shown = (found if found.height else frame.sort("count", descending=True)).head(MOST)
    names = [repr(token) for token in shown["token"]]
    fig = sheet(
        title=f"Where {condition} forks",
        x="share of its occurrences that fork",
        y_ticks=ticks(range(len(names)), names, keep=True),
        row=1.3,
        aspect=0.05 * len(names) + 0.1,
        interval="95 % Wilson over prompts, none below five",
        n=f"{frame['prompts'].max()} prompts" if "prompts" in frame.columns else None,
        note=joined(_held(run, condition), _which(found.height, shown.height)),
    )
    at = list(range(len(names)))
    ends = {"low": numbers(shown, "ci_low"), "high": numbers(shown, "ci_high")}
    look = {"style": theme.Style(theme.BLUE), "horizontal": True, "width": 0.6, "labels": names, "faint": True}
    traces.add_bars(fig, 0, at, numbers(shown, "share"), name="forks", **look, **ends)
    expected = numbers(shown, "expected")
    hover = [f"{traces.number(value)} expected" for value in expected]
    grey = theme.Style(theme.NEUTRAL, None, "diamond")
    traces.add_points(fig, 0, expected, at, name="its places shuffled", style=grey, hover=hover, large=True)
    y_axis(fig, 0).range = [len(names) - 0.4, -0.6]
    x_axis(fig, 0).update(range=[0, 1.02], tickformat=".0%")
    return dressed(fig)


def _held(run: Any, condition: str) -> str:
    frame = maybe(run, "forking", ("condition", "forking", "entropy_held"))
    frame = None if frame is None else frame.filter(condition=condition).drop_nulls("entropy_held")
    if frame is None or frame.is_empty():
        return ""
    row = frame.row(0, named=True)
    return f"{row['forking']:.0%} of the steps fork; they hold {row['entropy_held']:.0%} of the entropy."


def _which(found: int, shown: int) -> str:
    if not found:
        return "No token forks more often than expected; drawn are the most frequent."
    more = f", {shown} of {found} drawn" if shown < found else ""
    return f"Tokens that fork more often than expected (false discoveries below 5 %){more}."


def forking_choices(run: Any, _chosen: Mapping[str, Any]) -> list[Choice]:
    """The condition, where there are several."""
    conditions = need(run, "forking_tokens", ("condition",))["condition"].unique(maintain_order=True).to_list()
    if len(conditions) < 2:
        return []
    return [Choice("condition", "Condition", {str(name): name for name in conditions}, "Whose tokens are drawn.")]
