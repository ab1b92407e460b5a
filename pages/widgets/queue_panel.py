"""The jobs on the screen: progress, time left, cancel, resume; every tab sees the same."""

from __future__ import annotations

import streamlit as st

from pages.widgets import form, styling
from workbench.core.errors import WorkbenchError
from workbench.core.registry import Probe
from workbench.core.wording import cut
from workbench.runs import queue


def show(probe: Probe | None = None, *, ended: int = 3) -> None:
    """The jobs of one probe (or all): those at work, then in one line the last ones that ended otherwise than complete.
    Redrawn every second while something runs."""
    busy = any(not job.ended for job in chosen(probe))
    st.fragment(_list, run_every=1.0 if busy else 3.0)(probe, ended, busy)


def chosen(probe: Probe | None) -> list[queue.Job]:
    return [job for job in queue.listing() if probe is None or probe.name == job.probe]


def _list(probe: Probe | None, ended: int, busy: bool) -> None:
    with styling.guard():
        _rows(probe, ended, busy)


def _rows(probe: Probe | None, ended: int, busy: bool) -> None:
    queue.wake()
    found = chosen(probe)
    active = [job for job in found if not job.ended]
    for job in active:
        show_job(job)
    show_ended([job for job in found if job.ended and job.status != "complete"][::-1][:ended], probe)
    show_unreadable(queue.unreadable())
    if busy != bool(active):
        st.rerun()  # what ran has ended and its result belongs on the page; or another tab has started something


def show_job(job: queue.Job) -> None:
    with st.container(border=True, key=f"job-{job.id}"):
        st.html(
            f"<div class='wb-facts'><b>{styling.esc(job.probe)}</b> <span class='wb-dim'>on "
            f"{styling.esc(styling.short(job.model))}, "
            f"{styling.esc(job.device)}</span><br>{styling.esc(styling.state(job))}</div>"
        )
        if job.status == "running":
            st.progress(min(job.done / job.total, 1.0) if job.total else 0.0)
        st.button(
            "Cancel",
            key=f"cancel {job.id}",
            on_click=queue.cancel,
            args=(job.id,),
            width="stretch",
            shortcut="s" if job.status == "running" else None,
            help="Stops within two seconds; the run can be resumed.",
        )


def show_ended(jobs: list[queue.Job], probe: Probe | None) -> None:
    """The jobs that did not complete, folded into a line that says how the last of them ended: the form below stays
    where it is."""
    if not jobs:
        return
    more = f" · {len(jobs) - 1} more" if len(jobs) > 1 else ""
    with st.expander(styling.md(cut(f"{jobs[0].status}: {why(jobs[0])}", 64) + more), key="jobs-ended"):
        for job in jobs:
            show_one_that_ended(job, probe)


def why(job: queue.Job) -> str:
    return job.error or "stopped on request; resume goes on where it stopped."


def show_one_that_ended(job: queue.Job, probe: Probe | None) -> None:
    with st.container(border=True, key=f"job-{job.id}"):
        st.html(
            f"<div class='wb-facts'><b>{styling.esc(job.probe)}</b> <span class='wb-dim'>on "
            f"{styling.esc(styling.short(job.model))}</span><br>{styling.esc(f'{job.status}: {why(job)}')}</div>"
        )
        row = st.container(horizontal=True, gap="small")
        if job.resumable:
            row.button(
                "Resume",
                key=f"resume {job.id}",
                on_click=again,
                args=(job,),
                help="Ask for the same run again; what was computed is kept.",
            )
        if probe is not None and row.button(
            "As asked",
            key=f"asked {job.id}",
            on_click=form.fill_from,
            args=(probe, job),
            help="Its settings, model and data into the form below"
            + (", to be run again." if job.resumable else ", to be changed: as they are, it would fail again."),
        ):
            st.rerun()
        row.button(
            "Dismiss",
            key=f"forget {job.id}",
            on_click=queue.forget,
            args=(job.id,),
            help="Take it off this list. The run stays.",
        )
        if job.detail:
            with st.expander("Traceback"):
                st.code(job.detail, language=None)


def show_unreadable(odd: list[queue.UnreadableJob]) -> None:
    """The jobs whose files cannot be read: nobody knows of which probe they are, so every panel names them."""
    if not odd:
        return
    with st.container(border=True, key="jobs-unreadable"):
        st.html(
            f"<div class='wb-facts'>{'1 job' if len(odd) == 1 else f'{len(odd)} jobs'} could not be read: "
            f"{styling.esc(cut(odd[0].reason, 400))}"
            f"{'' if len(odd) == 1 else f' (and {len(odd) - 1} more)'}<br><span class='wb-dim'>Nothing of it runs. "
            f"Dismiss removes its folder; ask for the run again, which goes on where it stopped.</span></div>"
        )
        st.button(
            "Dismiss",
            key="forget unreadable",
            on_click=lambda: [queue.forget(job.id) for job in odd],
            width="stretch",
            help="Remove the folders of the jobs that cannot be read. Runs stay.",
        )


def again(job: queue.Job) -> None:
    try:
        queue.resume(job)
        queue.forget(job)
    except WorkbenchError as error:
        styling.problem(error)
