"""The heads that are selected, to be switched, patched, shown or kept together: in the URL, as `head_text` writes
them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import streamlit as st

from pages.widgets import cached, url_state
from workbench.explorer import head_text
from workbench.explorer.opened_model import Head

SCREEN = "explorer"
KEY = "selected"


def selected(model) -> tuple[Head, ...]:
    """Those of the URL that this model has, in order."""
    return head_text.read_heads(url_state.get(SCREEN, KEY), layers=model.n_layers, heads=model.n_heads)


def put(heads: Iterable[Head]) -> None:
    """Select these in place of the others."""
    url_state.put(SCREEN, KEY, head_text.write_heads(heads))


def take(numbers: Sequence[int]) -> None:
    """Select the heads with these numbers (layer · heads + head), as the grid tells them."""
    per_layer = cached.model(st.session_state["model"]).model.n_heads
    put(divmod(i, per_layer) for i in numbers)


def in_words(heads: Sequence[Head], most: int = 60) -> str:
    """``3 heads selected: 1.0-2``, cut after `most` characters."""
    text = head_text.write_heads(heads).replace(",", ", ")
    return f"{len(heads)} head{'' if len(heads) == 1 else 's'} selected: " + (
        text if len(text) <= most else text[:most].rsplit(",", 1)[0] + ", …"
    )
