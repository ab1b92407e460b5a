"""Every run folder: made here, on the command line or from a notebook. Search, look, note, compare, delete."""

from __future__ import annotations

import shutil

import polars as pl
import streamlit as st

from pages.widgets import cached, navigation, queue_panel, run_view, styling, url_state
from workbench.core.disk_errors import refusals_as_sentences
from workbench.core.errors import InputError, WorkbenchError
from workbench.runs import execution, notes
from workbench.runs.folder import Run

SCREEN = "runs"


def catalogue(found: list[Run]) -> pl.DataFrame:
    rows = []
    for run in found:
        extra = notes_of(run)
        rows.append(
            {
                "probe": run.probe,
                "model": styling.short(styling.model_of(run)),
                "status": run.status,
                "finished": styling.when(run),
                "seconds": run.of("seconds", "total"),
                "seed": seed
                if (seed := run.of("seed", default=0 if not run.of("imported") else None)) is None or seed < 2**63
                else None,
                "tags": ", ".join(extra["tags"]),
                "note": extra["note"],
                "id": run.folder.name,
            }
        )
    schema = {
        "probe": pl.String,
        "model": pl.String,
        "status": pl.String,
        "finished": pl.String,
        "seconds": pl.Float64,
        "seed": pl.Int64,
        "tags": pl.String,
        "note": pl.String,
        "id": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, strict=False).sort("finished", descending=True)


def notes_of(run: Run) -> dict:
    """Tags and note for the list; where they cannot be read, the run's own view says so."""
    try:
        return notes.read(run.folder)
    except InputError:
        return {"tags": [], "note": "notes.json cannot be read"}


def main() -> None:
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
    frame = filtered(catalogue(found))
    picked = st.dataframe(
        frame,
        hide_index=True,
        height="content" if frame.height < 9 else 300,
        on_select="rerun",
        selection_mode="multi-row",
        key="runs table",
        column_config={"seconds": st.column_config.NumberColumn(format="%.1f")},
    )
    chosen = [frame["id"][i] for i in picked.selection.rows if i < frame.height]
    if chosen:
        url_state.put(SCREEN, "run", chosen[0])
    wanted = chosen[0] if chosen else url_state.get(SCREEN, "run")
    if len(chosen) >= 2:
        st.page_link(
            compare_page(),
            label=f"Compare the first two of {len(chosen)}",
            query_params={"a": chosen[0], "b": chosen[1]},
        )
    run = folder if folder is not None and not chosen else (execution.run_by_id(wanted) if wanted else None)
    if run is None:
        st.caption("Select a row to look at a run; two to compare them.")
        return
    st.divider()
    a, b = st.columns([5, 2], gap="large")
    with a:
        st.header(run.probe.replace("-", " ").capitalize())
        run_view.show(run)
    with b:
        annotate(run)
        remove(run, inside=run.folder.parent == execution.runs_root())


def compare_page():

    return st.Page(navigation.HERE / "compare.py", title="Compare", url_path="compare")


def filtered(frame: pl.DataFrame) -> pl.DataFrame:
    a, b, c = st.columns([3, 2, 2])
    text = a.text_input(
        "Search",
        key="search",
        bind="query-params",
        placeholder="probe, model, tag, note or id",
        help="Every word must occur in the row.",
        label_visibility="collapsed",
    )
    probes = b.multiselect(
        "Probe",
        sorted(set(frame["probe"])),
        key="probes",
        bind="query-params",
        placeholder="all probes",
        label_visibility="collapsed",
        help="Only these probes.",
    )
    states = c.multiselect(
        "Status",
        sorted(set(frame["status"])),
        key="states",
        bind="query-params",
        placeholder="any status",
        label_visibility="collapsed",
        help="Only these states.",
    )
    if probes:
        frame = frame.filter(pl.col("probe").is_in(probes))
    if states:
        frame = frame.filter(pl.col("status").is_in(states))
    row = pl.concat_str(
        ["probe", "model", "status", "finished", "tags", "note", "id"], separator=" "
    ).str.to_lowercase()
    for word in text.lower().split():
        frame = frame.filter(row.str.contains(word, literal=True))
    return frame


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
    tags = st.text_input(
        "Tags", value=", ".join(found["tags"]), key=f"tags {run.id}", help="Words, separated by commas."
    )
    note = st.text_area(
        "Note", value=found["note"], key=f"note {run.id}", height=90, help="Kept beside the run, in notes.json."
    )
    new = {"tags": [t.strip() for t in tags.split(",") if t.strip()], "note": note}
    if new != found:
        with refusals_as_sentences(run.folder):
            notes.write(run.folder, **new)
        st.rerun()


def remove(run: Run, *, inside: bool) -> None:
    with st.popover("Delete", disabled=not inside, help="Only runs in the runs folder can be deleted here."):
        st.write("This removes the folder of the run with all its tables and figures.")
        sure = st.checkbox("Yes, delete this run", key=f"sure {run.id}", help="There is no way back.")
        if st.button("Delete it", disabled=not sure, type="primary", help="Once the box is ticked."):
            if run.status == "running":
                raise WorkbenchError("This run is in progress; cancel it first.")
            with refusals_as_sentences(run.folder):
                shutil.rmtree(run.folder)
            url_state.put(SCREEN, "run", "")
            st.rerun()


navigation.through_app()
main()
