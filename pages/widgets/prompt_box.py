"""What the Explorer looks at: the model, the prompt, the target, and prompts to begin with.

The prompt is typed as it is. Links of before had its line breaks as ``\\n``: these are still read so, unless the
address says that somebody typed the two signs (``literal=1``)."""

from __future__ import annotations

import streamlit as st

from pages.widgets import cached, styling, url_state, views_panel
from workbench.core.wording import cut
from workbench.explorer.opened_model import Opened

SCREEN = "explorer"
KEYS = (
    ("h, l", "head to the left, to the right"),
    ("j, k", "layer below, above"),
    ("arrows, Home, End", "the same in the grid and in maps, or along the tokens, once Tab has led there"),
    ("x", "switch the chosen head off or on"),
    ("space, shift-click", "the same in the grid"),
    ("drag, shift+arrows", "select heads in the grid; with Ctrl more of them"),
    ("Enter, Ctrl-click", "select one head more, or one less; Ctrl+A: all, Escape: none"),
    ("click on a head's number", "select that head of every layer; shift-click on a layer: its heads"),
    ("Ctrl+Enter", "run: the prompt here, the form on a probe's screen"),
    ("s", "stop the run in progress there"),
    ("Ctrl+E", "download the figure as PDF there"),
)
CHOSEN = ("head", "off", "mlps", "at", "selected", "sae", "feature", "features")  # what another model does away with
KEPT = ("model", "prompt")  # what is still there when one comes back from another screen


def show() -> tuple[str, str]:
    """The boxes; gives the name of the model and the prompt."""
    for key in KEPT:
        bring_back(key)
    left, right, one, two, more, kept = st.columns([9, 19, 5, 5, 6, 5], gap="small", vertical_alignment="bottom")
    with left:
        name = st.selectbox(
            "Model",
            cached.model_names(),
            key="model",
            bind="query-params",
            accept_new_options=True,
            on_change=new_model,
            help="An organism, a local folder in Hugging Face format, or a hub id. Type to enter another.",
        )
    known = cached.prompts(name)
    st.session_state["model before"] = name
    with right:
        text = prompt(known[0] if known else "")
    one.text_input(
        "Target",
        key="target",
        bind="query-params",
        placeholder="likeliest",
        help="The next token that effects are measured on; empty: the likeliest one when nothing is switched.",
    )
    two.text_input(
        "against",
        key="against",
        bind="query-params",
        placeholder="none",
        help="A second token: effects are then of the difference of the two logits.",
    )
    with more.popover("Examples", width="stretch", help="Prompts to begin with, and the keys of this screen."):
        for i, example in enumerate(known):
            st.button(
                styling.md(cut(example, 90)),
                key=f"example {i}",
                on_click=put_prompt,
                args=(example,),
                width="stretch",
                help="Put this prompt in.",
            )
        st.html(styling.heading("keys") + styling.table(KEYS, [("", "text"), ("", "text")]))
    with kept:
        views_panel.show(name, text)
    for key, value in zip(KEPT, (name, text)):
        st.session_state[f"last {SCREEN} {key}"] = value
    forget_position(name, text)
    return name, text


def prompt(first: str) -> str:
    """The box of the prompt. It grows with what is in it, up to six lines, then scrolls."""
    if "prompt of a link" in st.session_state:
        st.session_state["prompt"] = st.session_state.pop("prompt of a link")
    text = st.text_area(
        "Prompt",
        value=first,
        key="prompt",
        bind="query-params",
        height="content",
        on_change=typed,
        help="Ctrl+Enter runs it, Enter begins a new line. The tokens below are those really fed.",
    )
    if "\\n" in text and not st.query_params.get("literal"):
        st.session_state["prompt of a link"] = text.replace("\\n", "\n")
        st.rerun()
    return text


def said_of(opened: Opened) -> None:
    """What is not as it was where the prompt or the view comes from."""
    of, note = st.session_state.get("prompt note") or ("", "")
    if note and of == st.session_state.get("prompt"):
        st.info(styling.md(note))
    views_panel.opened_from(st.session_state["model"], opened.model.fingerprint)


def typed() -> None:
    """Another prompt: its tokens are others, and backslashes in it are meant."""
    put_prompt(st.session_state["prompt"])


def put_prompt(text: str) -> None:
    """Put a prompt into the box, as it is; the last token of it is looked at."""
    st.session_state["prompt"] = text
    url_state.put(SCREEN, "literal", "1" if "\\n" in text else "")
    url_state.put(SCREEN, "at", "")


def one_line(text: str) -> str:
    """A prompt as the boxes of one line hold it, with ``\\n`` for a line break."""
    return text.replace("\n", "\\n")


def new_model() -> None:
    """Another model has other words: an example that was not touched gives way to one of its own."""
    before = st.session_state.get("model before")
    if before and st.session_state.get("prompt") in cached.prompts(before):
        put_prompt(cached.prompts(st.session_state["model"])[0])
    for key in CHOSEN:
        url_state.put(SCREEN, key, "")


def bring_back(key: str) -> None:
    """What a box last held, where one comes back from another screen and the address does not say."""
    before = st.session_state.get(f"last {SCREEN} {key}")
    if before and key not in st.session_state and key not in st.query_params:
        st.session_state[key] = st.query_params[key] = before


def forget_position(name: str, text: str) -> None:
    """A position belongs to its prompt: with another one, also from the back button, it is that of the address, if the
    address has a new one, else the last."""
    before, now = st.session_state.get("looked at"), (name, text)
    given = st.query_params.get("at", "")
    if before is not None and before[:2] != now and given in ("", before[2]):
        url_state.put(SCREEN, "at", "")
    st.session_state["looked at"] = (*now, st.query_params.get("at", ""))
