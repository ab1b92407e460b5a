"""The worker of one device: takes jobs off the queue one after the other. ``python -m workbench.runs.worker DEVICE``.

Two processes. The outer one never imports torch: it holds the device's lock, hands out jobs, watches for cancellation,
and says what happened when the inner one dies. The inner one computes and keeps the last models loaded between jobs.
Cancelling is first asked for (the probe looks at every batch), then an interrupt, then the end of the inner process:
never more than two seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from workbench.core.disk_errors import disk_errno
from workbench.core.errors import Cancelled, InputError, WorkbenchError
from workbench.core.locks import take
from workbench.core.private import keep_new_files_private, make_folder
from workbench.core.progress import TimeLeft
from workbench.core.signals import stop_signals
from workbench.core.wording import one_line
from workbench.runs import job_files, provenance, queue

IDLE_SECONDS = 900.0  # without a job for so long, the worker leaves and gives the memory back
POLL_SECONDS = 0.1
PATIENCE = (1.0, 1.6)  # seconds after a cancel: interrupt, then kill
CLOSING_SECONDS = 5.0  # in which the disk may be able again to take the word of how a job ended
WARM = 2  # models that stay loaded


def main(device: str, *, idle: float | None = None) -> None:
    """Serve the queue of ``device`` until nothing has come for ``idle`` seconds."""
    idle = float(os.environ.get("WORKBENCH_WORKER_IDLE", IDLE_SECONDS)) if idle is None else idle
    make_folder(job_files.root())
    passed: set[str] = set()  # jobs whose files cannot be written: tried once by this worker, and not for ever
    while True:
        lock = _lock(device)
        if lock is None:
            return  # another worker serves this device
        try:
            _serve(device, idle, passed)
        finally:
            lock.release()
        if queue.next_of(device, but=passed) is None:  # one that came while the lock was held would start no worker
            return


def _lock(device: str):
    """The lock of a device, or None when it stays taken."""
    end = time.monotonic() + 2
    while (lock := take(queue.lock_path(device))) is None and time.monotonic() < end:
        time.sleep(POLL_SECONDS / 2)
    return lock


def _serve(device: str, idle: float, passed: set[str]) -> None:
    inner: subprocess.Popen | None = None
    last = time.monotonic()
    try:
        while time.monotonic() - last < idle:
            job = queue.next_of(device, but=passed)
            if job is None:
                time.sleep(POLL_SECONDS)
                continue
            if inner is None or inner.poll() is not None:
                inner = _inner(device)
            try:
                inner = _one(job, inner)
            except Exception as error:  # of its files: the other jobs go on, without the process that may compute it
                passed.add(job.id)
                _say(f"The job {job.id} is passed over: {one_line(error, 400)}.")
                _end(inner)
                inner = None
            last = time.monotonic()
    finally:
        if inner is not None:
            _end(inner)


def _say(text: str) -> None:
    """A line for the worker's log; a full disk does not matter."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _end(inner: subprocess.Popen) -> None:
    inner.kill()
    inner.wait()


def _inner(device: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "workbench.runs.worker", device, "--compute"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        start_new_session=True,
    )


def _one(job: job_files.Job, inner: subprocess.Popen) -> subprocess.Popen | None:
    """See one job through; returns the inner process if it can take another."""
    import psutil

    outcome = job_files.root() / job.id / "outcome.json"
    if os.path.lexists(outcome):  # of nobody: not to be believed, and not to be overwritten
        said = f"{outcome} was there before the job began; resume asks for a new job."
        _close(job, status="failed", error=said, failure=job_files.CIRCUMSTANCE)
        return inner
    job_files.write_state(
        job.id, status="running", started=provenance.now(), pid=os.getpid(), born=psutil.Process().create_time()
    )
    try:
        return _watch(job, inner)
    except KeyboardInterrupt:  # this worker is asked to leave: the run is closed, and can be resumed
        inner.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            inner.wait(PATIENCE[1] - PATIENCE[0])
        _close(job, status="cancelled")
        raise


def _watch(job: job_files.Job, inner: subprocess.Popen) -> subprocess.Popen | None:
    """Hand a job to the inner process and wait for what becomes of it."""
    asked: float | None = None
    interrupted = False
    try:
        inner.stdin.write((job.id + "\n").encode())
        inner.stdin.flush()
    except OSError:
        pass  # it died just now; the loop below says so
    while True:
        code = inner.poll()  # before the outcome is looked for, which it may leave with its last breath
        try:
            found = job_files.read_outcome(job.id)
        except InputError as error:
            _end(inner)
            _close(job, status="failed", error=str(error), failure=job_files.CIRCUMSTANCE)
            return None
        if found is not None:
            _close(job, **found)
            if not interrupted:
                return inner
            _end(inner)  # an interrupt may have left hooks on the models that are kept loaded
            return None
        if code is not None:
            killed = {"status": "failed", "error": _death(code), "failure": job_files.CIRCUMSTANCE}
            _close(job, **({"status": "cancelled"} if asked is not None else killed))
            return None
        if asked is None and job_files.wants_cancel(job.id):
            asked = time.monotonic()
        if asked is not None:
            waited = time.monotonic() - asked
            if waited > PATIENCE[1]:
                _end(inner)
            elif waited > PATIENCE[0] and not interrupted:
                interrupted = True
                inner.send_signal(signal.SIGINT)
        time.sleep(POLL_SECONDS / 2)


def _close(job: job_files.Job, **state: Any) -> None:
    """Write how a job ended. Where the disk takes no word of it, this worker leaves: a job that is said to be run by a
    process that is gone is not taken for one that runs."""
    end = time.monotonic() + CLOSING_SECONDS
    while True:
        try:
            return job_files.write_state(job.id, finished=provenance.now(), **state)
        except OSError as error:
            if time.monotonic() > end:
                raise SystemExit(f"The end of the job {job.id} could not be written: {one_line(error)}.") from None
            time.sleep(POLL_SECONDS)


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
        except Cancelled:
            found = {"status": "cancelled"}
        except KeyboardInterrupt:
            warm.clear()  # it may have left hooks on a model
            found = {"status": "cancelled"}
        except WorkbenchError as error:
            found = {"status": "failed", "error": str(error), "detail": _trace(error), "failure": failure_of(error)}
        except SystemExit:  # the worker says that it ended by itself, and starts another
            raise
        except BaseException as error:  # what else a probe or a library raises, a panic in Rust too, ends the job only
            found = {"status": "failed", "error": f"{type(error).__name__}: {one_line(error, 2000)}."}
            found |= {"detail": _trace(error), "failure": failure_of(error)}
        job_files.write_outcome(identifier, found)


def failure_of(error: BaseException) -> str:
    """Whether the same settings may succeed another time, of an error that ended a run: one of FAILURES."""
    if isinstance(error, InputError):
        return job_files.SETTINGS
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if isinstance(at, (OSError, MemoryError)) or disk_errno(at) is not None or _of_the_device(at):
            return job_files.CIRCUMSTANCE
        at = at.__cause__
    return job_files.FAULT


def _of_the_device(error: BaseException) -> bool:
    """Whether a device ran out of memory or failed."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    from workbench.models.batching import is_out_of_memory

    return is_out_of_memory(error) or isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def _trace(error: BaseException) -> str | None:
    """The traceback of an error that nobody foresaw."""
    shown = error if not isinstance(error, WorkbenchError) else error.__cause__
    return None if shown is None else "".join(traceback.format_exception(shown))[-20_000:]


def _run(job: job_files.Job, warm: dict[tuple, Any]) -> dict[str, Any]:
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
            job_files.wants_cancel(job.id) or os.getppid() != parent
        )  # without its outer process nobody would hear of the result

    item = registry.get(job.probe)
    ready = execution.prepare(item, configs.build(item.config, job.config, literal=True), job.data, model=job.model)
    report = _reporter(job.id, _expected(job, ready))
    report(0, 0, f"loading {job.model}")
    model = _model(job, warm)
    if cancelled():
        raise Cancelled("Cancelled before it began.")
    command = execution.command_for(
        ready,
        job.model,
        seed=job.seed,
        dtype=job.dtype,
        device=job.device if job.device != "cpu" else None,
        revision=job.revision,
        adapter=job.adapter,
    )
    done = execution.execute(ready, model, seed=job.seed, cancel=cancelled, progress=report, command=command)
    return {"status": "complete", "run": done.id, "folder": str(done.folder)}


def _model(job: job_files.Job, warm: dict[tuple, Any]) -> Any:
    """The model of a job, loaded or still warm; one whose files changed meanwhile is loaded again."""
    from workbench.core.file_hashes import folder_stamps
    from workbench.models.devices import free_caches
    from workbench.models.files import resolve
    from workbench.models.loading import load

    adapter = {"adapter": job.adapter} if job.adapter else {}
    stamps = [folder_stamps(Path(folder)) for folder in (resolve(job.model, revision=job.revision), *adapter.values())]
    key = (job.model, job.revision, job.adapter, job.dtype, job.device, *stamps)
    if key not in warm:
        while len(warm) >= WARM:
            del warm[next(iter(warm))]
        free_caches()
        warm[key] = load(job.model, job.revision, dtype=job.dtype, device=job.device, **adapter)
    warm[key] = warm.pop(key)  # the last one used goes last
    return warm[key]


def _reporter(identifier: str, expected: float | None = None):
    """A progress function that writes a few times a second, with the time left of the whole; `expected`: seconds that
    it is likely to take."""
    written, left_after = [0.0], TimeLeft(expected)

    def report(done: int, total: int, label: str) -> None:
        moment = time.monotonic()
        left = left_after.after(done / total, moment) if total > 0 else None
        if moment - written[0] < 0.25 and (done < total or not total):
            return
        written[0] = moment
        job_files.write_progress(identifier, done, total, label, left)

    return report


def _expected(job: job_files.Job, ready: Any) -> float | None:
    """Seconds that the run of a job is likely to take, where one like it was timed on this model and device."""
    from workbench.runs import cost
    from workbench.runs.folder import list_runs

    try:
        last, same = cost.last_like(list_runs(), job.probe, job.model, job.device)
        now = cost.plan(job.probe, ready.config, ready.data, job.model) if same else None
        then = cost.plan_of(last) if now is not None and last is not None else None
        return None if now is None else cost.estimate(now, then=then, run=last, same_machine=same).seconds
    except (WorkbenchError, OSError):  # of other runs, or of data that the run itself refuses
        return None


if __name__ == "__main__":
    keep_new_files_private()
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)
    try:
        if "--compute" in sys.argv[2:]:
            compute(sys.argv[1])
        else:
            main(sys.argv[1])
    except WorkbenchError as error:
        sys.exit(f"worker: {error}")
    except KeyboardInterrupt:
        sys.exit(Cancelled.exit_code)
