"""In which precision the Explorer's numbers are computed: said, and chosen."""

from __future__ import annotations

import streamlit as st

from pages.widgets import styling
from workbench.explorer.opened_model import Opened
from workbench.models.precision import CHOICES


def show(opened: Opened) -> None:
    """The precision of the model above, and the others; a choice is read when the model is opened (`cached.model`)."""
    left, right = st.columns([3, 9], vertical_alignment="bottom")
    left.selectbox(
        "Precision",
        CHOICES,
        key="dtype",
        bind="query-params",
        help="Of the weights, and of what they compute; read-outs are in float32. Automatic: float32 on a "
        "CPU, unless it would take more than 60 % of the free memory; else as stored.",
    )
    dtype = str(opened.model.dtype).removeprefix("torch.")
    right.caption(styling.md(f"Weights in {dtype} on {opened.model.device}, next-token scores in float32."))
