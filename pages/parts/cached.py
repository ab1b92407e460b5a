"""What the Explorer keeps between clicks, within bounds: models, passes, rows, scores. Nothing is copied or pickled."""

from __future__ import annotations

import streamlit as st

from workbench import explorer
from workbench.explorer import Opened, Switches


@st.cache_resource(max_entries=2, show_spinner="Loading the model")
def model(name: str, dtype: str = "float32", device: str | None = None) -> Opened:
    return explorer.open_model(name, dtype=dtype, device=device)


# The model goes in as `_opened` (not hashed) beside `who`, the name it was opened under.
@st.cache_resource(max_entries=8, show_spinner=False)
def reading(who: str, ids: tuple[int, ...], switches: Switches, _opened: Opened):
    return explorer.read(_opened, ids, switches)


@st.cache_resource(max_entries=32, show_spinner=False)
def rows(who: str, ids: tuple[int, ...], position: int, switches: Switches, _opened: Opened):
    return explorer.attention_rows(_opened, ids, position, switches)


@st.cache_resource(max_entries=16, show_spinner=False)
def pattern(who: str, ids: tuple[int, ...], layer: int, head: int, switches: Switches, _opened: Opened):
    return explorer.pattern(_opened, ids, layer, head, switches)


@st.cache_resource(max_entries=16, show_spinner=False)
def scores(who: str, ids: tuple[int, ...], _opened: Opened):
    """Live scores on the prompt; on repeated random tokens where ``ids`` is empty."""
    return explorer.head_scores(_opened, [ids] if ids else explorer.repeated_tokens(_opened))


@st.cache_resource(max_entries=32, show_spinner=False)
def written(who: str, ids: tuple[int, ...], switches: Switches, most: int, _opened: Opened) -> str:
    return explorer.write_on(_opened, ids, switches, most=most)


@st.cache_resource(max_entries=16, show_spinner=False)
def lens(who: str, ids: tuple[int, ...], switches: Switches, _opened: Opened):
    return explorer.lens(_opened, reading(who, ids, switches, _opened))
