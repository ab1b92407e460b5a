"""The worker of one device: takes jobs off the queue one after the other. ``python -m workbench.runs.worker DEVICE``.

Two processes. The outer one never imports torch: it holds the device's lock, hands out jobs, watches for cancellation,
and says what happened when the inner one dies. The inner one computes and keeps the last models loaded between jobs.
Cancelling is first asked for (the probe looks at every batch), then an interrupt, then the end of the inner process:
never more than two seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from workbench.core.errors import Cancelled, WorkbenchError
from workbench.core.private import make_folder
from workbench.runs import provenance, queue

IDLE_SECONDS = 900.0  # without a job for so long, the worker leaves and gives the memory back
POLL_SECONDS = 0.1
PATIENCE = (1.0, 1.6)  # seconds after a cancel: interrupt, then kill
WARM = 2  # models that stay loaded


def main(device: str, *, idle: float | None = None) -> None:
    """Serve the queue of ``device`` until nothing has come for ``idle`` seconds."""
    import filelock

    idle = float(os.environ.get("WORKBENCH_WORKER_IDLE", IDLE_SECONDS)) if idle is None else idle
    make_folder(queue.root())
    while True:
        lock = filelock.FileLock(str(queue.lock_path(device)))
        try:
            lock.acquire(timeout=2)
        except filelock.Timeout:
            return  # another worker serves this device
        try:
            _serve(device, idle)
        finally:
            lock.release()
        if queue.next_of(device) is None:  # a job that came while the lock was still held would have started no worker
            return


def _serve(device: str, idle: float) -> None:
    inner: subprocess.Popen | None = None
    last = time.monotonic()
    try:
        while time.monotonic() - last < idle:
            job = queue.next_of(device)
            if job is None:
                time.sleep(POLL_SECONDS)
                continue
            if inner is None or inner.poll() is not None:
                inner = _inner(device)
            inner = _one(job, inner)
            last = time.monotonic()
    finally:
        if inner is not None:
            inner.kill()
            inner.wait()


def _inner(device: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "workbench.runs.worker", device, "--compute"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        start_new_session=True,
    )


def _one(job: queue.Job, inner: subprocess.Popen) -> subprocess.Popen | None:
    """See one job through; returns the inner process if it can take another."""
    import psutil

    queue.write_state(
        job.id, status="running", started=provenance.now(), pid=os.getpid(), born=psutil.Process().create_time()
    )
    outcome = queue.root() / job.id / "outcome.json"
    asked: float | None = None
    interrupted = False
    try:
        inner.stdin.write((job.id + "\n").encode())
        inner.stdin.flush()
    except OSError:
        pass  # it died just now; the loop below says so
    while True:
        if outcome.is_file():
            found = json.loads(outcome.read_text(encoding="utf-8"))
            queue.write_state(job.id, finished=provenance.now(), **found)
            if not interrupted:
                return inner
            inner.kill()  # an interrupt may have left hooks on the models that are kept loaded
            inner.wait()
            return None
        code = inner.poll()
        if code is not None and not outcome.is_file():
            state = {"status": "cancelled"} if asked is not None else {"status": "failed", "error": _death(code)}
            queue.write_state(job.id, finished=provenance.now(), **state)
            return None
        if asked is None and queue.wants_cancel(job.id):
            asked = time.monotonic()
        if asked is not None:
            waited = time.monotonic() - asked
            if waited > PATIENCE[1]:
                inner.kill()
                inner.wait()
            elif waited > PATIENCE[0] and not interrupted:
                interrupted = True
                inner.send_signal(signal.SIGINT)
        time.sleep(POLL_SECONDS / 2)


def _death(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = {
            "SIGKILL": ", most likely for want of memory",
            "SIGSEGV": " (a crash in native code)",
            "SIGABRT": " (a crash in native code)",
        }.get(name, "")
        return f"The process that computed was ended by {name}{why}; resume goes on where the run stopped."
    return f"The process that computed ended by itself with exit code {code}; resume goes on where the run stopped."


# ---- the inner process


def compute(device: str) -> None:
    """Read job ids from standard input, run each, leave ``outcome.json`` in its folder."""
    warm: dict[tuple, Any] = {}
    for line in sys.stdin:
        identifier = line.strip()
        try:
            found = _run(queue.get(identifier), warm)
        except (Cancelled, KeyboardInterrupt):
            found = {"status": "cancelled"}
        except WorkbenchError as error:
            found = {"status": "failed", "error": str(error), "detail": _trace(error)}
        except Exception as error:  # anything else that a probe or a library raises ends the job, not the worker
            found = {"status": "failed", "error": f"{type(error).__name__}: {error}", "detail": _trace(error)}
        queue.write_json(queue.root() / identifier / "outcome.json", found)


def _trace(error: BaseException) -> str | None:
    """The traceback of an error that nobody foresaw."""
    shown = error if not isinstance(error, WorkbenchError) else error.__cause__
    return None if shown is None else "".join(traceback.format_exception(shown))[-20_000:]


def _run(job: queue.Job, warm: dict[tuple, Any]) -> dict[str, Any]:
    from workbench.core import config as configs
    from workbench.core import registry
    from workbench.runs import execution

    parent = os.getppid()
    looked = [0.0]

    def cancelled() -> bool:
        moment = time.monotonic()
        if moment - looked[0] < POLL_SECONDS:
            return False
        looked[0] = moment
        return (
            queue.wants_cancel(job.id) or os.getppid() != parent
        )  # without its outer process nobody would hear of the result

    report = _reporter(job.id)
    item = registry.get(job.probe)
    ready = execution.prepare(item, configs.build(item.config, job.config, literal=True), job.data)
    report(0, 0, f"loading {job.model}")
    model = _model(job, warm)
    if cancelled():
        raise Cancelled("Cancelled before it began.")
    command = execution.command_for(
        ready, job.model, seed=job.seed, dtype=job.dtype, device=job.device if job.device != "cpu" else None
    )
    done = execution.execute(ready, model, seed=job.seed, cancel=cancelled, progress=report, command=command)
    return {"status": "complete", "run": done.id, "folder": str(done.folder)}


def _model(job: queue.Job, warm: dict[tuple, Any]) -> Any:
    """The model of a job, loaded or still warm; one whose files changed meanwhile is loaded again."""
    from workbench.models.files import resolve
    from workbench.models.loading import load

    folder = resolve(job.model, revision=job.revision)
    files = tuple(
        sorted(
            (path.name, path.stat().st_mtime_ns, path.stat().st_size)
            for path in Path(folder).iterdir()
            if path.is_file()
        )
    )
    key = (job.model, job.revision, job.dtype, job.device, files)
    if key not in warm:
        while len(warm) >= WARM:
            del warm[next(iter(warm))]
        warm[key] = load(job.model, job.revision, dtype=job.dtype, device=job.device)
    warm[key] = warm.pop(key)  # the last one used goes last
    return warm[key]


def _reporter(identifier: str):
    """A progress function that writes a few times a second, with the time left at the pace of the present stage."""
    state = {"written": 0.0, "label": None, "begun": 0.0, "first": 0}

    def report(done: int, total: int, label: str) -> None:
        moment = time.monotonic()
        if label != state["label"]:
            state.update(label=label, begun=moment, first=done, written=0.0)
        if moment - state["written"] < 0.25 and done < total:
            return
        state["written"] = moment
        step = done - state["first"]
        left = (moment - state["begun"]) / step * (total - done) if step > 0 and total > 0 else None
        queue.write_progress(identifier, done, total, label, left)

    return report


if __name__ == "__main__":
    if "--compute" in sys.argv[2:]:
        compute(sys.argv[1])
    else:
        main(sys.argv[1])
