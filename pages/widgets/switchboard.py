"""What is switched in the Explorer, and which head is chosen: read from the URL, changed by clicks."""

from __future__ import annotations

import re

import streamlit as st

from pages.widgets import cached, url_state
from workbench.core.errors import InputError
from workbench.explorer import head_text, opened_model
from workbench.explorer.switches import HOW, Switches

SCREEN = "explorer"


def heads_of(text: str, model) -> tuple[tuple[int, int], ...]:
    return head_text.read_heads(text, layers=model.n_layers, heads=model.n_heads)


def mlps_of(text: str, model) -> tuple[int, ...]:
    return tuple(sorted({int(a) for a in re.findall(r"[0-9]{1,4}", text) if int(a) < model.n_layers}))


def chosen(opened) -> Switches:
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


def put_off(heads) -> None:
    url_state.put(SCREEN, "off", head_text.write_heads(heads))
