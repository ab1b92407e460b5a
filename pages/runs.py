"""Every run folder: made here, on the command line or from a notebook. Search, group, look, note, tag, compare,
delete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import polars as pl
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.widgets import cached, navigation, queue_panel, run_view, styling, url_state
from workbench.core.disk_errors import refusals_as_sentences
from workbench.core.errors import InputError, WorkbenchError
from workbench.runs import catalogue as tables
from workbench.runs import execution, notes, removal
from workbench.runs.folder import Run
from workbench.runs.kept_files import KeptFiles

SCREEN = "runs"
NOT_GROUPED = "no groups"


@st.cache_resource(max_entries=1, show_spinner=False)
def kept_notes() -> KeptFiles:
    unreadable = {"tags": [], "note": "notes.json cannot be read"}  # the run's own view says why
    return KeptFiles(
        "notes.json", lambda run: notes.read(run.folder), missing={"tags": [], "note": ""}, unreadable=unreadable
    )


@st.cache_resource(max_entries=1, show_spinner=False)
def kept_summaries() -> KeptFiles:
    return KeptFiles("summary.json", lambda run: run.summary, missing={}, unreadable={})


def main() -> None:
    cached.look_again()
    st.title("Runs")
    queue_panel.show(ended=3)
    found = cached.run_list()
    styling.left_out(cached.unreadable())
    folder = opened_folder()
    if not found and folder is None:
        st.info(
            styling.md(
                "No runs yet. Start one on a probe's screen, or make examples of every probe with `workbench "
                "demo` on the command line; they will be listed here."
            )
        )
        return
    chosen = listed(found)
    if chosen:
        url_state.put(SCREEN, "run", chosen[0].folder.name)
    wanted = chosen[0].folder.name if chosen else url_state.get(SCREEN, "run")
    run = folder if folder is not None and not chosen else (execution.run_by_id(wanted) if wanted else None)
    if run is None:
        st.caption("Select a row to look at a run; several to compare, tag or delete them.")
        return
    st.divider()
    a, b = st.columns([5, 2], gap="large")
    with a:
        st.header(run.probe.replace("-", " ").capitalize())
        run_view.show(run)
    with b:
        annotate(run)
        remove([run], key="one")


# ---- the list


def listed(found: list[Run]) -> list[Run]:
    """The runs that are left by what is searched for, in a table; those of its rows that are chosen."""
    runs, text, place = narrowed(found)
    settings, metrics, group, of = columns(runs, text, place)
    frame = tables.catalogue(
        runs, notes=kept_notes().of, settings=settings, metrics=metrics, summaries=kept_summaries().of
    ).sort("finished", descending=True, maintain_order=True)
    try:
        frame = tables.searched(frame, text)
    except InputError as error:
        styling.problem(error)
    states = st.session_state.get("states") or []
    frame = frame.filter(pl.col("status").is_in(states)) if states else frame
    if group != NOT_GROUPED:
        frame = one_group(frame, group, of)
    shown = f"{frame.height:,} of {len(found):,} runs" if frame.height < len(found) else f"{len(found):,} runs"
    picked = st.dataframe(
        frame,
        hide_index=True,
        height="content" if frame.height < 9 else 300,
        on_select="rerun",
        selection_mode="multi-row",
        key=f"runs table {hash(tuple(frame['id']))}",  # other rows: nothing is chosen
        column_config={**styling.columns_of(frame), "seconds": st.column_config.NumberColumn(format="%.1f")},
    )
    a, b = st.columns([5, 1], vertical_alignment="center")
    a.caption(shown)
    b.download_button(
        "CSV",
        lambda: frame.write_csv().encode(),
        "runs.csv",
        "text/csv",
        on_click="ignore",
        width="stretch",
        help="The rows and columns above.",
    )
    by_id = {run.folder.name: run for run in runs}
    chosen = [by_id[frame["id"][i]] for i in picked.selection.rows if i < frame.height]
    if len(chosen) >= 2:
        several(chosen)
    return chosen


def narrowed(found: list[Run]) -> tuple[list[Run], str, DeltaGenerator]:
    """The runs of the probes that are wanted, what is searched for in them, and the place beside."""
    a, b, c, d = st.columns([6, 4, 4, 3])
    text = a.text_input(
        "Search",
        key="search",
        bind="query-params",
        placeholder="words, seconds>10, seed=3, tags!=example",
        help="Every word must occur in the row. column>number, also >=, <, <=, = and !=, holds any column against a "
        "value: those of the table, every setting and every number of the summaries.",
        label_visibility="collapsed",
    )
    probes = b.multiselect(
        "Probe",
        sorted({run.probe for run in found}),
        key="probes",
        bind="query-params",
        placeholder="all probes",
        label_visibility="collapsed",
        help="Only these probes.",
    )
    c.multiselect(
        "Status",
        sorted({run.status for run in found}),
        key="states",
        bind="query-params",
        placeholder="any status",
        label_visibility="collapsed",
        help="Only these states.",
    )
    return [run for run in found if run.probe in probes] if probes else found, text, d


def columns(runs: list[Run], text: str, place: DeltaGenerator) -> tuple[list[str], list[str], str, str]:
    """The columns that are chosen, or that the search names: settings, metrics; by which to group, and what of."""
    settings, metrics = tables.settings_of(runs), tables.metrics_of(runs, kept_summaries().of)
    with place.popover(
        "Columns, groups", width="stretch", help="Settings and results as columns; runs counted by a column."
    ):
        wanted = st.multiselect(
            "Settings",
            settings,
            key="settings",
            bind="query-params",
            placeholder="none",
            help="Keys of the config in which runs of one probe differ.",
        )
        results = st.multiselect(
            "Results",
            metrics,
            key="metrics",
            bind="query-params",
            placeholder="none",
            help="Numbers of the runs' summaries.",
        )
        group = st.selectbox(
            "Group by",
            [NOT_GROUPED, "probe", "model", "status", "tags", "seed", *settings],
            key="group",
            bind="query-params",
            help="Runs counted by this column; select a group to see its runs.",
        )
        of = st.selectbox(
            "Mean of",
            ["seconds", *metrics],
            key="of",
            bind="query-params",
            help="The number whose mean, least and largest value each group has.",
        )
    named = tables.columns_named(text, [*tables.ALWAYS, *settings, *metrics])
    settings = [name for name in settings if name in (*wanted, *named, group)]
    metrics = [name for name in metrics if name in (*results, *named) or (group != NOT_GROUPED and name == of)]
    return settings, metrics, group, of


def one_group(frame: pl.DataFrame, by: str, of: str) -> pl.DataFrame:
    """The groups in a table; the rows of the one that is selected, or all."""
    groups = tables.grouped(frame, by, of)
    picked = styling.scroll_table(groups, most=240, on_select="rerun", selection_mode="single-row", key=f"groups {by}")
    at = [i for i in picked.selection.rows if i < groups.height]
    return frame.filter(pl.col(by).eq_missing(pl.lit(groups[by][at[0]]))) if at else frame


# ---- what can be done with several


def several(chosen: list[Run]) -> None:
    a, b, c = st.columns([3, 2, 2])
    probes = {run.probe for run in chosen}
    if len(probes) == 1:
        a.page_link(
            compare_page(),
            label=f"Compare {len(chosen)} runs",
            query_params={"runs": ",".join(run.folder.name for run in chosen)}
            if len(chosen) > 2
            else {"a": chosen[0].folder.name, "b": chosen[1].folder.name},
        )
    else:
        a.caption("Runs of one probe can be compared.")
    with b.popover(f"Tag {len(chosen)} runs", width="stretch", help="Tags of all the selected runs."):
        tag(chosen)
    with c:
        remove(chosen, key="several")


def compare_page():

    return st.Page(navigation.HERE / "compare.py", title="Compare", url_path="compare")


def tag(chosen: list[Run]) -> None:
    words = st.text_input("Tags", key="bulk tags", placeholder="word, word", help="Words, separated by commas.")
    wanted = words_of(words)
    a, b = st.columns(2)
    for place, what, label in ((a, "add", "Add"), (b, "remove", "Take away")):
        if place.button(label, disabled=not wanted, key=f"bulk {what}", width="stretch", help="On every selected run."):
            for_each(chosen, partial(retag, **{what: wanted}))
            st.rerun()


def retag(run: Run, **tags: list[str]) -> None:
    with refusals_as_sentences(run.folder):
        notes.retag(run.folder, **tags)


def for_each(chosen: list[Run], do: Callable[[Run], None]) -> None:
    """Do it with every run that it can be done with; InputError says why it could not with the others."""
    refused = []
    for run in chosen:
        try:
            do(run)
        except WorkbenchError as error:
            refused.append(str(error))
    if refused:
        raise InputError(" ".join(refused))


def opened_folder() -> Run | None:
    """A run outside the runs folder, by a path that is typed (never taken from the URL)."""
    with st.expander("Open a run folder"):
        path = st.text_input(
            "Folder",
            key="folder",
            placeholder="/path/to/a/run",
            help="Any run folder, for example one made with --out.",
        )
    if not path.strip():
        return None
    try:
        from pathlib import Path

        return execution.open_run(Path(path.strip()))
    except InputError as error:
        styling.problem(error)
        return None


def annotate(run: Run) -> None:
    try:
        found = notes.read(run.folder)
    except InputError as error:
        styling.problem(error)
        return
    tags, note = f"tags {run.id}", f"note {run.id}"
    if problem := st.session_state.pop(f"not written {run.id}", None):  # what was typed is still there
        styling.problem(problem)
    else:  # the file says what the tags are: another tab, or the tags of several runs, may have changed them
        st.session_state[tags], st.session_state[note] = ", ".join(found["tags"]), found["note"]
    st.text_input("Tags", key=tags, on_change=write_notes, args=(run,), help="Words, separated by commas.")
    st.text_area(
        "Note", key=note, height=90, on_change=write_notes, args=(run,), help="Kept beside the run, in notes.json."
    )


def write_notes(run: Run) -> None:
    tags = words_of(st.session_state[f"tags {run.id}"])
    try:
        with refusals_as_sentences(run.folder):
            notes.write(run.folder, tags=tags, note=st.session_state[f"note {run.id}"])
    except WorkbenchError as error:
        st.session_state[f"not written {run.id}"] = str(error)


def words_of(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def remove(chosen: list[Run], *, key: str) -> None:
    """Delete runs, after it has been confirmed. Each that cannot be deleted says why; the others are gone."""
    inside = all(run.folder.parent == execution.runs_root() for run in chosen)
    many = "" if len(chosen) == 1 else f" {len(chosen)} runs"
    with st.popover(f"Delete{many}", disabled=not inside, help="Only runs in the runs folder can be deleted here."):
        if many:
            st.write(f"This removes the folders of{many} with all their tables and figures.")
        else:
            st.write("This removes the folder of the run with all its tables and figures.")
        which = " ".join(sorted(run.folder.name for run in chosen))  # another choice has to be confirmed anew
        label = f"Yes, delete{many}" if many else "Yes, delete this run"
        sure = st.checkbox(label, key=f"sure {which}", help="There is no way back.")
        said = "Delete them" if many else "Delete it"
        if st.button(said, key=f"delete {key}", disabled=not sure, type="primary", help="Once the box is ticked."):
            for_each(chosen, removal.remove)
            url_state.put(SCREEN, "run", "")
            st.rerun()


navigation.through_app()
main()
