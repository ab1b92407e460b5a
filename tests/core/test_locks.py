"""Locks: who holds one is named, nobody is waited for for ever, and a disk without locks says where to go."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from workbench.core import locks
from workbench.core.errors import Cancelled, InputError, RunFailed, WorkbenchError
from workbench.core.locks import folder_lock

HOLD = (
    "import sys, time; from pathlib import Path; from workbench.core.locks import folder_lock\n"
    "with folder_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


@contextlib.contextmanager
def held(path):
    """The lock, held by another process."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline().strip() == "held"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def wait_for(path, **callbacks):
    with folder_lock(path, **callbacks):
        return "taken"


def test_the_one_who_waits_is_told_the_file_and_its_holder_and_gives_up_after_the_time_that_is_set(
    tmp_path, monkeypatch
):
    path, told = tmp_path / "a [1] *" / ".lock", []
    monkeypatch.setenv("WORKBENCH_LOCK_TIMEOUT", "0.3")
    with held(path) as child:
        start = time.monotonic()
        with pytest.raises(RunFailed) as caught:
            wait_for(path, waiting=told.append)
        assert 0.3 <= time.monotonic() - start < 5
        said = str(caught.value)
        assert str(path) in said and f"process {child.pid}" in said and "WORKBENCH_LOCK_TIMEOUT" in said
        assert len(told) == 1 and f"process {child.pid}" in told[0] and len(said.splitlines()) == 1
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.delenv("WORKBENCH_LOCK_TIMEOUT")
    assert wait_for(path) == "taken" and not path.exists()  # the lock went with its process


def test_a_holder_that_is_at_work_here_is_waited_for_and_any_other_only_for_a_while(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    monkeypatch.setattr(locks, "PATIENCE", 0.2)

    def give_up_later(begun=[]):  # noqa: B006 (one memory for all calls)
        begun.append(time.monotonic())
        if begun[-1] - begun[0] > 1.0:
            raise Cancelled("asked to stop")

    with held(path) as child:
        with pytest.raises(Cancelled):  # at work: no end of patience, so the one who waits stops it himself
            wait_for(path, check=give_up_later)
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(RunFailed, match=f"process {child.pid}"):
            wait_for(path)
        child.send_signal(signal.SIGCONT)
        saying = {"host": "another-machine", "pid": child.pid, "began": 1.5e9, "command": "workbench run\x1b[2J"}
        path.write_text(json.dumps(saying))
        with pytest.raises(RunFailed, match=f"process {child.pid} on another-machine, started 2017.*workbench run") as (
            caught
        ):
            wait_for(path)
        assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"5", b"[]", b"[" * 100_000, b'{"host": 1}', b"\xff\xfe", b'{"host":"x","pid":1e999,"began":0}']
)
def test_a_lock_file_that_says_nothing_is_still_a_lock(tmp_path, monkeypatch, content):
    path = tmp_path / ".lock"
    monkeypatch.setenv("WORKBENCH_LOCK_TIMEOUT", "0.05")
    with held(path):
        path.write_bytes(content)
        with pytest.raises(RunFailed, match="a process that does not say who it is"):
            wait_for(path)


def test_the_marker_of_a_soft_lock_names_its_machine(tmp_path):
    (tmp_path / ".lock").write_text("4242\nold-host\n")
    found = locks.holder_of(tmp_path / ".lock")
    assert (found.pid, found.host) == (4242, "old-host") and not found.at_work()
    (tmp_path / ".lock").write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
    assert locks.holder_of(tmp_path / ".lock").at_work()


NONE = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


@pytest.mark.parametrize("number", sorted(set(NONE)))
def test_a_disk_without_locks_says_to_move_the_cache(tmp_path, monkeypatch, number):
    """In runs, the store and the queue: nobody waits on a marker that outlives its process."""
    from workbench.runs import queue
    from workbench.store import Store
    from workbench.store.entries import hold

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "used").touch()
    queue.root().mkdir(parents=True)
    queue.lock_path("cpu").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)

    def write():
        with Store(tmp_path / "store").writer("0" * 64, {}, n_shards=1, expected_bytes=1):
            pass

    for ask in (
        lambda: wait_for(tmp_path / ".lock"),
        write,
        lambda: hold(tmp_path / "used"),
        lambda: queue.has_worker("cpu"),
    ):
        start = time.monotonic()
        with pytest.raises(WorkbenchError, match="WORKBENCH_CACHE") as caught:
            ask()
        assert os.strerror(number) in str(caught.value) and caught.value.exit_code == 3
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "1e400", "1,5"])
def test_a_time_that_is_none_is_refused_and_none_is_ten_minutes(monkeypatch, text, tmp_path):
    monkeypatch.setenv("WORKBENCH_LOCK_TIMEOUT", text)
    with pytest.raises(InputError, match="number of seconds"):
        wait_for(tmp_path / ".lock")
    monkeypatch.setenv("WORKBENCH_LOCK_TIMEOUT", "")
    assert locks.patience() is None and locks.PATIENCE == 600
