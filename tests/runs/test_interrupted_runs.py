"""Runs that are killed, or that two processes want at once: nothing is lost, and nothing finished is computed again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.core import context as contexts
from workbench.runs import execution as runs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

MODEL = tiny_probes.fake_model()
CHILD = [sys.executable, tiny_probes.__file__, "workbench", "run", "parts", "--model", "fake"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every result file of a run folder, by name."""
    kept = [*folder.glob("tables/*"), folder / "arrays.safetensors", folder / "summary.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.load_sensitive("three processes have to overlap within a third of a second")
def test_two_processes_never_compute_the_same_run(tmp_path):
    log = tmp_path / "log"
    command = [*CHILD, "--set", f"log={log}", "seconds=0.05", "--out", str(tmp_path / "run"), "--json"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    outcomes = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], outcomes
    assert sorted(log.read_text().split()) == list("012345")
    assert len({hashlib.sha256(out.encode()).hexdigest() for out, _ in outcomes}) == 1
    assert any("another process computes this run" in err for _, err in outcomes)
    assert sorted(path.name for path in (tmp_path / "run").iterdir())[0] == "arrays.safetensors"  # no lock file stays


# A process that imports everything once and then runs the command line in a forked child for every line that it reads;
# it tells the child's number, and when the child is gone how it ended.
FORKS = """
import os, sys
import tiny_probes, types
from workbench.cli.main import run
import workbench.core.tables, workbench.runs.provenance, workbench.runs, workbench.store, importlib.metadata, numpy.random
sys.modules["workbench.models.loading"] = types.SimpleNamespace(load=lambda name, revision=None, **_: tiny_probes.fake_model(name))
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = run(sys.argv[1:])
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""  # noqa: E501


@pytest.mark.slow
def test_a_run_killed_at_random_moments_resumes_to_the_same_result_and_recomputes_nothing_finished(tmp_path):
    log = tmp_path / "log"
    command = [
        "run",
        "parts",
        "--model",
        "fake",
        "-q",
        "--set",
        f"log={log}",
        "--set",
        "parts=24",
        "--set",
        "seconds=0.01",
        "--out",
        str(tmp_path / "run"),
    ]
    config = {"log": str(log), "parts": 24, "seconds": 0.01}
    whole = runs.execute("parts", MODEL, config=config, out=tmp_path / "whole")
    dice, kills, parts_kept, told = random.Random(0), 0, 0, (tmp_path / "stderr").open("w")
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=told,
        bufsize=0,
        cwd=Path(tiny_probes.__file__).parent,
    )
    while kills < 20:
        log.write_text("")
        kept = {path.name for path in (tmp_path / "run").glob("parts/[!.]*")}
        forks.stdin.write(b"\n")
        pid = int(forks.stdout.readline())
        # anywhere: one kill in four may fall before the first part, the others are counted from there, however slow the
        # machine
        counted = dice.random() < 0.75
        while counted and not log.read_text() and not _ready(forks.stdout, 0.002):
            pass
        if not _ready(forks.stdout, dice.uniform(0.0, 0.45)):
            with contextlib.suppress(ProcessLookupError):  # it ended in this moment
                os.kill(pid, signal.SIGKILL)
        code = int(forks.stdout.readline())
        assert code in (0, -signal.SIGKILL), (tmp_path / "stderr").read_text()
        kills += code != 0
        begun = [int(line) for line in log.read_text().split()]
        again = [number for number in begun if contexts._file_name(f"part {number}") in kept]
        assert again == [], f"finished parts were computed again: {again}"
        parts_kept += len(kept)
        if code == 0:
            assert contents(tmp_path / "run") == contents(whole.folder)
            assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(
                p.name for p in whole.folder.iterdir()
            )
            assert [p for p in (tmp_path / "run").rglob(".*")] == []
            shutil.rmtree(tmp_path / "run")
    forks.stdin.close()
    assert forks.wait(10) == 0
    forks.stdout.close()
    told.close()
    assert parts_kept > 0
    final = runs.execute("parts", MODEL, config=config, out=tmp_path / "run")
    assert contents(final.folder) == contents(whole.folder) and final.info["counters"] == whole.info["counters"]
    assert [p for p in final.folder.rglob(".*")] == [] and not (final.folder / "parts").exists()


def _ready(stream, seconds: float) -> bool:
    """Whether the stream has something to read within that time."""
    return bool(select.select([stream], [], [], seconds)[0])
