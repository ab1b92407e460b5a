"""Room for a figure on a narrow screen: one of several panels keeps the width that its axis titles need, and scrolls
sideways in a box of its own, as its exported page does."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import streamlit as st

LEAST = {1: 0, 2: 560, 3: 780, 4: 980}  # pixels for so many panels in a row
TABLE = 3  # a table of words needs what three panels need
CSS = "@media (max-width: 900px) {{ {} }}".format(
    " ".join(
        f'[class*="st-key-wide{n}-"] {{overflow-x: auto; max-width: 100%}} '
        f'[class*="st-key-wide{n}-"] > * {{min-width: {width}px}}'
        for n, width in LEAST.items()
        if width
    )
)


def in_a_row(fig: Any) -> int:
    """How many panels stand beside each other in a figure, from 1 to 4."""
    if isinstance(fig.layout.meta, dict) and "words" in fig.layout.meta:
        return TABLE
    starts = {round(axis.domain[0], 2) for axis in fig.select_xaxes() if axis.domain}
    return min(max(len(starts), 1), max(LEAST))


def box(fig: Any, key: str) -> AbstractContextManager:
    """The place to draw a figure in."""
    return st.container(key=f"wide{in_a_row(fig)} {key}")
