"""The row under the head grid: switch the chosen head, all that are selected, or sets of heads, and how."""

from __future__ import annotations

import streamlit as st

from pages.widgets import head_selection, head_set_panel, styling, switchboard, url_state
from workbench.explorer.switches import HOW, Switches

SCREEN = "explorer"


def show(opened, frame, column: str, switches: Switches, at: tuple[int, int]) -> None:
    """`frame`, `column`: what the grid is coloured by; `at`: the chosen head."""
    model = opened.model
    selection(model)
    # with a patch that has no donor yet heads and MLPs are chosen, not switched
    off = switchboard.heads_of(url_state.get(SCREEN, "off"), model)
    mlps = switchboard.mlps_of(url_state.get(SCREEN, "mlps"), model)
    a, b, c, d = st.columns([3, 2, 2, 2], vertical_alignment="bottom")
    label = "Switch on" if at in off else "Switch off"
    a.button(
        f"{label} {at[0]}.{at[1]}",
        key="switch",
        on_click=switchboard.toggle,
        args=at,
        shortcut="x",
        width="stretch",
        help="The chosen head. Shift-click in the grid does the same for any head.",
    )
    b.selectbox(
        "How",
        HOW,
        key="how",
        bind="query-params",
        label_visibility="collapsed",
        help="zero: no output; mean: the mean output over reference texts; uniform: heads attend evenly; patch: the "
        "output on a second prompt.",
    )
    c.button(
        "All on",
        on_click=switchboard.all_on,
        disabled=not off and not mlps,
        width="stretch",
        help="Switch every head and MLP on again.",
    )
    with d.popover("Sets", width="stretch", help="Heads by value or rank of the present colour, and saved masks."):
        head_set_panel.show(opened, frame, column, off, mlps)
    if (st.session_state.get("how") or "zero") == "patch":
        st.text_input(
            "Second prompt, to patch from",
            key="donor",
            bind="query-params",
            placeholder="a prompt that differs in what matters",
            help="Head outputs are taken from it, position by position; prompts of different length are aligned at "
            "their ends.",
        )
        if (off or mlps) and not switches.any:
            st.caption("Type a second prompt: until then everything stays on.")
    if mlps and switches.any and not switches.mlps:
        st.caption("Only heads can attend uniformly: MLPs stay on. Zero, mean and patch switch them, too.")


def selection(model) -> None:
    """What to do with the heads that are selected; nothing where none is."""
    heads = head_selection.selected(model)
    if not heads:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="selection"):
        st.caption(styling.md(head_selection.in_words(heads)), width="content")
        off = set(switchboard.heads_of(url_state.get(SCREEN, "off"), model))
        st.button(
            "Switch them off",
            on_click=switchboard.put_off,
            args=(off | set(heads),),
            disabled=off >= set(heads),
            help="All selected heads, in the way beside the switch (zero, mean, uniform, patch).",
        )
        st.button(
            "Switch them on",
            on_click=switchboard.put_off,
            args=(off - set(heads),),
            disabled=not off & set(heads),
            help="All selected heads.",
        )
        st.button("Clear", on_click=head_selection.put, args=((),), help="Select no head. Escape in the grid does it.")
