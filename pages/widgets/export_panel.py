"""What every panel of the Explorer gives to take home: PDF, SVG, PNG, CSV, a caption, and the lines of Python."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import streamlit as st

from pages.widgets import styling
from workbench import figures
from workbench.explorer.switches import Switches
from workbench.figures.export import export as write_figure

if TYPE_CHECKING:
    from pages.widgets.map_cards import Looking

MIME = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}


def show(name: str, fig, table: pl.DataFrame, panel: str, call: str, looking: Looking) -> None:
    """A popover with the panel's files, drawn when they are asked for."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(name).name}-{panel}")
    with st.popover("Take home", width="stretch", help="This panel as a file, and the Python that makes it."):
        columns = st.columns(4, gap="small")
        for column, kind in zip(columns, MIME):
            column.download_button(
                kind.upper(),
                lambda kind=kind: csv_of(table) if kind == "csv" else drawn(fig, kind),
                f"{stem}.{kind}",
                MIME[kind],
                on_click="ignore",
                key=f"{panel} {kind}",
                width="stretch",
                help="The table, every column." if kind == "csv" else "The figure, light, at the width of two columns.",
            )
        st.code(caption(fig, looking), language=None, wrap_lines=True)
        st.code(python_of(looking, call), language="python", wrap_lines=True)


def drawn(fig, kind: str) -> bytes:
    """The figure as a file, light, at the width of two columns."""
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / f"figure.{kind}"
        write_figure(fig, path)
        return path.read_bytes()


def csv_of(table: pl.DataFrame) -> bytes:
    """The table as CSV; lists as numbers apart by spaces."""
    flat = [
        pl.col(name).cast(pl.List(pl.String)).list.join(" ")
        for name, dtype in table.schema.items()
        if isinstance(dtype, pl.List)
    ]
    return table.with_columns(flat).write_csv().encode()


def caption(fig, looking: Looking) -> str:
    """What a reader must know: what is shown, of which model, on which prompt, with what switched."""
    meta, model = fig.layout.meta or {}, looking.opened.model
    parts = [str(meta.get("note") or "").rstrip(".")]
    parts.append(f"Target: {looking.said}")
    if looking.switches.any:
        parts.append(f"Switched ({looking.switches.how}): {switched(looking.switches)}")
    parts.append(f"Prompt: {model.decode(looking.ids)!r}")
    dtype = str(model.dtype).removeprefix("torch.")
    parts.append(f"Model: {model.name}, weights {model.fingerprint[:12]}, {dtype}")
    return ". ".join(part for part in parts if part) + "."


def switched(switches: Switches) -> str:
    """``heads 1.0, 1.1; MLPs 3``."""
    heads = ", ".join(f"{a}.{b}" for a, b in switches.heads)
    mlps = ", ".join(map(str, switches.mlps))
    return "; ".join(filter(None, [heads and f"heads {heads}", mlps and f"MLPs {mlps}"]))


def python_of(looking: Looking, call: str) -> str:
    """The lines that make the panel in a notebook."""
    prompt = st.session_state.get("prompt", "")
    target = f", target={looking.target.token}"
    other = "" if looking.target.other is None else f", other={looking.target.other}"
    switches = looking.switches
    given = [f"heads={list(switches.heads)}"] if switches.heads else []
    given += [f"mlps={list(switches.mlps)}"] if switches.mlps else []
    given += [f"how={switches.how!r}"] if given and switches.how != "zero" else []
    given += [f"donor={list(switches.donor)}"] if switches.donor else []
    change = f".switched({', '.join(given)})" if given else ""
    return (
        "from workbench.explorer import explore\n\n"
        f"view = explore({looking.name!r}, {prompt!r}{target}{other}){change}\n"
        f"table, figure = view.{call}\n"
        "figure.show()"
    )


def chart(fig, *, key: str, height: int | None = None) -> None:
    """The figure on the screen."""
    made = figures.dressed(fig, mode=styling.mode(), **({"height": height} if height else {}))
    st.plotly_chart(made, theme=None, key=key, config={"displaylogo": False})
