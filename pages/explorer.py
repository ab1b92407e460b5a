"""The Explorer: a prompt, its tokens, every head; click one, switch it off, see the answer change."""

from __future__ import annotations

import re

import streamlit as st

from pages.widgets import (
    cached,
    components,
    head_cards,
    map_cards,
    navigation,
    prompt_box,
    styling,
    url_state,
)
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.wording import number, two_decimals
from workbench.explorer import beside_control, head_sets, opened_model, readings
from workbench.explorer.switches import HOW, Switches
from workbench.explorer.targets import Target
from workbench.figures import style as theme

SCREEN = "explorer"
PROMPTS = ("prompt", "repeated tokens")
HERE = "largest attention weight from the outlined token"
EFFECT = "direct effect on the target"
# Shares and frequencies are drawn on the whole scale from 0 to 1, so that colours mean the same on every prompt and
# model.
SHARES = ("induction", "previous_token", "duplicate_token", "first_token")


def main() -> None:
    body(*prompt_box.show())


@st.fragment
def body(name: str, text: str) -> None:
    with styling.guard():
        opened = cached.model(name)
        with st.container(key="view"):
            view(name, opened, text)


def view(name: str, opened, text: str) -> None:
    ids = opened_model.encode(opened, text)
    switches = chosen_switches(opened)
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
        grid(opened, frame, column, switches, (layer, head), share=share)
        switchboard(opened, frame, column, switches, (layer, head))
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
            head_cards.layer(name, opened, ids, switches, reading, layer, at)
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


def heads_of(text: str, model) -> tuple[tuple[int, int], ...]:
    pairs = [(int(a), int(b)) for a, b in re.findall(r"([0-9]{1,4})\.([0-9]{1,4})", text)]
    return tuple(sorted({(a, b) for a, b in pairs if a < model.n_layers and b < model.n_heads}))


def mlps_of(text: str, model) -> tuple[int, ...]:
    return tuple(sorted({int(a) for a in re.findall(r"[0-9]{1,4}", text) if int(a) < model.n_layers}))


def chosen_switches(opened) -> Switches:
    heads = heads_of(url_state.get(SCREEN, "off"), opened.model)
    mlps = mlps_of(url_state.get(SCREEN, "mlps"), opened.model)
    how = st.session_state.get("how") or st.query_params.get("how") or "zero"
    how = how if how in HOW else "zero"
    if not heads and not mlps:
        return Switches()
    donor: tuple[int, ...] = ()
    if how == "patch":
        text = (st.session_state.get("donor") or st.query_params.get("donor") or "").replace("\\n", "\n")
        try:
            donor = opened_model.encode(opened, text)
        except InputError:
            return Switches()  # the field under the grid says that it is wanted
    if how == "uniform":
        mlps = ()  # the line under the grid says that only heads attend
    return Switches(heads, how, donor, mlps)


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
    prompt_box.said_of(opened)
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
    from_runs = head_sets.run_columns(tables)
    live = [HERE, *readings.SCORES, EFFECT, "output norm"]
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Colour of the heads",
        [*live, *from_runs],
        key="colour",
        bind="query-params",
        help="; ".join(f"{k}: {v}" for k, v in readings.SCORES.items()),
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


def grid(opened, frame, column: str, switches: Switches, at: tuple[int, int], *, share: bool) -> None:
    model = opened.model
    values: dict[tuple[int, int], float | None] = {}
    beside: dict[tuple[int, int], str] = {}
    parts = [part for part in ("control", "difference") if f"{column}_{part}" in frame.columns]
    shown = frame.select("layer", "head", column, *(f"{column}_{part}" for part in parts))
    for layer, head, value, *rest in shown.iter_rows():
        values[int(layer), int(head)] = None if value is None else float(value)
        beside[int(layer), int(head)] = "".join(f"\n{part}: {number(v)}" for part, v in zip(parts, rest))
    order = [values.get(pair) for pair in model.heads()]
    known = [v for v in order if v is not None and v == v]
    diverging = bool(known) and min(known) < 0
    whole = share and all(0 <= v <= 1 for v in known)
    ends = (0.0, 1.0) if whole else styling.limits(known, diverging=diverging)
    group = model.n_heads // model.n_kv_heads
    off = set(switches.heads)
    label = column.replace("_", " ")
    cells = []
    for (layer, head), value, (colour, ink) in zip(
        model.heads(), order, styling.shades(order, diverging=diverging, ends=ends)
    ):
        title = (
            f"layer {layer}, head {head}"
            + (f", key/value group {model.kv_group(head)}" if group > 1 else "")
            + f"\n{label}: {number(value)}{beside.get((layer, head), '')}"
        )
        cells.append(
            {
                "colour": colour,
                "ink": ink,
                "title": title,
                "off": (layer, head) in off,
                "shown": "" if value is None else two_decimals(value),
            }
        )
    scales = {
        ("light", False): theme.SEQUENTIAL,
        ("light", True): theme.DIVERGING,
        ("dark", False): theme.SEQUENTIAL_DARK,
        ("dark", True): theme.DIVERGING_DARK,
    }
    data = {
        "layers": model.n_layers,
        "heads": model.n_heads,
        "group": group if group < model.n_heads else 1,
        "at": list(at),
        "layer": at[0],
        "names": [str(i) for i in range(model.n_layers)],
        "mlps": [layer in switches.mlps for layer in range(model.n_layers)],
        "cells": cells,
        "low": number(ends[0]),
        "high": number(ends[1]),
        "scale": list(scales[styling.mode(), diverging]),
        "say": "rows: layers, columns: heads"
        + (f"; gaps part the {model.n_kv_heads} key/value groups" if 1 < group < model.n_heads else ""),
    }
    components.heads(
        data,
        key="grid",
        on_pick=pick_head,
        on_toggle=toggle,
        on_layer=lambda layer: pick_layer(layer, at[1]),
        on_mlp=toggle_mlp,
    )


def pick_head(layer: int, head: int) -> None:
    url_state.put(SCREEN, "head", f"{layer}.{head}")
    if st.session_state.get("card") == "Layer":
        st.session_state["card"] = "Head"


def pick_layer(layer: int, head: int) -> None:
    url_state.put(SCREEN, "head", f"{layer}.{head}")
    st.session_state["card"] = "Layer"


def toggle(layer: int, head: int) -> None:
    model = cached.model(st.session_state["model"]).model
    now = set(heads_of(url_state.get(SCREEN, "off"), model))
    put_off(sorted(now ^ {(layer, head)}))
    url_state.put(SCREEN, "head", f"{layer}.{head}")


def toggle_mlp(layer: int) -> None:
    model = cached.model(st.session_state["model"]).model
    now = sorted(set(mlps_of(url_state.get(SCREEN, "mlps"), model)) ^ {layer})
    url_state.put(SCREEN, "mlps", ",".join(map(str, now)))


def all_on() -> None:
    put_off(())
    url_state.put(SCREEN, "mlps", "")


def apply_mask(name: str) -> None:
    model = cached.model(st.session_state["model"]).model
    try:
        found = head_sets.load_mask(name, saved_masks(model))
    except InputError as error:
        st.session_state["mask problem"] = str(error)
        return
    put_off(found.heads)
    st.session_state["how"] = found.how


def saved_masks(model):
    return head_sets.saved_masks(cached.run_list(), fingerprint=model.fingerprint)


def put_off(heads) -> None:
    url_state.put(SCREEN, "off", ",".join(f"{a}.{b}" for a, b in heads))


def switch_top(frame, column: str) -> None:
    """Switch off the top heads of a column; none, with the reason, where no head stands out in it."""
    found = head_sets.top_heads(frame, column, st.session_state["top k"])
    if found:
        put_off(sorted(found))
    else:
        st.session_state["no top heads"] = head_sets.none_because(frame, column)


def switchboard(opened, frame, column: str, switches: Switches, at: tuple[int, int]) -> None:
    model = opened.model
    off = heads_of(
        url_state.get(SCREEN, "off"), model
    )  # with a patch that has no donor yet they are chosen, not switched
    mlps = mlps_of(url_state.get(SCREEN, "mlps"), model)
    a, b, c, d = st.columns([3, 2, 2, 2], vertical_alignment="bottom")
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
        on_click=all_on,
        disabled=not off and not mlps,
        width="stretch",
        help="Switch every head and MLP on again.",
    )
    with d.popover("Sets", width="stretch", help="Top heads of the present colour, and saved masks."):
        st.number_input(
            "Top heads by the present colour",
            1,
            model.n_layers * model.n_heads,
            min(5, model.n_heads),
            key="top k",
            help="How many of the heads with the highest value.",
        )
        st.button(
            "Switch these off",
            on_click=lambda: switch_top(frame, column),
            help="In place of the heads that are off now. Of a score with a control, only heads that are above it.",
        )
        if "no top heads" in st.session_state:
            st.caption(styling.md(st.session_state.pop("no top heads")))
        saved = saved_masks(model)
        if saved:
            mask = st.selectbox(
                "Saved masks", list(saved), key="mask", help="Saved here, or the pruned heads of a run on this model."
            )
            st.button(
                "Apply the mask", on_click=apply_mask, args=(mask,), help="In place of the heads that are off now."
            )
            if "mask problem" in st.session_state:
                styling.problem(st.session_state.pop("mask problem"))
        title = st.text_input(
            "Save the present heads as",
            key="mask name",
            placeholder="name",
            help="A file that `--edit` reads. It holds which heads, and zero or uniform.",
        )
        if st.button("Save", disabled=not off, help="Keep the heads that are off now."):
            how = st.session_state.get("how") or "zero"
            try:
                path = head_sets.save_mask(
                    title, Switches(off, how, (), mlps), note=f"Explorer, {model.name}", model=model
                )
                st.caption(styling.md(f"Saved; on the command line: --edit {path}"))
            except WorkbenchError as error:
                styling.problem(error)
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


navigation.through_app()
main()
