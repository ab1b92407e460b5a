"""What is switched in the Explorer: read from the URL, changed by clicks in the grid and by the row under it."""

from __future__ import annotations

import re

import streamlit as st

from pages.widgets import cached, feature_cards, styling, url_state
from workbench.core.errors import InputError, WorkbenchError
from workbench.explorer import head_sets, opened_model
from workbench.explorer.switches import HOW, Switches

SCREEN = "explorer"


def heads_of(text: str, model) -> tuple[tuple[int, int], ...]:
    pairs = [(int(a), int(b)) for a, b in re.findall(r"([0-9]{1,4})\.([0-9]{1,4})", text)]
    return tuple(sorted({(a, b) for a, b in pairs if a < model.n_layers and b < model.n_heads}))


def mlps_of(text: str, model) -> tuple[int, ...]:
    return tuple(sorted({int(a) for a in re.findall(r"[0-9]{1,4}", text) if int(a) < model.n_layers}))


def chosen(opened) -> Switches:
    heads = heads_of(url_state.get(SCREEN, "off"), opened.model)
    mlps = mlps_of(url_state.get(SCREEN, "mlps"), opened.model)
    how = st.session_state.get("how") or st.query_params.get("how") or "zero"
    how = how if how in HOW else "zero"
    features, autoencoder = feature_cards.switched(opened)
    if not heads and not mlps:
        return Switches(features=features, autoencoder=autoencoder)
    donor: tuple[int, ...] = ()
    if how == "patch":
        text = (st.session_state.get("donor") or st.query_params.get("donor") or "").replace("\\n", "\n")
        try:
            donor = opened_model.encode(opened, text)
        except InputError:
            # the field under the grid says that it is wanted
            return Switches(features=features, autoencoder=autoencoder)
    if how == "uniform":
        mlps = ()  # the line under the grid says that only heads attend
    return Switches(heads, how, donor, mlps, features, autoencoder)


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
    for key in ("mlps", "features"):
        url_state.put(SCREEN, key, "")


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
    return head_sets.saved_masks() | cached.heads_in_runs(model.fingerprint, str(model.name)).masks


def put_off(heads) -> None:
    url_state.put(SCREEN, "off", ",".join(f"{a}.{b}" for a, b in heads))


def switch_top(frame, column: str) -> None:
    """Switch off the top heads of a column; none, with the reason, where no head stands out in it."""
    found = head_sets.top_heads(frame, column, st.session_state["top k"])
    if found:
        put_off(sorted(found))
    else:
        st.session_state["no top heads"] = head_sets.none_because(frame, column)


def show(opened, frame, column: str, switches: Switches, at: tuple[int, int]) -> None:
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
        disabled=not off and not mlps and not switches.features,
        width="stretch",
        help="Switch every head, MLP and feature on again.",
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
        if (off or mlps) and not (switches.heads or switches.mlps):
            st.caption("Type a second prompt: until then everything stays on.")
    if mlps and switches.heads and not switches.mlps:
        st.caption("Only heads can attend uniformly: MLPs stay on. Zero, mean and patch switch them, too.")
