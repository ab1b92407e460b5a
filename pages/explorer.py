"""The Explorer: a prompt, its tokens, every head; click one, switch it off, see the answer change."""

from __future__ import annotations

import re

import streamlit as st

from pages.widgets import (
    cached,
    head_cards,
    head_cells,
    head_colours,
    head_list_card,
    layer_card,
    map_cards,
    navigation,
    precision_choice,
    prompt_box,
    side_by_side,
    styling,
    switch_row,
    switchboard,
    token_strip,
    url_state,
)
from workbench.explorer import head_sets, opened_model
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target

SCREEN = "explorer"


def main() -> None:
    styling.unseen_heading("Explorer", level=1)
    cached.look_again()
    body(*prompt_box.show())


@st.fragment
def body(name: str, text: str) -> None:
    with styling.guard():
        opened = cached.model(name)
        with st.container(key="view"):
            view(name, opened, text)


def view(name: str, opened, text: str) -> None:
    ids = opened_model.encode(opened, text)
    switches = switchboard.chosen(opened)
    at = position(url_state.get(SCREEN, "at"), len(ids))
    tables = cached.head_tables(opened.model.fingerprint, str(opened.model.name))
    (layer, head), why = chosen_head(name, opened, tables)

    reading = cached.reading(name, ids, switches, opened)
    rows = cached.rows(name, ids, at, switches, opened)
    target = named_target(name, opened, ids)
    looking = map_cards.Looking(name, opened, ids, switches, target, layer, head, at)
    show_tokens(opened, ids, at, rows[layer, head], target)

    there = None
    left, right = st.columns([10, 9], gap="large")
    with left:
        styling.unseen_heading("Heads")
        column, frame, share, links = head_colours.choose(looking, tables)
        head_cells.show(opened, frame, column, switches, (layer, head), share=share, links=links)
        switch_row.show(opened, frame, column, switches, (layer, head))
        styling.unseen_heading("Answer")
        head_cards.answer(name, opened, ids, switches, reading)
    with right:
        card = st.segmented_control(
            "Card",
            ["Head", "Layer", "Heads", "Scores", "Beside"],
            default="Head",
            key="card",
            bind="query-params",
            required=True,
            label_visibility="collapsed",
            help="The chosen head; its layer; all heads as a list; its scores; a second prompt or model beside this.",
        )
        styling.unseen_heading(f"{card} card")
        if why:
            st.caption(styling.md(f"No head to open on, so the first of the last layer. {why}"))
        if card == "Head":
            head_cards.head(name, opened, ids, switches, rows, layer, head, at, tables)
        elif card == "Layer":
            layer_card.show(name, opened, ids, switches, reading, layer, at)
        elif card == "Heads":
            head_list_card.show(looking, tables)
        elif card == "Scores":
            head_cards.scores(name, opened, ids, layer, head)
        else:
            there = head_cards.beside(name, opened, ids, switches, cached.model_names(), layer, head)
    if there is not None:
        side_by_side.show(looking, *there)
    map_cards.show(looking)
    precision_choice.show(opened)


# ---- what is chosen


def named_target(name: str, opened, ids) -> Target:
    """The token, or the pair, that every direct effect is of; the same whatever is switched."""
    return map_cards.target_of(opened, cached.reading(name, ids, Switches(), opened))


def position(text: str, count: int) -> int:
    """A position from the URL, kept inside the prompt; the last one for anything that is none."""
    found = int(text) if re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) else count - 1
    return min(found, count - 1)


def chosen_head(name: str, opened, tables) -> tuple[tuple[int, int], str]:
    """The head of the URL; at first the best one of the newest run of this model, else the one that most does
    induction, else the first of the last layer, and why."""
    model = opened.model
    found, why = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", url_state.get(SCREEN, "head")), ""
    if found:
        best = int(found[1]), int(found[2])
    elif (best := head_sets.best_head(tables)) is None:
        best, why = cached.induction_head(name, opened)
    layer, head = best or (model.n_layers - 1, 0)
    return (min(layer, model.n_layers - 1), min(head, model.n_heads - 1)), why


# ---- pieces of the screen


def show_tokens(opened, ids, at: int, row, target: Target) -> None:
    styling.unseen_heading("Tokens")
    token_strip.show(opened, ids, row, at=at, key="tokens", on_pick=lambda i: url_state.put(SCREEN, "at", str(i)))
    prompt_box.said_of(opened)
    count = opened_model.unknown(opened, ids)
    if count:
        st.warning(
            f"{count} of {len(ids)} tokens are unknown to this tokenizer: the model does not read these "
            f"words. Examples has prompts in its own."
        )
    if opened.precision:
        st.info(styling.md(opened.precision))
    st.caption(
        styling.md(
            f"{len(ids)} tokens as they are fed. Colour: what the chosen head attends to from the outlined token; "
            f"click a token to ask from there. Effects are of {target.in_words(opened.model)}."
        )
    )


navigation.through_app()
main()
