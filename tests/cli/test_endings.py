"""How a command ends when what it writes to is full or gone, or something that is no Exception comes up: one sentence
and an exit code, and a run that is complete or can be resumed."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

from workbench.cli.main import run as command_line
from workbench.core.errors import is_panic

CHILD = [sys.executable, tiny_probes.__file__, "workbench"]


def begun(folder: Path, parts: int = 2) -> None:
    """Wait until some parts of a run are there."""
    end = time.monotonic() + 30
    while len(list(folder.glob("parts/[!.]*"))) < parts:
        assert time.monotonic() < end
        time.sleep(0.02)


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


def a_run(folder: Path, *words: str) -> list[str]:
    return [*CHILD, "run", "parts", "--model", "fake", "--set", "parts=6", "seconds=0.1", "--out", str(folder), *words]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize(
    ("words", "unbuffered"), [(["runs"], ""), (["--help"], "1"), (["--version"], ""), (["probes", "--json"], "1")]
)
def test_a_full_stdout_is_one_sentence_and_exit_code_3(words, unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*CHILD, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 3
    said = [line for line in done.stderr.splitlines() if not line.startswith("ready ")]
    assert said == ["workbench: The output could not be written: No space left on device."]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_run_whose_summary_cannot_be_printed_is_complete(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(a_run(tmp_path / "run", "-q"), stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 3 and "could not be written" in done.stderr and status(tmp_path / "run") == "complete"
        program = "from workbench.cli.main import main; main(['nothing'])"
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, text=True)
    assert done.returncode == 2  # what is wrong could not be said, but is still an exit code


def test_a_reader_of_progress_that_goes_away_does_not_stop_the_run(tmp_path):
    child = subprocess.Popen(a_run(tmp_path / "run"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun(tmp_path / "run")
    child.stderr.close()
    out = child.stdout.read()
    child.stdout.close()
    assert child.wait(30) == 0 and "complete" in out and status(tmp_path / "run") == "complete"


@pytest.mark.parametrize(("ignored", "ends"), [(False, "cancelled"), (True, "complete")])
def test_the_end_of_the_terminal_closes_a_run_and_under_nohup_it_goes_on(tmp_path, ignored, ends):
    folder = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execve(sys.executable, a_run(folder), {**os.environ, "TERM": "xterm"})
    begun(folder)
    os.close(terminal)  # what it prints from here on is refused with EIO
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status(folder) == ends and code == (3 if ignored else 130)  # the summary found no terminal
    if not ignored:
        assert subprocess.run(a_run(folder, "-q"), capture_output=True).returncode == 0


def test_a_command_that_is_stopped_before_a_run_has_begun_says_so(monkeypatch, capsys):
    from workbench.runs import folder

    def stop(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "list_runs", stop)
    assert command_line(["runs"]) == 130
    assert capsys.readouterr().err == "workbench: Cancelled.\n"


def test_a_sentence_that_asks_what_was_meant_ends_in_one_mark(capsys):
    for argv in (["prbes"], ["runs", "--jsn"], ["--nothing-like-it"]):
        assert command_line(argv) == 2
        said = capsys.readouterr().err
        assert said.rstrip().endswith("See workbench --help.") and "?." not in said and ".." not in said


@pytest.mark.parametrize("error", [pl.exceptions.PanicException("index out of bounds\nmore"), GeneratorExit("odd")])
def test_what_is_no_exception_is_one_sentence_and_exit_code_3(monkeypatch, capsys, error):
    from workbench.runs import folder

    def fail(**_):
        raise error

    monkeypatch.setattr(folder, "list_runs", fail)
    monkeypatch.setattr("workbench.runs.execution.list_runs", fail)
    assert command_line(["runs"]) == 3
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and type(error).__name__ in said and str(error).split("\n")[0] in said
    assert command_line(["--debug", "runs"]) == 3 and "Traceback" in capsys.readouterr().err


def test_a_panic_is_told_from_everything_else():
    assert is_panic(pl.exceptions.PanicException("x"))
    assert not any(is_panic(error) for error in (Exception("x"), KeyboardInterrupt(), SystemExit(1)))
