"""Figures made of words: tables of answers and cards."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench.core.errors import InputError
from workbench.core.wording import cut
from workbench.figures.layout import dressed


def word_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, most: int = 12, title: str = "", note: str = ""
) -> go.Figure:
    """A table of texts, the first ``most`` rows, cut to 160 characters a cell.

    Raises InputError where there is no row."""
    if not rows:
        raise InputError(f"There is no row for the table '{title}'.")
    shown = [[_plain(value) for value in row] for row in rows[:most]]
    if len(rows) > most:
        note = " ".join(filter(None, [note, f"The first {most} of {len(rows)} rows."]))
    fig = go.Figure(
        go.Scatter(x=[0], y=[0], mode="markers", opacity=0, hoverinfo="skip", showlegend=False),
        layout={"template": "none"},
    )
    fig.layout.meta = {"words": shown, "columns": list(columns), "title": title, "note": note, "mode": "light"}
    return dressed(fig)


def _plain(value: object) -> str:
    text = "" if value is None else str(value).replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return cut(text, 160)
