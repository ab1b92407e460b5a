"""Runs taken away for good."""

from __future__ import annotations

import shutil

from workbench.core.disk_errors import refusals_as_sentences
from workbench.core.errors import InputError
from workbench.runs.folder import Run, runs_root


def remove(run: Run) -> None:
    """Delete the folder of a run with all that is in it. InputError, before anything is touched, for a run in progress
    and for one that is not in the runs folder; a sentence where the disk refuses."""
    if run.folder.parent != runs_root():
        raise InputError(f"The run {run.id} is not in the runs folder; only those can be deleted here.")
    if run.status == "running":
        raise InputError(f"The run {run.id} is in progress; cancel it first.")
    with refusals_as_sentences(run.folder):
        shutil.rmtree(run.folder)
