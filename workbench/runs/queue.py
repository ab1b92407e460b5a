"""The queue of background runs: on disk, one worker process per device, seen by every tab and after every restart.

A job is a folder below ``jobs/`` of the cache: ``job.json`` (what to run, written once by whoever asks),
``progress.json`` and ``state.json`` (written by the worker), and an empty file ``cancel`` once somebody wants it
stopped. Nothing is shared but these files, each complete or absent, so the app may be closed, opened twice or killed
without losing a job. The worker is started when there is something to do and leaves after a while without work (see
:mod:`workbench.runs.worker`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Collection
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.core import config as configs
from workbench.core import paths
from workbench.core.errors import InputError
from workbench.core.files import write_bytes, write_json
from workbench.core.locks import take
from workbench.core.private import appending, make_folder
from workbench.core.wording import human_bytes
from workbench.models.devices import CPU, known, listed
from workbench.models.load_options import DEVICE
from workbench.runs import execution
from workbench.runs.job_files import (
    Job,
    UnreadableJob,
    folder_of,
    folders,
    read_job,
    root,
    want_cancel,
)

KEEP = 200  # ended jobs that stay listed; their runs stay for ever
_SPEC = ("id", "probe", "model", "config", "data", "seed", "dtype", "device", "revision", "adapter", "submitted")


def submit(
    probe: str,
    model: str,
    *,
    config: dict[str, Any] | None = None,
    data: str | Path | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    adapter: str | None = None,
    start: bool = True,
) -> Job:
    """Put a run into the queue of its device and see to it that a worker is there. ``config``: values as run.json keeps
    them.

    Raises InputError, before anything is queued, for what can be known to be wrong without the model. Asking for what
    is already waiting or running gives that job."""
    item = execution.registry.get(probe)
    config = configs.build(
        item.config, _absolute(item.config, config or {}), where=f"the config of {probe}", literal=True
    )
    ready = execution.prepare(item, config, data, model=model.strip())
    configs.check_seed(seed)
    if not model.strip():
        raise InputError("Name a model: an organism, a local folder or a hub id.")
    if not re.fullmatch(DEVICE, device) or not (device == CPU or known(device.partition(":")[0])):
        raise InputError(f"'{device}' is not a device; it is cpu, cuda, cuda:0 and so on.")
    from workbench.models.before_loading import check_presence, check_request
    from workbench.models.load_options import looks_like_path

    check_request(model.strip(), revision=revision or None, adapter=adapter or None, dtype=dtype)
    if looks_like_path(model.strip()):
        check_presence(model.strip())
    execution.check_unloaded(ready, model.strip(), seed=seed, revision=revision or None, adapter=adapter or None)
    moment = datetime.now(UTC)
    job = Job(
        id=f"{moment:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}",
        probe=probe,
        model=_path(model.strip()),
        config=configs.to_dict(ready.config),
        data=None if ready.data is None or ready.data_name is not None else ready.address or str(ready.data),
        seed=seed,
        dtype=dtype,
        device=device,
        revision=revision or None,
        adapter=_path(str(adapter)) if adapter else None,
        submitted=moment.isoformat(timespec="milliseconds"),
    )
    for other in listing():
        if not other.ended and _work(other) == _work(job):
            return other
    folder = root() / job.id
    make_folder(folder)
    write_json(folder / "job.json", {key: asdict(job)[key] for key in _SPEC})
    _prune()
    if start:
        wake(device)
    return get(job.id)


def _path(text: str) -> str:
    """A path that exists as an absolute one (the worker works elsewhere); anything else as it is."""
    return str(Path(text).expanduser().resolve()) if text and Path(text).expanduser().exists() else text


def _absolute(config_class: type, values: dict[str, Any]) -> dict[str, Any]:
    files = {field["name"] for field in configs.describe(config_class) if field["file"]}
    made = {}
    for key, value in values.items():
        if key in files and isinstance(value, (list, tuple)):
            value = [_path(item) if isinstance(item, str) else item for item in value]
        elif key in files and isinstance(value, str):
            value = _path(value)
        made[key] = value
    return made


def _work(job: Job) -> tuple:
    return (
        job.probe,
        job.model,
        json.dumps(job.config, sort_keys=True),
        job.data,
        job.seed,
        job.dtype,
        job.device,
        job.revision,
        job.adapter,
    )


def resume(job: Job) -> Job:
    """Ask again for what a job was to do. A run that was begun goes on where it stopped."""
    names = ("config", "data", "seed", "dtype", "device", "revision", "adapter")
    return submit(job.probe, job.model, **{name: getattr(job, name) for name in names})


def cancel(job: Job | str) -> None:
    """Stop a job: one that waits leaves the queue at once, one that runs stops within two seconds and can be
    resumed."""
    want_cancel(folder_of(job if isinstance(job, str) else job.id))


def forget(job: Job | str) -> None:
    """Take a job that ended, or that cannot be read, off the list, with its folder. Its run stays."""
    folder = folder_of(job if isinstance(job, str) else job.id)
    found = read_job(folder)
    if isinstance(found, Job) and not found.ended:
        raise InputError(f"The job {found.id} is {found.status}; cancel it first.")
    _remove(folder)


def devices() -> list[str]:
    """Devices that runs can be sent to, the fastest first (looked up without torch, where the driver says it)."""
    gpus = Path("/proc/driver/nvidia/gpus")
    found = [f"cuda:{i}" for i, _ in enumerate(gpus.iterdir())] if gpus.is_dir() else listed()
    return [*found, CPU]


def get(identifier: str) -> Job:
    """A job by its id (from a URL: nothing else is ever looked at)."""
    found = next((job for job in listing() if job.id == identifier), None)
    if found is not None:
        return found
    odd = next((job for job in unreadable() if job.id == identifier), None)
    if odd is not None:
        raise InputError(f"The job {identifier} cannot be read: {odd.reason}")
    raise InputError(f"There is no job '{identifier[:60]}'.")


def listing() -> list[Job]:
    """Every job that can be read, in the order in which they were asked for; see :func:`unreadable` for the others."""
    found = [job for folder in folders() if isinstance(job := read_job(folder), Job)]
    waiting: dict[str, int] = {}
    for i, job in enumerate(found):
        if job.status == "queued":
            waiting[job.device] = waiting.get(job.device, 0) + 1
            found[i] = replace(job, position=waiting[job.device])
    return found


def unreadable() -> list[UnreadableJob]:
    """The jobs that cannot be read, each with a sentence on why. They are never run and their files never touched;
    :func:`forget` removes one."""
    return [job for folder in folders() if isinstance(job := read_job(folder), UnreadableJob)]


def next_of(device: str, *, but: Collection[str] = ()) -> Job | None:
    """The job that the worker of a device takes up next; ``but``: ids of those that it passes over."""
    waiting = (job for job in listing() if job.status == "queued" and job.device == device)
    return next((job for job in waiting if job.id not in but), None)


def wake(device: str | None = None) -> None:
    """Start the worker of every device that has waiting jobs and none (of ``device`` only, where one is named)."""
    for name in dict.fromkeys(job.device for job in listing() if job.status == "queued"):
        if device in (None, name) and not has_worker(name):
            _start(name)


def has_worker(device: str) -> bool:
    """Whether a worker of this device is alive: it holds a lock for as long as it lives, however it ends."""
    path = lock_path(device)
    if not path.exists():
        return False
    lock = take(path)
    if lock is None:
        return True
    lock.release()
    return False


def lock_path(device: str) -> Path:
    return root() / f"worker-{device.replace(':', '-')}.lock"


def _start(device: str) -> None:
    """A worker as a process of its own, in its own session: it outlives the app."""
    make_folder(root())
    with appending(root() / f"worker-{device.replace(':', '-')}.log") as log:
        subprocess.Popen(
            [sys.executable, "-m", "workbench.runs.worker", device],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "WORKBENCH_CACHE": str(paths.cache_root())},
        )


def _prune() -> None:
    ended = [job for job in listing() if job.ended]
    for job in ended[:-KEEP]:
        _remove(root() / job.id)


def _remove(folder: Path) -> None:
    """Take a job's folder away, or whatever is in its place."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


# ---- uploads


MOST_BYTES = 50_000_000
MOST_ROWS = 2_000_000
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")


def keep_upload(name: str, content: bytes) -> Path:
    """Store an uploaded data file under its content and a harmless name, and return the path.

    Raises InputError for other kinds of files, for more than 50 MB, and for a Parquet file that is broken or would
    unpack to more than ten times that."""
    import hashlib

    stem, suffix = os.path.splitext(os.path.basename(name.replace("\\", "/")))
    suffix = suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"A data file is one of {', '.join(s[1:] for s in SUFFIXES)}; '{name[:80]}' is not.")
    if len(content) > MOST_BYTES:
        raise InputError(
            f"'{name[:80]}' has {human_bytes(len(content))}; at most {human_bytes(MOST_BYTES)} can be "
            f"uploaded. Give the path of the file instead."
        )
    if suffix == ".parquet":
        _check_parquet(name, content)
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")[:60] or "data"
    folder = paths.cache_root() / "uploads" / hashlib.sha256(content).hexdigest()[:16]
    make_folder(folder)
    path = folder / f"{safe}{suffix}"
    if not path.is_file():
        write_bytes(path, content)
    return path


def _check_parquet(name: str, content: bytes) -> None:
    """A few kilobytes can hold terabytes. First the footer; then, since it counts a value that is said a million times
    once, the rows themselves, a few at a time and no further than the limit."""
    import io

    import pyarrow.parquet as parquet

    try:
        facts = parquet.ParquetFile(io.BytesIO(content)).metadata
        size = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
        rows = facts.num_rows
    except Exception as error:  # pyarrow raises many kinds for a file that is not what it says
        raise InputError(f"'{name[:80]}' cannot be read as Parquet: {' '.join(str(error).split())[:120]}.") from None
    too_much = f"'{name[:80]}' unpacks to {{}}, too much for an upload. Give the path of the file instead."
    if size > 10 * MOST_BYTES or rows > MOST_ROWS:
        raise InputError(too_much.format(f"{rows:,} rows and {human_bytes(size)}"))
    unpacked = 0
    try:
        for batch in parquet.ParquetFile(io.BytesIO(content)).iter_batches(
            batch_size=min(4096, max(8, 10 * MOST_BYTES // max(1, size)))
        ):
            unpacked += batch.nbytes
            if unpacked > 10 * MOST_BYTES:
                break
    except Exception as error:  # the footer was right and the rest is not
        raise InputError(f"'{name[:80]}' cannot be read as Parquet: {' '.join(str(error).split())[:120]}.") from None
    if unpacked > 10 * MOST_BYTES:
        raise InputError(too_much.format(f"more than {human_bytes(10 * MOST_BYTES)}"))
