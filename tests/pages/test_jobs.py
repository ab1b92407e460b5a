"""The jobs on the screens: how far they are, and what can be done about those that did not complete."""

import json
import os

import psutil
import pytest

from tests.support.app_screens import open_page, words
from workbench.runs import job_files
from workbench.runs import queue as jobs


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch):
    monkeypatch.setattr(jobs, "_start", lambda device: None)


def ended(**state) -> jobs.Job:
    """A job of the branching factor that ended so."""
    job = jobs.submit("branching-factor", "organism", config={"samples": 3, "max_prompts": 2}, seed=7, start=False)
    (jobs.root() / job.id / "state.json").write_text(json.dumps(state))
    return jobs.get(job.id)


def keys(at) -> set[str]:
    return {str(button.key) for button in at.button}


@pytest.mark.parametrize(
    ("state", "resume"),
    [
        ({"status": "failed", "error": "A word is no token.", "failure": "settings"}, False),
        ({"status": "failed", "error": "The disk is full.", "failure": "circumstance"}, True),
        ({"status": "cancelled"}, True),
    ],
)
def test_resume_is_offered_only_where_it_can_succeed(state, resume):
    job = ended(**state)
    at = open_page("branching_factor")
    assert (f"resume {job.id}" in keys(at)) is resume
    assert f"asked {job.id}" in keys(at) and state.get("error", "stopped") in words(at)


def test_what_was_asked_fills_the_form():
    job = ended(status="failed", error="A word is no token.", failure="settings")
    at = open_page("branching_factor")
    assert at.number_input(key="branching-factor.samples").value != 3
    at.button(key=f"asked {job.id}").click().run()
    assert at.number_input(key="branching-factor.samples").value == 3
    assert at.number_input(key="branching-factor.seed").value == 7


def test_jobs_that_ended_fold_into_one_line():
    for n in range(3):
        job = jobs.submit("branching-factor", "organism", seed=n, start=False)
        (jobs.root() / job.id / "state.json").write_text(json.dumps({"status": "failed", "error": f"The reason {n}."}))
    at = open_page("branching_factor")
    (line,) = [box for box in at.expander if "failed" in box.label]
    assert "The reason 2" in line.label.replace("\\", "") and "2 more" in line.label and not line.proto.expanded
    assert all(f"The reason {n}." in words(at) for n in range(3))


def test_a_running_job_has_one_bar_its_stage_and_the_time_left():
    job = jobs.submit("branching-factor", "organism", start=False)
    born = psutil.Process().create_time()
    job_files.write_state(job.id, status="running", pid=os.getpid(), born=born)
    job_files.write_progress(job.id, 250, 1000, "organism: sample, 3 of 24", 90.0)
    at = open_page("branching_factor")
    said = words(at)
    assert "organism: sample, 3 of 24" in said and "25% ·" in said and "1 min 30 s left" in said
    assert "250 of 1,000" not in said  # of the whole there is one number
