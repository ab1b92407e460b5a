"""Files of jobs with any content: what is good is listed and run, what is odd is named, kept and passed over."""

import json
import os
import signal
import stat
import time
from pathlib import Path

import psutil
import pytest

from tests.runs.test_queue import at_work, ended, queued, until, workers  # noqa: F401 (queued is a fixture)
from workbench.core.errors import InputError
from workbench.core.files import write_json
from workbench.runs import job_files
from workbench.runs import queue as jobs


def put(number, **fields):
    """A job as submit leaves it."""
    identifier = f"20260101T00000000000{number}-abcdef"
    folder = job_files.root() / identifier
    folder.mkdir(parents=True)
    spec = {"id": identifier, "probe": "queued", "model": "fake", "config": {}, "data": None, "seed": number}
    write_json(folder / "job.json", spec | {"device": "cpu", "dtype": "float32", "revision": None} | fields)
    return folder


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "folder" if path.is_dir() else "link"
        for path in folder.rglob("*")
    }


CONTENTS = {
    "5": b"5",
    "[]": b"[]",
    "a word": b'"x"',
    "null": b"null",
    "empty": b"",
    "deep": b"[" * 50_000 + b"]" * 50_000,
    "digits": b'{"seed": ' + b"9" * 6000 + b"}",
    "not UTF-8": b'{"id": "\xff"}',
    "NaN": b'{"seed": NaN}',
    "half a pair": b'{"probe": "\\ud800"}',
}


def harm(path, kind):
    path.unlink(missing_ok=True)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a link":
        path.symlink_to(path.parent / "nowhere")
    else:
        path.write_bytes(CONTENTS[kind])


@pytest.mark.parametrize("kind", [*CONTENTS, "a folder", "a link"])
@pytest.mark.parametrize("name", ["job.json", "state.json"])
def test_a_job_that_cannot_be_read_is_named_kept_and_not_taken_up_and_the_others_are_listed(name, kind):
    bad, good = put(1), put(2)
    harm(bad / name, kind)
    before = files_of(bad)
    assert [(job.id, job.position) for job in jobs.listing()] == [(good.name, 1)]
    (odd,) = jobs.unreadable()
    assert odd.id == bad.name and str(bad / name) in odd.reason and len(odd.reason.splitlines()) == 1
    assert jobs.next_of("cpu").id == good.name
    with pytest.raises(InputError, match="cannot be read"):
        jobs.get(bad.name)
    if name == "state.json":
        with pytest.raises(InputError):
            job_files.write_state(bad.name, status="running")
    assert files_of(bad) == before
    jobs.cancel(bad.name)  # whatever runs it may still be stopped
    jobs.forget(bad.name)
    assert not os.path.lexists(bad) and jobs.unreadable() == []


ODD_FIELDS = [
    ("job.json", "config", []),
    ("job.json", "config", "x"),
    ("job.json", "device", "x"),
    ("job.json", "device", "cuda:" + "9" * 50),
    ("job.json", "probe", 5),
    ("job.json", "model", None),
    ("job.json", "model", ""),
    ("job.json", "seed", "3"),
    ("job.json", "seed", -1),
    ("job.json", "seed", True),
    ("job.json", "seed", 10**400),
    ("job.json", "data", ["a"]),
    ("job.json", "revision", {}),
    ("job.json", "submitted", 5),
    ("job.json", "id", "20260101T000000000009-abcdef"),
    ("state.json", "status", "odd"),
    ("state.json", "status", []),
    ("state.json", "pid", "1"),
    ("state.json", "pid", 10**30),
    ("state.json", "pid", -1),
    ("state.json", "born", "x"),
    ("state.json", "born", 10**300),
    ("state.json", "started", 5),
    ("state.json", "error", {"a": 1}),
    ("state.json", "run", ["x"]),
]


@pytest.mark.parametrize(("name", "field", "value"), ODD_FIELDS, ids=lambda value: str(value)[:20])
def test_an_odd_field_is_named_and_not_believed(name, field, value):
    bad, good = put(1), put(2)
    if name == "state.json":
        write_json(bad / name, {"status": "running", "pid": 1, "born": 1.0})
    found = json.loads((bad / name).read_text())
    (bad / name).write_text(json.dumps(found | {field: value}))
    assert [job.id for job in jobs.listing()] == [good.name]
    (odd,) = jobs.unreadable()
    assert field in odd.reason or "another job" in odd.reason


@pytest.mark.parametrize(
    "value",
    [5, [], "x", {"position": "first"}, {"done": "3"}, {"seconds_left": []}, {"total": -1}, {"label": 5}, "1e999"],
)
def test_odd_progress_hides_no_job(value):
    folder = put(1)
    write_json(folder / "state.json", {"status": "running", "pid": os.getpid(), "born": psutil.Process().create_time()})
    (folder / "progress.json").write_text('{"seconds_left": 1e999}' if value == "1e999" else json.dumps(value))
    (job,) = jobs.listing()
    assert (job.status, job.done, job.total, job.seconds_left) == ("running", 0, 0, None)
    job_files.write_progress(job.id, 3, 12, "grid", 4.0)
    (job,) = jobs.listing()
    assert (job.done, job.total, job.label, job.seconds_left) == (3, 12, "grid", 4.0)
    (folder / "progress.json").unlink()
    (folder / "progress.json").mkdir()
    job_files.write_progress(job.id, 4, 12, "grid", 4.0)  # a run is not stopped by what only shows it
    assert jobs.listing()[0].status == "running"


@pytest.mark.parametrize("kind", ["file", "link", "no job.json"])
def test_what_is_no_folder_of_a_job_is_named_and_can_be_dismissed(kind):
    folder = put(1)
    (folder / "job.json").unlink()
    if kind != "no job.json":
        folder.rmdir()
        folder.write_text("5") if kind == "file" else folder.symlink_to(folder.with_name("nowhere"))
    os.utime(folder, (1, 1), follow_symlinks=False)
    (odd,) = jobs.unreadable()
    assert odd.id == folder.name and str(folder) in odd.reason
    jobs.forget(odd.id)
    assert jobs.unreadable() == [] and not os.path.lexists(folder)
    (job_files.root() / "20260101T000000000001-abcdef").mkdir()
    assert jobs.unreadable() == []  # its job.json may be on its way


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_anything_called_cancel_cancels(kind):
    folder = put(1)
    place = folder / "cancel"
    if kind == "link":
        place.symlink_to(folder / "victim")
    else:
        place.touch() if kind == "file" else place.mkdir()
    jobs.cancel(folder.name)
    assert jobs.listing()[0].status == "cancelled" and not (folder / "victim").exists()


def test_the_worker_goes_on_past_every_bad_job_and_names_it(queued, tmp_path):  # noqa: F811
    bad = [put(number) for number in range(4)]
    harm(bad[0] / "job.json", "deep")
    harm(bad[1] / "state.json", "a folder")
    (bad[2] / "outcome.json").write_text('{"status": "complete", "run": "parts-0123456789ab"}')  # of nobody
    (bad[3] / "outcome.json").mkdir()
    good = jobs.submit("queued", "fake", seed=99)
    assert ended(good).status == "complete"
    assert {job.id for job in jobs.unreadable()} == {bad[0].name, bad[1].name}
    for folder in bad[2:]:
        job = jobs.get(folder.name)
        assert job.status == "failed" and "outcome.json was there before" in job.error and job.run is None
    assert len(workers()) == 1


@pytest.mark.parametrize("content", ["5", "[]", '{"status": "complete", "run": 5}', '{"status": "odd"}', "[" * 50_000])
def test_an_odd_outcome_fails_its_job_and_the_worker_goes_on(queued, content):  # noqa: F811
    job = jobs.submit("queued", "fake", config={"parts": 2, "seconds": 3.0})
    at_work(job)
    partial = job_files.root() / job.id / ".outcome"
    partial.write_text(content)
    partial.rename(job_files.root() / job.id / "outcome.json")
    now = ended(job)
    assert now.status == "failed" and "outcome.json cannot be read" in now.error
    assert ended(jobs.submit("queued", "fake", seed=5)).status == "complete"


@pytest.mark.parametrize("kind", ["panic", "base"])
def test_what_is_no_exception_ends_its_job_and_not_the_worker(queued, tmp_path, kind):  # noqa: F811
    job = jobs.submit("queued", "fake", config={"manner": kind, "log": str(tmp_path / "log")})
    now = ended(job)
    assert now.status == "failed" and {"panic": "PanicException", "base": "GeneratorExit"}[kind] in now.error
    assert "Traceback" in now.detail
    again = jobs.submit("queued", "fake", config={"log": str(tmp_path / "log")}, seed=1)
    assert ended(again).status == "complete"
    assert len({line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}) == 1  # one process did both


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("which", ["outer", "inner"])
@pytest.mark.load_sensitive("a limit of three seconds")
def test_a_signal_to_the_worker_closes_the_run_which_resumes(queued, tmp_path, number, which):  # noqa: F811
    log = tmp_path / "log"
    job = jobs.submit("queued", "fake", config={"parts": 3, "seconds": 0.8, "log": str(log)})
    until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
    (worker,) = workers()
    target = worker if which == "outer" else worker.children()[0]
    start = time.monotonic()
    target.send_signal(number)
    now = ended(job)
    assert now.status == "cancelled" and time.monotonic() - start < 3
    (run,) = (path for path in (job_files.root().parent / "runs").iterdir() if path.is_dir())
    assert json.loads((run / "run.json").read_text())["status"] == "cancelled"
    if which == "outer":
        until(lambda: workers() == [] and not jobs.has_worker("cpu"))
    assert ended(jobs.resume(now)).status == "complete"
    assert [line.split()[0] for line in log.read_text().splitlines()].count("0") == 1


def test_everything_of_the_queue_is_private_whatever_the_umask(queued):  # noqa: F811
    before = os.umask(0)
    try:
        path = jobs.keep_upload("data.csv", b"a\n1\n")
        assert ended(jobs.submit("queued", "fake")).status == "complete"
    finally:
        os.umask(before)
    cache = job_files.root().parent
    for folder in (job_files.root(), path.parent.parent, cache / "runs"):
        for item in [folder, *folder.rglob("*")]:
            assert stat.S_IMODE(item.stat().st_mode) == (0o700 if item.is_dir() else 0o600), item
    assert any(Path(item).suffix == ".log" for item in job_files.root().iterdir())
