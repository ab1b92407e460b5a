"""What every panel of the Explorer gives to take home: PDF, SVG, PNG, CSV, a notebook, a caption, the lines of Python,
a command and the BibTeX of its method."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import streamlit as st

from pages.widgets import figure_box, styling
from workbench import figures
from workbench.core.wording import cut
from workbench.explorer import as_code
from workbench.explorer.exploring import Exploration
from workbench.explorer.panel_papers import bibtex
from workbench.figures.export import export as write_figure

if TYPE_CHECKING:
    from pages.widgets.map_cards import Looking

MIME = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}
NOTEBOOK = ("lens()", "waterfall()", "direct_effects()")  # what a notebook has beside the panel itself


def show(name: str, fig, table: pl.DataFrame, panel: str, call: str, looking: Looking) -> None:
    """A popover with the panel's files, drawn when they are asked for, and the code that makes it. `call`: the panel as
    a method of an `Exploration`, with its arguments."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(name).name}-{panel}")
    prompt = st.session_state.get("prompt", "")
    view = Exploration(looking.opened, looking.ids, looking.target, looking.switches)
    with st.popover("Take home", width="stretch", help="This panel as a file, and the code that makes it."):
        columns = st.columns(5, gap="small")
        for column, kind in zip(columns, MIME):
            column.download_button(
                kind.upper(),
                lambda kind=kind: as_code.csv(table).encode() if kind == "csv" else drawn(fig, kind),
                f"{stem}.{kind}",
                MIME[kind],
                on_click="ignore",
                key=f"{panel} {kind}",
                width="stretch",
                help="The table, every column." if kind == "csv" else "The figure, light, at the width of two columns.",
            )
        columns[-1].download_button(
            "Notebook",
            lambda: notebook_of(view, call, name, prompt).encode(),
            f"{stem}.ipynb",
            "application/x-ipynb+json",
            on_click="ignore",
            key=f"{panel} notebook",
            width="stretch",
            help="This view in Jupyter: this panel first, then the others that need nothing more.",
        )
        st.html(styling.heading("caption"))
        st.code(as_code.caption(fig, view), language=None, wrap_lines=True)
        st.html(styling.heading("Python"))
        st.code(as_code.python(view, call, model=name, prompt=prompt), language="python", wrap_lines=True)
        st.html(styling.heading("command"))
        st.code(as_code.command(view, call, model=name, prompt=prompt), language="bash", wrap_lines=True)
        if papers := bibtex(as_code.parse_call(call)[0]):
            st.html(styling.heading("BibTeX of the method"))
            st.code(papers, language="bibtex", wrap_lines=True)


def notebook_of(view: Exploration, call: str, model: str, prompt: str) -> str:
    """A notebook of the present view."""
    panel = as_code.parse_call(call)[0]
    others = [other for other in NOTEBOOK if as_code.parse_call(other)[0] != panel]
    title = f"{Path(model).name}: {cut(prompt, 60)}"
    return as_code.notebook(view, [call, *others], model=model, prompt=prompt, title=" ".join(title.split()))


def drawn(fig, kind: str) -> bytes:
    """The figure as a file, light, at the width of two columns."""
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / f"figure.{kind}"
        write_figure(fig, path)
        return path.read_bytes()


def chart(fig, *, key: str, height: int | None = None) -> None:
    """The figure on the screen."""
    made = figures.dressed(fig, mode=styling.mode(), **({"height": height} if height else {}))
    with figure_box.box(made, key):
        st.plotly_chart(made, theme=None, key=key, config={"displaylogo": False})
