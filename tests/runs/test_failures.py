"""Why a run failed: what the same settings can never do, and what they may do another time."""

import errno
import json

import pytest
import torch

from workbench.core.errors import InputError, RunFailed
from workbench.runs import job_files, worker
from workbench.runs import queue as jobs


def chained(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (InputError("a word that is no token"), "settings"),
        (chained(InputError("no such file"), FileNotFoundError()), "settings"),
        (chained(RunFailed("the disk is full"), OSError(errno.ENOSPC, "full")), "circumstance"),
        (chained(RunFailed("polars"), chained(ValueError("x"), OSError(errno.EIO, "broken"))), "circumstance"),
        (chained(RunFailed("out of memory"), MemoryError()), "circumstance"),
        (chained(RunFailed("CUDA"), torch.OutOfMemoryError("CUDA out of memory.")), "circumstance"),
        (chained(RunFailed("CUDA"), RuntimeError("CUDA error: an illegal access")), "circumstance"),
        (torch.AcceleratorError("no room in a queue of the device"), "circumstance"),
        (chained(RunFailed("a fault"), ZeroDivisionError("division by zero")), "fault"),
        (RunFailed("The run could not finish."), "fault"),
        (KeyError("x"), "fault"),
    ],
)
def test_an_error_is_of_the_settings_of_circumstances_or_a_fault(error, failure):
    assert worker.failure_of(error) == failure


@pytest.mark.parametrize(
    ("state", "resumable"),
    [
        ({"status": "failed", "error": "of a version that did not say why"}, True),
        ({"status": "failed", "failure": "settings"}, False),
        ({"status": "failed", "failure": "fault"}, False),
        ({"status": "failed", "failure": "circumstance"}, True),
        ({"status": "cancelled"}, True),
        ({"status": "complete"}, False),
        ({"status": "running", "pid": 1, "born": 1.0}, True),  # its worker is gone
    ],
)
def test_only_what_may_end_otherwise_can_be_resumed(state, resumable):
    identifier = "20260101T000000000001-abcdef"
    folder = job_files.root() / identifier
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"id": identifier, "probe": "parts", "model": "fake"}))
    (folder / "state.json").write_text(json.dumps(state))
    assert jobs.get(identifier).resumable is resumable


def test_a_reason_that_nobody_knows_makes_a_job_unreadable_not_resumable():
    identifier = "20260101T000000000001-abcdef"
    folder = job_files.root() / identifier
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"id": identifier, "probe": "parts", "model": "fake"}))
    (folder / "state.json").write_text(json.dumps({"status": "failed", "failure": "weather"}))
    assert jobs.listing() == [] and "failure" in jobs.unreadable()[0].reason
