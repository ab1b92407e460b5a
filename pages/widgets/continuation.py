"""Text that a model goes on with, written on the screen token by token after everything else is there.

The screen asks for the next tokens once it has drawn the last ones: a small component without a look of its own sends
the question, and the answer is one short run of the fragment. Nothing is written while nobody looks, a click waits for
one token at most, and no thread goes on in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from pages.widgets import cached, styling
from workbench.explorer.continuation import Continuation
from workbench.explorer.opened_model import Opened
from workbench.explorer.switches import Switches

AT_ONCE = 0.2  # seconds of writing between two drawings

_JS = """
const asking = new WeakMap();  // how to end what the last drawing of each text asks
export default function({ data, parentElement, setTriggerValue }) {
  const host = parentElement.host, ask = () => setTriggerValue('more', data.written);
  asking.get(host)?.();  // what a drawing returns is called when the text goes, not when it is drawn again
  host.dataset.writing = String(data.go);
  if (!data.go) return;
  const soon = setTimeout(ask, 10), again = setInterval(ask, 4000);  // again: in case a question was lost
  const end = () => { clearTimeout(soon); clearInterval(again); };
  asking.set(host, end);
  return end;
}
"""
_component = st.components.v2.component("workbench.more", html="<span></span>", js=_JS)


@dataclass(frozen=True, eq=False)
class Written:
    """One text of those that are written side by side, or one after the other: what it is called, and its colour."""

    title: str
    text: Continuation
    colour: str


def kept(
    who: str, ids: tuple[int, ...], switches: Switches, opened: Opened, *, temperature: float = 0.0, seed: int = 0
) -> Continuation:
    """The continuation of a prompt, as far as it was written."""
    return _kept(who, ids, switches, opened, float(temperature), seed)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=cached.BY_MODEL)
def _kept(
    who: str, ids: tuple[int, ...], switches: Switches, opened: Opened, temperature: float, seed: int
) -> Continuation:
    return Continuation(opened, ids, switches, temperature, seed)


@st.fragment
def follow(texts: Sequence[Written], most: int, *, key: str, whole: bool = False) -> None:
    """Texts as far as they are written, and more of them by and by, until each has `most` tokens or is stopped; with
    `whole` the rest of the screen is drawn again then."""
    marks = tuple((one.text.ids, one.text.switches, one.text.temperature, one.text.seed) for one in texts)
    asked = st.session_state.pop(f"{key} more", False)
    with styling.guard():
        stopped = st.session_state.get(f"{key} stopped") == marks
        if asked and not stopped:
            write(texts, most)
        again = whole and asked
        unfinished = any(not one.text.finished(most) for one in texts)
        st.html("".join(shown(one, most, stopped=stopped) for one in texts))
        if unfinished:
            pressed = st.button(
                "Go on" if stopped else "Stop writing",
                key=f"{key} stop",
                on_click=lambda: st.session_state.update({f"{key} stopped": None if stopped else marks}),
                help="The text is written after everything else, token by token.",
            )
            again = whole and pressed
        ask(key, sum(len(one.text.written) for one in texts), go=unfinished and not stopped)
        if again:
            st.rerun()


def write(texts: Sequence[Written], most: int) -> None:
    """Go on with the first text that is not finished, and with the next while there is time."""
    for one in texts:
        if not one.text.finished(most):
            one.text.grow(most, seconds=AT_ONCE)
            if not one.text.finished(most):
                return


def ask(key: str, written: int, *, go: bool) -> None:
    """Let the browser ask for more once it has drawn what there is."""

    def more() -> None:
        st.session_state[f"{key} more"] = True

    _component(key=f"{key} asks", data={"go": go, "written": written}, on_more_change=more)


def shown(one: Written, most: int, *, stopped: bool) -> str:
    """A text with its title, which says how far it is."""
    n, text = len(one.text.written), one.text
    if text.finished(most):
        far = f"{min(n, most)} tokens" + (", ended by the model" if text.ended and n < most else "")
    else:
        far = f"{n} of up to {most} tokens" + (", stopped" if stopped else "")
    quote = styling.quote(text.text(most), one.colour)
    return styling.heading(f"{one.title}, {far}") + f"<div class='wb-grows'>{quote}</div>"
