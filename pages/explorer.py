"""The Explorer: a prompt, its tokens, every head; click one, switch it off, see the answer change."""

from __future__ import annotations

import re

import streamlit as st

from pages.widgets import (
    cached,
    components,
    head_cards,
    head_cells,
    layer_card,
    map_cards,
    navigation,
    styling,
    switchboard,
    url_state,
)
from workbench.core.wording import cut
from workbench.explorer import beside_control, head_sets, opened_model, readings
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target

SCREEN = "explorer"
PROMPTS = ("prompt", "repeated tokens")
HERE = "largest attention weight from the outlined token"
EFFECT = "direct effect on the target"
# Shares and frequencies are drawn on the whole scale from 0 to 1, so that colours mean the same on every prompt and
# model.
SHARES = ("induction", "previous_token", "duplicate_token", "first_token")
KEYS = (
    ("h, l", "head to the left, to the right"),
    ("j, k", "layer below, above"),
    ("arrows", "the same in the grid, or along the tokens, once one is chosen"),
    ("x", "switch the chosen head off or on"),
    ("space, shift-click", "the same in the grid"),
    ("Ctrl+Enter", "run, on a probe's screen"),
    ("s", "stop the run in progress there"),
    ("Ctrl+E", "download the figure as PDF there"),
)


def main() -> None:
    cached.look_again()
    left, right, one, two, more = st.columns([9, 22, 6, 6, 6], gap="small", vertical_alignment="bottom")
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
        text = st.text_input(
            "Prompt",
            value=shown_as(known[0]) if known else "",
            key="prompt",
            bind="query-params",
            help="Enter runs it. The tokens below are those really fed. A line break is written \\n.",
        )
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
                on_click=take_example,
                args=(example,),
                width="stretch",
                help="Put this prompt in.",
            )
        st.html(styling.heading("keys") + styling.table(KEYS, [("", "text"), ("", "text")]))
    body(name, text.replace("\\n", "\n"))


def shown_as(text: str) -> str:
    """A prompt as one line, as the box holds it."""
    return text.replace("\n", "\\n")


def new_model() -> None:
    """Another model has other words: an example that was not touched gives way to one of its own."""
    before = st.session_state.get("model before")
    if before and st.session_state.get("prompt") in [shown_as(text) for text in cached.prompts(before)]:
        take_example(cached.prompts(st.session_state["model"])[0])
    for key in ("head", "off", "mlps", "at"):
        url_state.put(SCREEN, key, "")


def take_example(text: str) -> None:
    st.session_state["prompt"] = shown_as(text)
    url_state.put(SCREEN, "at", "")


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
    show_tokens(opened, ids, at, rows[layer, head], target)

    left, right = st.columns([10, 9], gap="large")
    with left:
        column, frame, share = colouring(name, opened, ids, switches, reading, rows, tables, target, at)
        head_cells.show(opened, frame, column, switches, (layer, head), share=share)
        switchboard.show(opened, frame, column, switches, (layer, head))
        head_cards.answer(name, opened, ids, switches, reading)
    with right:
        card = st.segmented_control(
            "Card",
            ["Head", "Layer", "Scores", "Beside"],
            default="Head",
            key="card",
            bind="query-params",
            required=True,
            label_visibility="collapsed",
            help="The chosen head; its layer; its scores; a second prompt or model beside this one.",
        )
        if why:
            st.caption(styling.md(f"No head to open on, so the first of the last layer. {why}"))
        if card == "Head":
            head_cards.head(name, opened, ids, switches, rows, layer, head, at, tables)
        elif card == "Layer":
            layer_card.show(name, opened, ids, switches, reading, layer, at)
        elif card == "Scores":
            head_cards.scores(name, opened, ids, layer, head)
        else:
            head_cards.beside(name, opened, ids, switches, cached.model_names(), layer, head)
    map_cards.show(map_cards.Looking(name, opened, ids, switches, target, layer, head, at))


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
    frame = opened_model.tokens(opened, ids)
    weights = [float(w) for w in row]
    shades = styling.shades([w if i <= at else None for i, w in enumerate(weights)], ends=(0.0, 1.0))
    items = []
    for i, (_, token, text, special) in enumerate(frame.iter_rows()):
        seen = i <= at
        items.append(
            {
                "shown": styling.token(text),
                "special": bool(special),
                "line": "\n" in text,
                "title": f"position {i}, id {token}" + (f", attention {weights[i]:.3f}" if seen else ""),
                "colour": shades[i][0] if seen else None,
                "ink": shades[i][1] if seen else None,
            }
        )
    components.tokens(items, at=at, key="tokens", on_pick=lambda i: url_state.put(SCREEN, "at", str(i)))
    count = opened_model.unknown(opened, ids)
    if count:
        st.warning(
            f"{count} of {len(ids)} tokens are unknown to this tokenizer: the model does not read these "
            f"words. Examples has prompts in its own."
        )
    st.caption(
        styling.md(
            f"{len(ids)} tokens as they are fed. Colour: what the chosen head attends to from the outlined token; "
            f"click a token to ask from there. Effects are of {target.in_words(opened.model)}."
        )
    )


def colouring(name: str, opened, ids, switches, reading, rows, tables, target: Target, at: int):
    """(column, table with layer, head and that column, whether it is a share) that colours the grid."""
    from_runs = cached.heads_in_runs(opened.model.fingerprint, str(opened.model.name)).columns
    wanted = st.query_params.get("colour", "")
    if (label := head_sets.whole_label(wanted, from_runs)) != wanted:
        from_runs = {**from_runs, wanted: from_runs[label]}  # an old link: its name for the column is one, too
    live = [HERE, *readings.SCORES, EFFECT, "output norm"]
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Colour of the heads",
        [*live, *from_runs],
        key="colour",
        bind="query-params",
        help="Type to search: a probe, a score, a seed, a date. "
        + "; ".join(f"{k}: {v}" for k, v in readings.SCORES.items()),
    )
    source = right.selectbox(
        "Scored on",
        PROMPTS,
        key="scored",
        bind="query-params",
        disabled=chosen not in readings.SCORES,
        help="The prompt above, or likely words in a random order said twice, on which induction shows and is held "
        "against a control.",
    )
    missing = cached.left_out(opened.model.fingerprint, str(opened.model.name))
    if missing:
        st.caption(styling.md(missing))
    if chosen in from_runs:
        identifier, column = from_runs[chosen]
        run, frame = next((run, frame) for run, frame in tables if run.id == identifier)
        return column, frame, head_sets.is_share(run, column)
    if chosen == "output norm":
        return "norm", readings.output_norms(reading), False
    if chosen == EFFECT:
        st.caption(
            styling.md(f"Change of {target.in_words(opened.model)} at token {at} by what each head writes there.")
        )
        return "direct_effect", cached.direct_effects(name, ids, switches, target, at, opened), False
    if chosen in readings.SCORES:
        found = cached.scores(name, ids if source == PROMPTS[0] else (), opened)
        if beside_control.has_control(found, chosen):
            more = f" Score them on {PROMPTS[1]}." if source == PROMPTS[0] else ""
            st.caption(styling.md(beside_control.in_words(found, chosen) + more))
        return chosen, found, chosen in SHARES
    return "attention", readings.largest(opened, rows), True


navigation.through_app()
main()
