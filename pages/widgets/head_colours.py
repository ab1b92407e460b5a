"""What colours the heads: a live reading of the prompt, a live score, or a column of a finished run."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import streamlit as st

from pages.widgets import cached, head_cells, styling
from pages.widgets.map_cards import Looking
from workbench.explorer import beside_control, head_links, head_sets, readings
from workbench.explorer.opened_model import Opened
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.runs.folder import Run

PROMPTS = ("prompt", "repeated tokens")
HERE = "largest attention weight from the outlined token"
EFFECT = "direct effect on the target"
NORM = "output norm"
LIVE = (HERE, *readings.SCORES, EFFECT, NORM)
# Shares and frequencies are drawn on the whole scale from 0 to 1, so that colours mean the same on every prompt and
# model.
SHARES = ("induction", "previous_token", "duplicate_token", "first_token")


def choose(
    looking: Looking, tables: Sequence[tuple[Run, pl.DataFrame]]
) -> tuple[str, pl.DataFrame, bool, head_cells.Links]:
    """(column, table with layer, head and that column, whether it is a share, links between heads) that colours the
    grid; there are links where it is coloured by a run that names some."""
    opened, target, at = looking.opened, looking.target, looking.at
    from_runs = cached.heads_in_runs(opened.model.fingerprint, str(opened.model.name)).columns
    wanted = st.query_params.get("colour", "")
    if (label := head_sets.whole_label(wanted, from_runs)) != wanted:
        from_runs = {**from_runs, wanted: from_runs[label]}  # an old link: its name for the column is one, too
    left, right, scale = st.columns([5, 3, 3], vertical_alignment="bottom")
    with scale:
        head_cells.scale_choice()
    chosen = left.selectbox(
        "Colour of the heads",
        [*LIVE, *from_runs],
        key="colour",
        bind="query-params",
        help="Type to search: a probe, a score, a seed, a date. A run that names links between heads also draws its "
        f"{head_links.MOST} strongest as arrows, from the head that writes to the one that reads. "
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
        return column, frame, head_sets.is_share(run, column), head_links.links_of(run)
    column, found, share = live(
        chosen, looking.name, opened, looking.ids, looking.switches, target, at, repeated=source != PROMPTS[0]
    )
    if chosen == EFFECT:
        st.caption(
            styling.md(f"Change of {target.in_words(opened.model)} at token {at} by what each head writes there.")
        )
    elif chosen in readings.SCORES and beside_control.has_control(found, chosen):
        more = f" Score them on {PROMPTS[1]}." if source == PROMPTS[0] else ""
        st.caption(styling.md(beside_control.in_words(found, chosen) + more))
    return column, found, share, None


def live(
    chosen: str,
    name: str,
    opened: Opened,
    ids: tuple[int, ...],
    switches: Switches,
    target: Target,
    at: int,
    *,
    repeated: bool = False,
) -> tuple[str, pl.DataFrame, bool]:
    """One of `LIVE` of a model on a prompt, scores on repeated tokens if `repeated`: column, table, whether it is a
    share."""
    if chosen == NORM:
        return "norm", readings.output_norms(cached.reading(name, ids, switches, opened)), False
    if chosen == EFFECT:
        return "direct_effect", cached.direct_effects(name, ids, switches, target, at, opened), False
    if chosen in readings.SCORES:
        return chosen, cached.scores(name, () if repeated else ids, opened), chosen in SHARES
    return "attention", readings.largest(opened, cached.rows(name, ids, at, switches, opened)), True
