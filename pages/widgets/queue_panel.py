"""The jobs on the screen: progress, time left, cancel, resume; every tab sees the same."""

from __future__ import annotations

import streamlit as st

from pages.widgets import styling
from workbench.core.errors import WorkbenchError
from workbench.core.wording import cut
from workbench.runs import queue


def show(probe: str | None = None, *, ended: int = 3) -> None:
    """The jobs of one probe (or all): those at work, then the last ones that ended. Redrawn every second while
    something runs."""
    busy = any(not job.ended for job in chosen(probe))
    st.fragment(_list, run_every=1.0 if busy else 3.0)(probe, ended, busy)


def chosen(probe: str | None) -> list[queue.Job]:
    return [job for job in queue.listing() if probe in (None, job.probe)]


def _list(probe: str | None, ended: int, busy: bool) -> None:
    with styling.guard():
        _rows(probe, ended, busy)


def _rows(probe: str | None, ended: int, busy: bool) -> None:
    queue.wake()
    found = chosen(probe)
    active = [job for job in found if not job.ended]
    for job in active:
        show_job(job)
    for job in [job for job in found if job.ended][-ended:][::-1] if ended else []:
        show_ended(job)
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


def show_ended(job: queue.Job) -> None:
    if job.status == "complete":
        return  # its run is on the page
    with st.container(border=True, key=f"job-{job.id}"):
        text = f"{job.status}: {job.error or 'stopped on request; resume goes on where it stopped.'}"
        st.html(
            f"<div class='wb-facts'><b>{styling.esc(job.probe)}</b> <span class='wb-dim'>on "
            f"{styling.esc(styling.short(job.model))}</span><br>{styling.esc(text)}</div>"
        )
        a, b = st.columns(2, gap="small")
        a.button(
            "Resume",
            key=f"resume {job.id}",
            on_click=again,
            args=(job,),
            width="stretch",
            help="Ask for the same run again; what was computed is kept.",
        )
        b.button(
            "Dismiss",
            key=f"forget {job.id}",
            on_click=queue.forget,
            args=(job.id,),
            width="stretch",
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
