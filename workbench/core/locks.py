"""Locks between processes: held through the system, so that they go with their process however it ends; waited for with
the holder's name, and not for ever."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.core.errors import InputError, RunFailed
from workbench.core.private import FILE, make_folder, opener

PATIENCE = 600.0  # seconds, for a holder that is not seen to be at work; WORKBENCH_LOCK_TIMEOUT sets it for any holder
POLL_SECONDS = 0.1
# what file systems without locks (NFS, some FUSE) answer
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as it wrote itself into the file. ``began``: when it was started, as psutil tells
    it; 0 where that is not known."""

    host: str
    pid: int
    began: float
    command: str

    def __str__(self) -> str:
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        since = f", started {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.began))}" if self.began else ""
        return f"process {self.pid}{where}{since}" + (f": {self.command}" if self.command else "")

    def at_work(self) -> bool:
        """Whether it is seen on this machine, alive and not stopped."""
        import psutil

        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            same = not self.began or abs(process.create_time() - self.began) < 2
            return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
        except (psutil.Error, ValueError, OverflowError):
            return False


@contextmanager
def folder_lock(
    path: Path, *, waiting: Callable[[str], None] | None = None, check: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` between processes; the file is removed afterwards.

    ``waiting(holder)`` is called once when somebody else holds it; ``check()`` is called while waiting and may raise. A
    holder that is alive on this machine is waited for; any other, such as one of another machine, for ten minutes.
    ``WORKBENCH_LOCK_TIMEOUT`` (seconds) bounds the wait for all of them. Raises RunFailed, with the file and its
    holder, when the time is over, and where the file system has no locks.
    """
    make_folder(path.parent)
    limit = patience()
    begun = time.monotonic()
    told = False
    while (lock := take(path)) is None:
        holder = holder_of(path)
        waited = time.monotonic() - begun
        if not told and (holder is not None or waited > 5 * POLL_SECONDS):  # it may be about to write its name
            told = True
            if waiting is not None:
                waiting(_name(holder))
        if check is not None:
            check()
        if waited > (PATIENCE if limit is None else limit) and not (limit is None and holder and holder.at_work()):
            raise RunFailed(
                f"The lock {path} has been held for {waited:.0f} s by {_name(holder)}; end that process, or remove the "
                f"file if its machine is gone, and try again (WORKBENCH_LOCK_TIMEOUT sets how many seconds to wait)."
            )
        time.sleep(POLL_SECONDS if limit is None else min(POLL_SECONDS, max(limit / 10, 0.001)))
    try:
        _sign(path)
        yield
    finally:
        # Removing before releasing is safe here: filelock looks, after locking, whether the file it locked still has
        # that name, and starts again where it has not.
        if os.name == "posix":
            with suppress(OSError):  # a folder that was made read-only meanwhile; the lock itself goes all the same
                path.unlink(missing_ok=True)
        lock.release()


def take(path: Path):
    """The lock of a file, taken now, or None when somebody else holds it. RunFailed where there are no locks: without
    them filelock would fall back to a file that outlives its process, and be waited for until somebody removes it."""
    import filelock

    lock = filelock.FileLock(str(path), blocking=False, mode=FILE, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        return None
    except OSError as error:
        raise no_locks(path, error) if error.errno in NO_LOCKS else error from None
    return lock


def no_locks(path: Path, error: OSError) -> RunFailed:
    """What to say where the system refuses the lock itself."""
    return RunFailed(
        f"The disk of {path} cannot lock files ({error.strerror or error}); move the cache to a local disk with "
        f"WORKBENCH_CACHE (and --out, where it is given)."
    )


def patience() -> float | None:
    """Seconds of WORKBENCH_LOCK_TIMEOUT; None where it is not set. Raises InputError for what is no number of
    seconds."""
    text = os.environ.get("WORKBENCH_LOCK_TIMEOUT", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise InputError(
            f"The environment variable WORKBENCH_LOCK_TIMEOUT is a number of seconds, such as 60, not '{text[:40]}'."
        )
    return seconds


def holder_of(path: Path) -> Holder | None:
    """Who says in the file that it holds the lock; None where the file does not say, or is not ours to read."""
    try:
        with open(path, encoding="utf-8", opener=opener) as file:
            text = file.read(4000)
    except (OSError, ValueError):
        return None
    try:
        found = json.loads(text)
        return Holder(_word(found["host"]), int(found["pid"]), float(found["began"]), _word(found["command"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    lines = text.split()  # filelock's own marker: the number of the process, then its machine
    if len(lines) >= 2 and lines[0].isdecimal() and len(lines[0]) < 12:
        return Holder(_word(lines[1]), int(lines[0]), 0.0, "")
    return None


def _word(text: object) -> str:
    """What a file says, fit to be printed."""
    return "".join(sign if sign.isprintable() else " " for sign in str(text)[:160])


def _name(holder: Holder | None) -> str:
    return "a process that does not say who it is" if holder is None else str(holder)


def _sign(path: Path) -> None:
    """Write into the file who holds it. Only for people, so a disk that refuses it does not matter."""
    import psutil

    with suppress(OSError, psutil.Error):
        process = psutil.Process()
        command = " ".join(word for word in process.cmdline() if "\n" not in word)
        me = Holder(socket.gethostname(), os.getpid(), process.create_time(), command[:160])
        with open(path, "w", encoding="utf-8", opener=opener) as file:
            json.dump(asdict(me), file)
