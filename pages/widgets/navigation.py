"""Navigation between the screens, and the line in the sidebar that says what the workers do."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import streamlit as st

from pages.widgets import styling
from workbench.core import registry
from workbench.core.errors import WorkbenchError
from workbench.explorer import head_sets
from workbench.runs import queue
from workbench.runs.folder import Run

HERE = Path(__file__).resolve().parents[1]


def pages(screen: Callable[[str], None]) -> dict[str, list]:
    """The screens by section. ``screen`` draws that of a probe; it is at the probe's name with underscores."""
    return {
        "": [
            st.Page(HERE / "explorer.py", title="Explorer", url_path="explorer", default=True),
            st.Page(HERE / "activations.py", title="Map of activations", url_path="activations"),
        ],
        "Probes": [
            st.Page(_page(name, screen), title=name.replace("-", " ").capitalize(), url_path=name.replace("-", "_"))
            for name in registry.names()
        ],
        "Results": [
            st.Page(HERE / "runs.py", title="Runs", url_path="runs"),
            st.Page(HERE / "compare.py", title="Compare", url_path="compare"),
        ],
    }


def to_explorer(run: Run, layer: int, head: int, column: str) -> NoReturn:
    """Go to the Explorer, to one head of the model of a run, in the colours of what the run says of heads."""
    where = {"model": str(head_sets.model_info(run).get("name") or ""), "head": f"{layer}.{head}"}
    label = head_sets.column_label(run, column)
    if label in head_sets.run_columns(head_sets.head_tables([run])):
        where["colour"] = label
    _leave(where, "colour")


def to_explorer_with(run: Run, text: str, note: str = "") -> NoReturn:
    """Go to the Explorer, to a prompt in the model of a run; ``note`` is said below the tokens."""
    to_prompt(str(head_sets.model_info(run).get("name") or ""), text, note)


def to_prompt(model: str, text: str, note: str = "") -> NoReturn:
    """Go to the Explorer, to a prompt in a model; ``note`` is said below the tokens."""
    st.session_state["prompt note"] = text, note
    _leave({"model": model, "prompt": text})


def _leave(where: dict[str, str], *forgotten: str) -> NoReturn:
    """Open the Explorer at an address that says it all: what was chosen there for another model or prompt is gone.

    The model goes through the session: a screen with a box of that name in its address, as the map of activations has
    one, may not write there what the Explorer's box is to hold."""
    chosen = ("head", "at", "off", "mlps")
    for key in ("model", "prompt", *forgotten, *(f"last explorer {name}" for name in chosen)):
        st.session_state.pop(key, None)
    st.session_state["last explorer model"] = where.pop("model")
    st.switch_page(HERE / "explorer.py", query_params=where)


def _page(name: str, screen: Callable[[str], None]) -> Callable[[], None]:
    def page() -> None:
        screen(name)

    page.__name__ = name.replace("-", "_")
    return page


def main(screen: Callable[[str], None]) -> None:
    """The whole app; ``screen`` draws the screen of the probe of a name."""
    styling.style()
    page = st.navigation(pages(screen), expanded=True)
    st.session_state["framed"] = True
    with st.sidebar:
        at_work()
    try:
        with st.container(key="page", height=1, border=False), styling.guard():
            page.run()
    finally:
        settle()


_settled = 0  # how many modules there were


def settle() -> None:
    """Take what imported modules hold out of the rounds of the garbage collector, whenever there are more of them.

    Streamlit makes a full round after every run of a script or fragment. Through all that torch and transformers hold
    it takes a third of a second, in which nothing reaches the page. What is no longer referred to goes as before."""
    global _settled
    if len(sys.modules) != _settled:
        _settled = len(sys.modules)
        gc.collect()
        gc.freeze()


def through_app() -> None:
    """At the top of a page: come back through app.py if streamlit took the page for a script of its own.

    It does so where a link into the app is the very first thing a server serves: a folder called pages is the old way
    to declare screens, and only the first call of st.navigation tells streamlit otherwise."""
    if "framed" not in st.session_state:
        from streamlit.runtime.pages_manager import PagesManager

        PagesManager.uses_pages_directory = False  # what st.navigation does
        st.rerun()


@st.fragment(run_every=3.0)
def at_work() -> None:
    """What runs now and what waits, in one line per job."""
    with styling.guard():
        _at_work()


def _at_work() -> None:
    try:
        queue.wake()
        busy = [job for job in queue.listing() if not job.ended]
    except (WorkbenchError, OSError) as error:
        st.caption(styling.md(str(error)))
        return
    if not busy:
        st.caption("No run in progress.")
        return
    lines = []
    for job in busy[:6]:
        lines.append(
            f"<div>{styling.esc(job.probe)} <span "
            f"class='wb-dim'>{styling.esc(styling.short(job.model))}</span><br>{styling.esc(styling.state(job))}</div>"
        )
    if len(busy) > 6:
        lines.append(f"<div class='wb-dim'>and {len(busy) - 6} more</div>")
    st.html("<div class='wb-work'>" + "".join(lines) + "</div>")
