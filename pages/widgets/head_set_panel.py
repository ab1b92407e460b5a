"""Sets of heads: chosen by what they score, kept under a name, taken again."""

from __future__ import annotations

import streamlit as st

from pages.widgets import cached, head_selection, styling, switchboard
from workbench.core.errors import InputError, WorkbenchError
from workbench.explorer import head_sets
from workbench.explorer.switches import Switches


def show(opened, frame, column: str, off, mlps) -> None:
    """What the popover holds: by value, by rank, saved sets. `frame`, `column`: the present colour."""
    by_value(frame, column)
    by_rank(opened.model, frame, column)
    if "no top heads" in st.session_state:
        st.caption(styling.md(st.session_state.pop("no top heads")))
    saved(opened.model)
    keep(opened, head_selection.selected(opened.model) or off, mlps)


def by_value(frame, column: str) -> None:
    """Select every head from a value on."""
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    side = left.selectbox("Heads whose colour is", head_sets.SIDES, key="select side", help="In the present colour.")
    value = right.number_input(
        "Value",
        value=None,
        placeholder="a value of the colour",
        format="%g",
        step=None,
        key="select value",
        help=f"Of {column.replace('_', ' ')}, as the grid is coloured.",
    )
    st.button(
        "Select these",
        key="select by value",
        on_click=lambda: select(
            head_sets.heads_from(frame, column, value, side),
            f"No head's {column.replace('_', ' ')} is {side} {value:g}.",
        ),
        disabled=value is None,
        help="In place of the heads that are selected now.",
    )


def by_rank(model, frame, column: str) -> None:
    """Select or switch off the heads with the highest values."""
    st.number_input(
        "Top heads by the present colour",
        1,
        model.n_layers * model.n_heads,
        min(5, model.n_heads),
        key="top k",
        help="How many of the heads with the highest value.",
    )
    left, right = st.columns(2)
    left.button(
        "Select top heads",
        on_click=lambda: select(
            head_sets.top_heads(frame, column, st.session_state["top k"]), head_sets.none_because(frame, column)
        ),
        width="stretch",
        help="In place of the heads that are selected now. Of a score with a control, only heads that are above it.",
    )
    right.button(
        "Switch these off",
        on_click=lambda: switch_top(frame, column),
        width="stretch",
        help="In place of the heads that are off now. Of a score with a control, only heads that are above it.",
    )


def select(found, otherwise: str | None) -> None:
    """Select heads; where there are none, say why."""
    head_selection.put(found)
    if not found:
        st.session_state["no top heads"] = otherwise


def switch_top(frame, column: str) -> None:
    """Switch off the top heads of a column; none, with the reason, where no head stands out in it."""
    found = head_sets.top_heads(frame, column, st.session_state["top k"])
    if found:
        switchboard.put_off(sorted(found))
    else:
        st.session_state["no top heads"] = head_sets.none_because(frame, column)


def saved(model) -> None:
    """The saved masks, to switch or to select."""
    masks = saved_masks(model)
    if not masks:
        return
    mask = st.selectbox(
        "Saved masks", list(masks), key="mask", help="Saved here, or the pruned heads of a run on this model."
    )
    left, right = st.columns(2)
    left.button(
        "Apply the mask",
        on_click=apply_mask,
        args=(mask,),
        width="stretch",
        help="In place of the heads that are off now.",
    )
    right.button(
        "Select its heads",
        on_click=select_mask,
        args=(mask,),
        width="stretch",
        help="In place of the heads that are selected now.",
    )
    if "mask problem" in st.session_state:
        styling.problem(st.session_state.pop("mask problem"))


def keep(opened, heads, mlps) -> None:
    """Keep the selected heads, else those that are off, under a name."""
    title = st.text_input(
        "Save the present heads as",
        key="mask name",
        placeholder="name",
        help="A file that `--edit` reads: the selected heads, or the heads that are off where none is selected. It "
        "holds which heads, and zero or uniform.",
    )
    if st.button("Save", disabled=not heads, help="Keep the selected heads, or those that are off."):
        how = st.session_state.get("how") or "zero"
        kept = () if head_selection.selected(opened.model) else mlps
        try:
            path = head_sets.save_mask(
                title, Switches(heads, how, (), kept), note=f"Explorer, {opened.model.name}", model=opened.model
            )
            st.caption(styling.md(f"Saved; on the command line: --edit {path}"))
        except WorkbenchError as error:
            styling.problem(error)


def saved_masks(model):
    return head_sets.saved_masks(cached.run_list(), fingerprint=model.fingerprint)


def apply_mask(name: str) -> None:
    """Switch off the heads of a saved mask."""
    found = load(name)
    if found is not None:
        switchboard.put_off(found.heads)
        st.session_state["how"] = found.how


def select_mask(name: str) -> None:
    """Select the heads of a saved mask."""
    found = load(name)
    if found is not None:
        head_selection.put(found.heads)


def load(name: str) -> Switches | None:
    """A saved mask; None, and the reason in the session, where it cannot be read."""
    model = cached.model(st.session_state["model"]).model
    try:
        return head_sets.load_mask(name, saved_masks(model))
    except InputError as error:
        st.session_state["mask problem"] = str(error)
        return None
