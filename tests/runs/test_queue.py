"""The queue: one worker per device, files as its only memory, cancelling within two seconds, nothing lost with a
process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from workbench.core.errors import InputError
from workbench.core.parquet import read_parquet
from workbench.runs import execution as runs
from workbench.runs import queue as jobs

HERE = Path(__file__).parent

PLUGIN = """
import errno, os, signal, time
from dataclasses import dataclass
import polars as pl
from workbench.core.context import Result
from workbench.core.registry import option, probe

@dataclass(frozen=True)
class Config:
    parts: int = option(3, "how many parts", low=1)
    seconds: float = option(0.0, "time that each part takes", low=0)
    manner: str = option("polite", "how it behaves")
    log: str = option("", "file that gets a line for each part")

@probe("queued", summary="Parts that take time.", tables={"rows": ("part", "x")}, bibtex="@misc{queued}")
def run(model, config: Config, context):
    for part in range(config.parts):
        def compute(part=part):
            if config.log:
                with open(config.log, "a") as file:
                    file.write(f"{part} {os.getpid()}\\n")
            if config.manner == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if config.manner == "error":
                raise ZeroDivisionError("a part that fails")
            if config.manner == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            if config.manner == "panic":
                raise pl.exceptions.PanicException("a panic in Rust")
            if config.manner == "base":
                raise GeneratorExit("no Exception at all")
            if config.manner == "stubborn":  # as a kernel that never comes back to Python
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            end = time.monotonic() + config.seconds
            while time.monotonic() < end:
                time.sleep(0.02)
                if config.manner == "polite":
                    context.check()
            return {"x": pl.DataFrame({"part": [part], "x": [context.rng(str(part)).random()]})}
        context.progress(part, config.parts, "parts")
        context.part(f"part {part}", compute)
    context.progress(config.parts, config.parts, "parts")
    found = pl.concat([context.part(f"part {part}", lambda: {})["x"] for part in range(config.parts)])
    return Result(tables={"rows": found}, summary={"parts": found.height})
"""

# Loading a real model takes seconds in which torch is imported; the queue does not care what the model is.
MODELS = """
import os, sys, types

if not os.environ.get("REAL_MODELS"):
    def resolve(name, *, revision=None):
        from workbench.core.errors import InputError
        if name != "fake":
            raise InputError(f"There is no model called \'{name}\'.")
        return os.path.dirname(__file__)

    def load(name, revision=None, **_):
        return types.SimpleNamespace(name=name, revision=None, fingerprint="f", tokenizer_fingerprint="t", architecture="Fake", n_layers=2,
                                     n_heads=4, n_kv_heads=2, width=16, dtype="float32", device="cpu")

    sys.modules["workbench.models.loading"] = types.SimpleNamespace(load=load)
    sys.modules["workbench.models.before_loading"] = types.SimpleNamespace(
        check_presence=lambda name: None, check_request=lambda name, **_: None
    )
    sys.modules["workbench.models.files"] = types.SimpleNamespace(resolve=resolve)
"""  # noqa: E501


@pytest.fixture
def queued(tmp_path, monkeypatch):
    """The probe above, installed as any other package installs one; the worker finds it by itself."""
    site = tmp_path / "site"
    about = site / "queued_probe-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "queued_probe.py").write_text(PLUGIN)
    (site / "sitecustomize.py").write_text(MODELS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: queued-probe\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[workbench.probes]\nqueued = queued_probe\n")
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("WORKBENCH_WORKER_IDLE", "60")
    monkeypatch.syspath_prepend(str(site))
    from workbench.core import registry

    registry._entry_points.cache_clear()
    yield
    for process in workers():
        for child in process.children(recursive=True):
            child.kill()
        process.kill()
        try:
            process.wait(5)
        except psutil.TimeoutExpired:  # whoever took it over has not asked for its exit code yet
            assert process.status() == psutil.STATUS_ZOMBIE
    registry.unregister("queued")
    registry._entry_points.cache_clear()
    sys.modules.pop("queued_probe", None)


def workers() -> list[psutil.Process]:
    """The outer worker processes of this test's own queue."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "workbench.runs.worker" in process.cmdline() and "--compute" not in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition, *, seconds=60.0):
    """Wait for it; a test that waits in vain fails with what was seen last."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.03)
    raise AssertionError(f"did not happen; the queue holds {[(j.id, j.status, j.error) for j in jobs.listing()]}")


def ended(job):
    return until(lambda: (now := jobs.get(job.id)).ended and now)


def at_work(job):
    return until(lambda: (now := jobs.get(job.id)).status == "running" and now.label.startswith("parts") and now)


def test_waiting_jobs_are_numbered_in_the_order_in_which_they_were_asked_for(queued, monkeypatch):
    monkeypatch.setattr(jobs, "wake", lambda device=None: None)
    asked = [jobs.submit("queued", "fake", seed=i, device=device) for i, device in enumerate(("cpu", "cuda:0", "cpu"))]
    assert [(job.position, job.status) for job in asked] == [(1, "queued"), (1, "queued"), (2, "queued")]
    assert [job.id for job in jobs.listing()] == [job.id for job in asked]
    assert [jobs.next_of(device).id for device in ("cpu", "cuda:0")] == [asked[0].id, asked[1].id]


def test_a_job_runs_to_its_end_and_the_next_one_finds_the_model_warm(queued, tmp_path):
    log = str(tmp_path / "log")
    first = jobs.submit("queued", "fake", config={"log": log})
    second = jobs.submit("queued", "fake", config={"log": log}, seed=1)
    done = [ended(first), ended(second)]
    assert [job.status for job in done] == ["complete", "complete"], done
    found = [runs.run_by_id(job.run) for job in done]
    assert all(run.table("rows").height == 3 and run.status == "complete" for run in found)
    assert len({line.split()[1] for line in Path(log).read_text().splitlines()}) == 1  # one process computed both
    assert found[1].info["command"].endswith("--seed 1")
    until(lambda: len(workers()) == 1)  # a second one that was started finds the lock taken and leaves


def test_a_real_model_in_the_worker_gives_the_tables_of_a_run_in_this_process(queued, monkeypatch, tmp_path):
    monkeypatch.setenv("REAL_MODELS", "1")
    job = ended(jobs.submit("queued", "circuit-copy", seed=3))
    assert job.status == "complete", job
    direct = runs.execute("queued", "circuit-copy", seed=3, out=tmp_path / "direct")
    assert direct.table("rows").equals(runs.run_by_id(job.run).table("rows")) and direct.id == job.run


@pytest.mark.parametrize("manner", ["polite", "deaf", "stubborn"])
@pytest.mark.load_sensitive("a limit of two seconds")
def test_cancel_stops_the_computation_within_two_seconds_and_resume_goes_on(queued, tmp_path, manner):
    log = tmp_path / "log"
    job = jobs.submit("queued", "fake", config={"parts": 2, "seconds": 0.0, "log": str(log)})
    ended(job)  # the worker is warm now, so that the clock measures the cancel and not the start of Python
    log.unlink()
    job = jobs.submit("queued", "fake", config={"parts": 3, "seconds": 30.0, "manner": manner, "log": str(log)})
    at_work(job)
    until(log.exists)
    process = psutil.Process(int(log.read_text().split()[1]))
    start = time.monotonic()
    jobs.cancel(job)
    now = ended(job)
    taken = time.monotonic() - start
    assert now.status == "cancelled" and taken < 2.0, (now, taken)
    if manner == "polite":
        assert process.is_running()  # the model stays warm
    else:
        until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, seconds=2)
    quick = jobs.submit("queued", "fake", config={"parts": 1, "log": str(log)})
    assert ended(quick).status == "complete"  # the queue goes on


def test_cancelling_a_waiting_job_takes_it_out_of_the_queue_at_once(queued, tmp_path):
    first = jobs.submit("queued", "fake", config={"parts": 2, "seconds": 20.0})
    second = jobs.submit("queued", "fake", config={"log": str(tmp_path / "never")})
    third = jobs.submit("queued", "fake", seed=5)
    assert jobs.get(third.id).position == jobs.get(second.id).position + 1
    jobs.cancel(second)
    assert jobs.get(second.id).status == "cancelled"
    at_work(first)
    assert jobs.get(third.id).position == 1
    jobs.cancel(first)
    assert ended(third).status == "complete"
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("manner", "words", "failure"),
    [
        ("crash", "SIGKILL", "circumstance"),
        ("error", "a part that fails", "fault"),
        ("full", "is full", "circumstance"),
    ],
)
def test_a_crash_is_reported_with_its_message_and_the_queue_goes_on(queued, manner, words, failure):
    bad = jobs.submit("queued", "fake", config={"manner": manner})
    good = jobs.submit("queued", "fake")
    now = ended(bad)
    assert now.status == "failed" and words in now.error
    assert now.failure == failure and now.resumable == (failure == "circumstance")
    assert ended(good).status == "complete"


@pytest.mark.load_sensitive("the worker is killed within a part of 1.2 seconds")
def test_a_run_whose_worker_was_killed_is_found_interrupted_and_resumes_where_it_stopped(queued, tmp_path):
    log = tmp_path / "log"
    job = jobs.submit("queued", "fake", config={"parts": 3, "seconds": 1.2, "manner": "deaf", "log": str(log)})
    until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
    (worker,) = workers()
    inner = worker.children()
    worker.kill()
    for process in inner:
        process.kill()
    now = until(lambda: (found := jobs.get(job.id)).status == "interrupted" and found)
    assert "resume" in now.error
    again = jobs.resume(now)
    assert again.id != job.id and ended(again).status == "complete"
    parts = [line.split()[0] for line in log.read_text().splitlines()]
    assert parts.count("0") == 1 and parts[-1] == "2"  # only the open part was computed again


@pytest.mark.load_sensitive("the job lasts two seconds, and is looked at before it ends")
def test_the_worker_outlives_the_process_that_asked(queued, tmp_path):
    code = (
        "from workbench.runs import queue as jobs;"
        "print(jobs.submit('queued', 'fake', config={'parts': 2, 'seconds': 1.0}).id)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=HERE)
    identifier = found.stdout.strip()
    assert identifier and jobs.get(identifier).status in ("queued", "running"), found.stderr
    job = ended(jobs.get(identifier))
    assert job.status == "complete"
    pid = json.loads((jobs.root() / identifier / "state.json").read_text())["pid"]
    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:  # it is no child of this test
        process.send_signal(signal.SIGKILL)


def test_the_same_work_is_queued_once_and_a_job_that_left_no_worker_is_taken_up(queued):
    first = jobs.submit("queued", "fake", start=False)
    assert jobs.submit("queued", "fake", start=False).id == first.id
    assert not jobs.has_worker("cpu") and jobs.get(first.id).status == "queued"
    jobs.wake()  # what a page does when it is opened
    assert ended(first).status == "complete"


@pytest.mark.load_sensitive("looks at a job while it is at work")
def test_progress_says_how_far_and_how_long(queued):
    job = jobs.submit("queued", "fake", config={"parts": 8, "seconds": 0.4})
    now = until(lambda: (found := jobs.get(job.id)).seconds_left is not None and found)
    assert now.total == 1000 and 0 < now.done < 1000 and 0 < now.seconds_left < 12 and " of 8" in now.label
    assert ended(job).done == 1000


def test_bad_input_is_refused_before_anything_is_queued(queued, tmp_path):
    with pytest.raises(InputError, match="parts"):
        jobs.submit("queued", "fake", config={"parts": 0})
    with pytest.raises(InputError, match="model"):
        jobs.submit("queued", "  ")
    with pytest.raises(InputError, match="device"):
        jobs.submit("queued", "fake", device="../../x")
    with pytest.raises(InputError, match="no data file"):
        jobs.submit("queued", "fake", data=tmp_path / "x.csv")
    assert jobs.listing() == []
    bad = jobs.submit("queued", "no-such-model")
    assert ended(bad).status == "failed" and "no-such-model" in jobs.get(bad.id).error
    assert jobs.get(bad.id).failure == "settings" and not jobs.get(bad.id).resumable


@pytest.mark.parametrize(
    "identifier", ["..", "../runs", "20260101T000000000000-zzzzzz", "", "a/b", "20260101T000000000000-abcdef"]
)
def test_only_ids_of_jobs_are_looked_at(identifier):
    with pytest.raises(InputError, match="no job"):
        jobs.cancel(identifier)
    with pytest.raises(InputError, match="no job"):
        jobs.get(identifier)


def test_uploads_are_kept_under_harmless_names_and_within_bounds(monkeypatch, tmp_path):
    path = jobs.keep_upload("../../<script>alert(1)</script>.csv", b"a,b\n1,2\n")
    assert path.name == "script.csv"
    assert jobs.paths.cache_root() in path.parents and path.read_bytes() == b"a,b\n1,2\n"
    with pytest.raises(InputError, match="MB"):
        jobs.keep_upload("big.csv", bytes(jobs.MOST_BYTES + 1))
    for name in ("model.pkl", "bomb.zip", "run.sh", "noending"):
        with pytest.raises(InputError, match="data file is one of"):
            jobs.keep_upload(name, b"PK\x03\x04")


@pytest.mark.load_sensitive("a limit of two seconds")
def test_parquet_that_is_broken_or_a_bomb_is_refused_before_it_is_unpacked(monkeypatch, tmp_path):
    import polars as pl

    with pytest.raises(InputError, match="cannot be read as Parquet"):
        jobs.keep_upload("x.parquet", b"PAR1 not really PAR1")
    bomb = tmp_path / "bomb.parquet"
    pl.DataFrame({"text": ["a" * 100]}).select(pl.col("text").repeat_by(jobs.MOST_ROWS + 1).explode()).write_parquet(
        bomb
    )
    content = bomb.read_bytes()
    assert len(content) < 1_000_000  # small as a file
    start = time.monotonic()
    with pytest.raises(InputError, match="unpacks"):
        jobs.keep_upload("bomb.parquet", content)
    assert time.monotonic() - start < 2
    # within the rows that are allowed, and by its footer a few kilobytes: one long value, said over and over
    monkeypatch.setattr(jobs, "MOST_BYTES", 2_000_000)
    pl.DataFrame({"text": ["a" * 2000]}).select(pl.col("text").repeat_by(15_000).explode()).write_parquet(bomb)
    content = bomb.read_bytes()
    assert len(content) < 100_000
    with pytest.raises(InputError, match="unpacks to more than 20.0 MB"):
        jobs.keep_upload("bomb.parquet", content)
    good = tmp_path / "good.parquet"
    pl.DataFrame({"text": ["a", "b"]}).write_parquet(good)
    assert read_parquet(jobs.keep_upload("good.parquet", good.read_bytes())).height == 2
