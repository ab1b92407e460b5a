"""The files of one background job, each read in one place: a job, or one sentence on why it cannot be read.

Whatever is in them, nothing odd is believed, run or overwritten; see :mod:`workbench.runs.queue` for what they are.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from workbench.core import paths
from workbench.core.errors import InputError
from workbench.core.files import atomic, canonical, read_json, write_json
from workbench.core.private import mark
from workbench.models.devices import known
from workbench.models.load_options import AUTOMATIC, DEVICE
from workbench.runs import provenance

ENDED = ("complete", "failed", "cancelled", "interrupted")
BEING_WRITTEN = 60.0  # seconds in which a new folder may be without its job.json
# Why a job failed: its settings or data, a fault of the probe, or circumstances (a full disk, want of memory, a kill),
# under which the same settings may succeed another time.
FAILURES = SETTINGS, FAULT, CIRCUMSTANCE = ("settings", "fault", "circumstance")
ID = re.compile(r"[0-9]{8}T[0-9]{12}-[0-9a-f]{6}")


@dataclass(frozen=True)
class Job:
    """A run that was asked for, and how far it is.

    ``status``: queued, running, complete, failed, cancelled, or interrupted (its worker is gone; asking again resumes
    the run). ``position``: 1 for the next one of its device, 0 for any that does not wait. ``seconds_left``: None where
    it is not known."""

    id: str
    probe: str
    model: str
    config: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    seed: int = 0
    dtype: str = AUTOMATIC
    device: str = "cpu"
    revision: str | None = None
    adapter: str | None = None
    submitted: str = ""
    status: str = "queued"
    position: int = 0
    started: str | None = None
    finished: str | None = None
    done: int = 0
    total: int = 0
    label: str = ""
    seconds_left: float | None = None
    run: str | None = None
    folder: str | None = None
    error: str | None = None
    detail: str | None = None  # the traceback of an unexpected error
    failure: str | None = None  # what it was for: one of FAILURES, None where nobody said

    @property
    def resumable(self) -> bool:
        """Whether asking for the same again may end otherwise: it was stopped, or failed for what may pass."""
        return self.ended and self.status != "complete" and self.failure not in (SETTINGS, FAULT)

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True)
class UnreadableJob:
    """A job whose files cannot be read, and why, in one sentence that names the file."""

    id: str
    folder: Path
    reason: str


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def _known(device: str) -> str:
    """A device of a kind that PyTorch knows; it is asked for the rare ones only, as its import takes seconds."""
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps", "xpu") and not known(kind):
        raise ValueError(f"PyTorch knows no device '{kind}'")
    return device


Kind = TypeVar("Kind", bound=_Record)
Word = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Spec(_Record):
    """job.json: what to run."""

    id: Word
    probe: Word
    model: Word
    config: dict[str, Any] = {}
    data: Word | None = None
    seed: Count = 0
    dtype: Annotated[str, Field(max_length=40)] = AUTOMATIC
    device: Annotated[str, Field(pattern=f"^({DEVICE})$"), AfterValidator(_known)] = "cpu"
    revision: Word | None = None
    adapter: Word | None = None
    submitted: Annotated[str, Field(max_length=40)] = ""


class _Outcome(_Record):
    """outcome.json: how it ended, as the process that computed says."""

    status: Literal["complete", "failed", "cancelled"]
    run: Word | None = None
    folder: Word | None = None
    error: str | None = None
    detail: str | None = None
    failure: Literal["settings", "fault", "circumstance"] | None = None


class _State(_Outcome):
    """state.json: how far it is, as the worker says."""

    status: Literal["running", "complete", "failed", "cancelled"]
    pid: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    born: Annotated[float, Field(ge=0, lt=1e12)] | None = None
    started: Annotated[str, Field(max_length=40)] | None = None
    finished: Annotated[str, Field(max_length=40)] | None = None


class _Progress(_Record):
    """progress.json: what is done of the present stage."""

    done: Count = 0
    total: Count = 0
    label: Annotated[str, Field(max_length=4096)] = ""
    seconds_left: Annotated[float, Field(ge=0, lt=1e12)] | None = None


def root() -> Path:
    """The folder of all jobs."""
    return paths.cache_root() / "jobs"


def folder_of(identifier: str) -> Path:
    """The folder of a job by its id (from a URL: nothing else is ever looked at). InputError where there is none."""
    folder = root() / identifier
    if not ID.fullmatch(identifier) or not os.path.lexists(folder):
        raise InputError(f"There is no job '{identifier[:60]}'.")
    return folder


def folders() -> list[Path]:
    """What may be a job, in the order in which they were asked for."""
    try:
        return sorted(path for path in root().iterdir() if ID.fullmatch(path.name))
    except OSError:  # there is none yet
        return []


def read_job(folder: Path) -> Job | UnreadableJob | None:
    """The job of a folder; None for one that is being written or went just now."""
    try:
        spec = _record(_Spec, folder / "job.json")
        if spec is None:
            return _without_spec(folder)
        if spec.id != folder.name:
            raise InputError(f"{folder / 'job.json'} belongs to another job, '{spec.id[:60]}'.")
        return _with_state(Job(**spec.model_dump()), folder)
    except InputError as error:
        return UnreadableJob(folder.name, folder, str(error))


def read_outcome(identifier: str) -> dict[str, Any] | None:
    """How the process that computed says that a job ended; None while it says nothing. InputError for what is no
    outcome."""
    found = _record(_Outcome, root() / identifier / "outcome.json")
    return None if found is None else found.model_dump()


def write_outcome(identifier: str, found: dict[str, Any]) -> None:
    write_json(root() / identifier / "outcome.json", found)


def write_state(identifier: str, **state: Any) -> None:
    """Only the worker that runs the job writes its state. InputError, and nothing is written, where what is there
    cannot be read."""
    path = root() / identifier / "state.json"
    before = _record(_State, path)
    write_json(path, {**({} if before is None else before.model_dump(exclude_none=True)), **state})


def write_progress(identifier: str, done: int, total: int, label: str, seconds_left: float | None) -> None:
    """Replaced many times, so complete but not forced to the disk. A disk that refuses it stops no run."""
    value = {"done": int(done), "total": int(total), "label": str(label)[:400], "seconds_left": seconds_left}
    try:
        with atomic(root() / identifier / "progress.json", durable=False) as temporary:
            temporary.write_bytes(canonical(value | {"time": provenance.now()}))
    except OSError:
        pass


def want_cancel(folder: Path) -> None:
    """Say that a job is to be stopped."""
    if not os.path.lexists(folder / "cancel"):
        mark(folder / "cancel")


def wants_cancel(identifier: str) -> bool:
    return os.path.lexists(root() / identifier / "cancel")


def _without_spec(folder: Path) -> UnreadableJob | None:
    try:
        age = time.time() - folder.lstat().st_mtime
    except FileNotFoundError:
        return None
    if 0 <= age < BEING_WRITTEN:
        return None
    return UnreadableJob(folder.name, folder, f"{folder} has no job.json.")


def _with_state(job: Job, folder: Path) -> Job:
    """What the worker has said so far."""
    state = _record(_State, folder / "state.json")
    status = "queued" if state is None else state.status
    if status == "queued" and wants_cancel(job.id):
        status = "cancelled"
    if state is not None and status == "running" and not _alive(state):
        state = _record(_State, folder / "state.json") or state  # it may have been finished between the two looks
        status = "interrupted" if state.status == "running" else state.status
    known: dict[str, Any] = {"status": status}
    if state is not None:
        known |= state.model_dump(include={"started", "finished", "run", "folder", "error", "detail", "failure"})
    if status == "interrupted":
        known["error"] = "The worker process ended before the run did; resume goes on where it stopped."
    try:
        progress = _record(_Progress, folder / "progress.json")
    except InputError:  # only to be looked at: the job is what it is
        progress, known["label"] = None, "its progress cannot be read"
    if progress is not None and status != "queued":
        known |= progress.model_dump()
        known["seconds_left"] = progress.seconds_left if status == "running" else None
    return replace(job, **known)


def _record(kind: type[Kind], path: Path) -> Kind | None:
    """A file with every field as it should be; None where there is none. InputError, one sentence, for any other."""
    try:
        return kind.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} cannot be read: {f'its field {where}' if where else 'its content'} is odd ({first['msg']})."
        ) from None


def _alive(state: _State) -> bool:
    """Whether the worker that wrote this state still lives: the same process, not another one under its number."""
    import psutil

    if state.pid is None or state.born is None:
        return False
    try:
        process = psutil.Process(state.pid)
        return abs(process.create_time() - state.born) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False
