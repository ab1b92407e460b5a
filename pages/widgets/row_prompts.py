"""A table of a run whose rows open in the Explorer as the prompt."""

from __future__ import annotations

import polars as pl
import streamlit as st

from pages.widgets import cached, navigation, styling
from workbench.core.wording import cut
from workbench.explorer import head_sets, row_prompts
from workbench.runs.folder import Run


def table(run: Run, name: str, frame: pl.DataFrame, *, key: str) -> None:
    """The table; below it, once a row is selected, its prompt and the button that opens it."""
    if not head_sets.model_info(run).get("name") or not row_prompts.offers(run, name, frame):
        styling.scroll_table(frame, key=key)
        return
    picked = styling.scroll_table(frame, key=key, on_select="rerun", selection_mode="single-row")
    rows = [i for i in picked.selection.rows if i < frame.height]
    if not rows:
        st.caption("Select a row, at its left edge, to open its prompt in the Explorer.")
        return
    row = frame.row(rows[0], named=True)
    found = row_prompts.prompts_of(run, name, row, frame, read=cached.table)
    if not found:
        st.caption("The run did not keep the prompt of this row.")
        return
    by_label = {prompt.label: prompt for prompt in found}
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    label = left.selectbox(
        "Prompt of the row",
        list(by_label),
        key=f"{key} prompt",
        help="As it was fed: the very tokens of the run. A column: its text alone.",
    )
    chosen = by_label.get(label, found[0])
    if chosen.text:
        st.caption(styling.md(cut(chosen.text, 200)))
    if right.button(
        "Open as prompt",
        key=f"{key} open",
        width="stretch",
        help="In the Explorer, with the model of this run.",
    ):
        open_prompt(run, chosen)


def open_prompt(run: Run, prompt: row_prompts.RowPrompt) -> None:
    """Go to the Explorer with a prompt; where it is not all the same as in the run, with a sentence that says so."""
    about = head_sets.model_info(run)
    opened = cached.model(str(about["name"]))
    text, note = row_prompts.text_of(opened.model, prompt)
    if about.get("fingerprint") not in (None, opened.model.fingerprint):
        note = f"{note} The run's model had other weights than {about['name']} has now.".strip()
    navigation.to_explorer_with(run, text, note)
