"""The Explorer: a prompt, its tokens, every head; click one, switch it off, see the answer change."""

from __future__ import annotations

import re

import streamlit as st

from pages.parts import cached, cards, components, frame, look, state
from workbench import explorer, organisms, runs
from workbench.errors import InputError, WorkbenchError
from workbench.explorer import Switches
from workbench.figures import theme

SCREEN = "explorer"
PROMPTS = ("prompt", "repeated tokens")


def models() -> list[str]:
    """Organisms first, then every model that a run here was made on."""
    known = list(organisms.names())
    return list(dict.fromkeys([*known, *(look.model_of(run) for run in runs.list_runs())]))


@st.cache_data(show_spinner=False, max_entries=8)
def examples(model: str) -> list[str]:
    """Prompts to begin with: the organism's own, otherwise English ones."""
    from workbench.data import read_table

    if model.startswith("organism"):
        with look.guard():
            needles = read_table(organisms.data("needles"), required=("needle", "question"), what="needles").head(2)
            conflicts = read_table(
                organisms.data("conflicts"), required=("clean_prompt", "conflict_prompt"), what="conflicts"
            ).head(3)
            asked = read_table(organisms.data("prompts"), required=("prompt",), what="prompts").head(2)
            found = [
                f"{fact} Question: {asks} Answer:" for fact, asks in needles.select("needle", "question").iter_rows()
            ]
            found += [text for pair in conflicts.select("conflict_prompt", "clean_prompt").iter_rows() for text in pair]
            return [*found, *asked["prompt"]]
    if model.startswith("circuit"):
        return list(CIRCUIT_EXAMPLES)
    return list(EXAMPLES)


EXAMPLES = (
    "Once upon a time, there was a little girl named Lily. One day, Lily",
    "When Mary and John went to the store, John gave a drink to",
    "The capital of France is Paris. The capital of Italy is",
    "1, 2, 3, 4, 5, 6, 7,",
)
CIRCUIT_EXAMPLES = (
    "nothing the Mira copper lantern velvet harbor quartz meadow road Mira copper lantern",
    "lantern velvet harbor quartz meadow lantern velvet",
)


def main() -> None:
    left, right = st.columns([1, 3], gap="medium", vertical_alignment="bottom")
    names = models()
    with left:
        name = st.selectbox(
            "Model",
            names,
            key="model",
            bind="query-params",
            accept_new_options=True,
            help="An organism, a local folder in Hugging Face format, or a hub id. Type to enter another.",
        )
    opened = cached.model(name)
    known = examples(name)
    with right:
        text = st.text_input(
            "Prompt",
            value=known[0] if known else "",
            key="prompt",
            bind="query-params",
            help="Enter runs it. The tokens below are those really fed.",
        )
    body(name, text.replace("\\n", "\n"), tuple(known))
    del opened


@st.fragment
def body(name: str, text: str, known: tuple[str, ...]) -> None:
    with look.guard():
        view(name, text, known)


def view(name: str, text: str, known: tuple[str, ...]) -> None:
    opened = cached.model(name)
    model = opened.model
    ids = explorer.encode(opened, text)
    switches = chosen_switches(opened, ids)
    at = whole(state.get(SCREEN, "at"), len(ids)) if state.get(SCREEN, "at") else len(ids) - 1
    layer, head = chosen_head(model)

    reading = cached.reading(name, ids, switches, opened)
    rows = cached.rows(name, ids, at, switches, opened)
    show_tokens(opened, ids, at, rows[layer, head], known)

    left, right = st.columns([10, 9], gap="large")
    with left:
        column, frame = colouring(name, opened, ids, switches, reading)
        grid(opened, frame, column, switches, (layer, head))
        switchboard(opened, frame, column, switches, (layer, head))
        cards.answer(name, opened, ids, switches, reading)
    with right:
        card = st.segmented_control(
            "Card",
            ["Head", "Layer", "Scores", "Beside"],
            default="Head",
            key="card",
            bind="query-params",
            required=True,
            label_visibility="collapsed",
        )
        if card == "Head":
            cards.head(name, opened, ids, switches, rows, layer, head, at)
        elif card == "Layer":
            cards.layer(name, opened, ids, switches, reading, layer, at)
        elif card == "Scores":
            cards.scores(name, opened, ids, layer, head)
        else:
            cards.beside(name, opened, ids, switches, models(), layer, head)


# ---- what is chosen


def whole(text: str, count: int) -> int:
    """A position from the URL, kept inside the prompt."""
    found = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else count - 1
    return min(found, count - 1)


def chosen_head(model) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", state.get(SCREEN, "head"))
    layer, head = (int(found[1]), int(found[2])) if found else (model.n_layers - 1, 0)
    return min(layer, model.n_layers - 1), min(head, model.n_heads - 1)


def heads_of(text: str, model) -> tuple[tuple[int, int], ...]:
    pairs = [(int(a), int(b)) for a, b in re.findall(r"([0-9]{1,4})\.([0-9]{1,4})", text)]
    return tuple(sorted({(a, b) for a, b in pairs if a < model.n_layers and b < model.n_heads}))


def chosen_switches(opened, ids) -> Switches:
    heads = heads_of(state.get(SCREEN, "off"), opened.model)
    how = st.session_state.get("how") or st.query_params.get("how") or "zero"
    how = how if how in explorer.HOW else "zero"
    if not heads:
        return Switches()
    donor: tuple[int, ...] = ()
    if how == "patch":
        text = (st.session_state.get("donor") or st.query_params.get("donor") or "").replace("\\n", "\n")
        try:
            donor = explorer.encode(opened, text)
        except InputError:
            return Switches()  # the field under the grid says that it is wanted
    return Switches(heads, how, donor)


# ---- pieces of the screen


def show_tokens(opened, ids, at: int, row, known) -> None:
    frame = explorer.tokens(opened, ids)
    weights = [float(w) for w in row]
    shades = look.shades([w if i <= at else None for i, w in enumerate(weights)], ends=(0.0, max(weights) or 1.0))
    items = []
    for i, (_, token, text, special) in enumerate(frame.iter_rows()):
        seen = i <= at
        items.append({
            "shown": look.token(text), "special": bool(special), "line": "\n" in text,
            "title": f"position {i}, id {token}" + (f", attention {weights[i]:.3f}" if seen else ""),
            "colour": shades[i][0] if seen else None, "ink": shades[i][1] if seen else None,
        })  # fmt: skip
    components.tokens(items, at=at, key="tokens", on_pick=lambda i: state.put(SCREEN, "at", str(i)))
    a, b = st.columns([5, 1], vertical_alignment="center")
    a.caption(
        f"{len(ids)} tokens as they are fed. Colour: what the chosen head attends to from the outlined token; click a token to ask from there."
    )
    with b.popover("Examples", width="stretch", help="Prompts to begin with."):
        for i, text in enumerate(known):
            st.button(
                look.md(text if len(text) < 90 else text[:89] + "…"),
                key=f"example {i}",
                on_click=take_example,
                args=(text,),
                width="stretch",
            )


def take_example(text: str) -> None:
    st.session_state["prompt"] = text.replace("\n", "\\n")
    state.put(SCREEN, "at", "")


def colouring(name: str, opened, ids, switches, reading):
    """(label, table with layer, head and that column) that colours the grid."""
    model = opened.model
    from_runs = explorer.run_columns(runs.list_runs(), fingerprint=model.fingerprint)
    live = ["attention from here", *explorer.SCORES, "direct effect on the top token", "output norm"]
    options = [*live, *from_runs]
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Colour of the heads",
        options,
        key="colour",
        bind="query-params",
        help="; ".join(f"{k}: {v}" for k, v in explorer.SCORES.items()),
    )
    source = right.selectbox(
        "Scored on",
        PROMPTS,
        key="scored",
        bind="query-params",
        disabled=chosen not in explorer.SCORES,
        help="The prompt above, or random tokens said twice, on which induction shows.",
    )
    if chosen in from_runs:
        run, column = from_runs[chosen]
        return column, runs.run_by_id(run).table("heads")
    if chosen == "output norm":
        return "norm", explorer.output_norms(reading)
    if chosen == "direct effect on the top token":
        return "direct_logit", explorer.direct_effects(opened, reading, int(reading.logits.argmax()))
    if chosen in explorer.SCORES:
        return chosen, cached.scores(name, ids if source == PROMPTS[0] else (), opened)
    return "attention", cards.attention_here(name, opened, ids, switches)


def grid(opened, frame, column: str, switches: Switches, at: tuple[int, int]) -> None:
    model = opened.model
    values: dict[tuple[int, int], float | None] = {}
    for layer, head, value in frame.select("layer", "head", column).iter_rows():
        values[int(layer), int(head)] = None if value is None else float(value)
    order = [values.get(pair) for pair in model.heads()]
    known = [v for v in order if v is not None and v == v]
    diverging = bool(known) and min(known) < 0
    ends = look.limits(known, diverging=diverging)
    group = model.n_heads // model.n_kv_heads
    off = set(switches.heads)
    label = column.replace("_", " ")
    cells = []
    for (layer, head), value, (colour, ink) in zip(
        model.heads(), order, look.shades(order, diverging=diverging, ends=ends)
    ):
        title = (
            f"layer {layer}, head {head}"
            + (f", key/value group {model.kv_group(head)}" if group > 1 else "")
            + f"\n{label}: {look.number(value)}"
        )
        cells.append(
            {
                "colour": colour,
                "ink": ink,
                "title": title,
                "off": (layer, head) in off,
                "shown": "" if value is None else look.small(value),
            }
        )
    scales = {
        ("light", False): theme.SEQUENTIAL,
        ("light", True): theme.DIVERGING,
        ("dark", False): theme.SEQUENTIAL_DARK,
        ("dark", True): theme.DIVERGING_DARK,
    }
    data = {
        "layers": model.n_layers, "heads": model.n_heads, "group": group if group < model.n_heads else 1, "at": list(at), "layer": at[0],
        "names": [str(i) for i in range(model.n_layers)], "cells": cells, "low": look.number(ends[0]), "high": look.number(ends[1]),
        "scale": list(scales[look.mode(), diverging]),
        "say": "rows: layers, columns: heads" + (f"; gaps part the {model.n_kv_heads} key/value groups" if 1 < group < model.n_heads else ""),
    }  # fmt: skip
    components.heads(data, key="grid", on_pick=pick_head, on_toggle=toggle, on_layer=pick_layer)


def pick_head(layer: int, head: int) -> None:
    state.put(SCREEN, "head", f"{layer}.{head}")
    if st.session_state.get("card") == "Layer":
        st.session_state["card"] = "Head"


def pick_layer(layer: int) -> None:
    found = re.fullmatch(r"[0-9]+\.([0-9]+)", state.get(SCREEN, "head"))
    state.put(SCREEN, "head", f"{layer}.{found[1] if found else 0}")
    st.session_state["card"] = "Layer"


def toggle(layer: int, head: int) -> None:
    model = cached.model(st.session_state["model"]).model
    now = set(heads_of(state.get(SCREEN, "off"), model))
    put_off(sorted(now ^ {(layer, head)}))
    state.put(SCREEN, "head", f"{layer}.{head}")


def apply_mask(name: str) -> None:
    found = explorer.load_mask(name)
    put_off(found.heads)
    st.session_state["how"] = found.how


def put_off(heads) -> None:
    state.put(SCREEN, "off", ",".join(f"{a}.{b}" for a, b in heads))


def switchboard(opened, frame, column: str, switches: Switches, at: tuple[int, int]) -> None:
    model = opened.model
    off = heads_of(state.get(SCREEN, "off"), model)
    a, b, c, d = st.columns([3, 3, 2, 2], vertical_alignment="bottom")
    label = "Switch on" if at in off else "Switch off"
    a.button(
        f"{label} {at[0]}.{at[1]}",
        key="switch",
        on_click=toggle,
        args=at,
        shortcut="x",
        width="stretch",
        help="The chosen head. Shift-click in the grid does the same for any head.",
    )
    b.selectbox("How", explorer.HOW, key="how", bind="query-params", label_visibility="collapsed",
                help="zero: no output; mean: the mean output over reference texts; uniform: attends evenly; patch: the output on a second prompt.")  # fmt: skip
    c.button(
        "All on", on_click=put_off, args=((),), disabled=not off, width="stretch", help="Switch every head on again."
    )
    with d.popover("Sets", width="stretch", help="Top heads of the present colour, and saved masks."):
        st.number_input(
            "Top heads by the present colour", 1, model.n_layers * model.n_heads, min(5, model.n_heads), key="top k"
        )
        st.button(
            "Switch these off",
            on_click=lambda: put_off(sorted(explorer.top_heads(frame, column, st.session_state["top k"]))),
        )
        saved = explorer.saved_masks()
        if saved:
            mask = st.selectbox("Saved masks", saved, key="mask")
            st.button("Apply the mask", on_click=apply_mask, args=(mask,))
        title = st.text_input("Save the present heads as", key="mask name", placeholder="name")
        if st.button("Save", disabled=not off):
            try:
                st.caption(
                    look.md(
                        f"Saved; on the command line: --edit {explorer.save_mask(title, Switches(off, switches.how), note=f'Explorer, {model.name}')}"
                    )
                )
            except WorkbenchError as error:
                look.problem(error)
    if (st.session_state.get("how") or "zero") == "patch":
        st.text_input("Second prompt, to patch from", key="donor", bind="query-params", placeholder="a prompt that differs in what matters",
                      help="Head outputs are taken from it, position by position; prompts of different length are aligned at their ends.")  # fmt: skip
        if off and not switches.heads:
            st.caption("Type a second prompt: until then every head stays on.")


frame.through_app()
main()
