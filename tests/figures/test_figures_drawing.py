"""A browser that does not do its part costs a stated time, leaves nothing behind and is said in a sentence."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from probes.retrieval_heads import figures as retrieval_heads
from tests.support import figure_runs
from tests.support.app_screens import keep  # here: streamlit's test driver makes a temporary folder when it is imported
from workbench.core.errors import InputError, WorkbenchError
from workbench.figures import drawing, export
from workbench.figures.drawing import LIMIT

FAKES = {
    "sleeps": "sleep 600",
    "talks and hangs": 'echo "DevTools listening on ws://127.0.0.1:1/devtools/browser/x" >&2; sleep 600',
    "exits": "exit 1",
    "leaves a child": "setsid sh -c 'echo $$ >> PIDS; exec sleep 600' & sleep 600",
    "leaves a child and exits": "setsid sh -c 'echo $$ >> PIDS; exec sleep 600' & exit 1",
    "answers garbage": r"""printf 'no json\000{"id": 0}\000[1, 2]\000' >&4; sleep 600""",
    "is deaf": "trap '' TERM INT HUP; while :; do sleep 1; done",
}


@pytest.fixture
def temporary(monkeypatch):
    """A temporary folder of a short name, for this test only."""
    with tempfile.TemporaryDirectory(prefix="wb-", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


@pytest.fixture
def place(tmp_path, temporary, monkeypatch):
    """place(script) → a folder for pictures, with this script as Chromium."""

    def make(script: str) -> Path:
        fake = tmp_path / "chromium"
        fake.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\n{script.replace('PIDS', f'{tmp_path}/pids')}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("BROWSER_PATH", str(fake))
        (tmp_path / "out").mkdir()
        return tmp_path / "out"

    return make


@pytest.fixture
def fig():
    return retrieval_heads.score_curve(figure_runs.retrieval(layers=2, heads=2))


def alive(folder: Path) -> list[int]:
    """The fake browsers that still run, and whatever draws below this folder."""
    noted = (folder / "pids").read_text().split() if (folder / "pids").exists() else []
    found = [int(pid) for pid in noted if psutil.pid_exists(int(pid))]
    found = [pid for pid in found if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    for one in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in one.info["cmdline"] or []) and one.pid != os.getpid():
            found.append(one.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAKES)
def test_a_browser_that_never_answers_is_stopped_in_time_with_all_that_it_started(
    place, fig, kind, tmp_path, temporary, monkeypatch
):
    limit = 60 if "exits" in kind else 3  # one that is gone is not waited for, however slowly the drawing begins
    monkeypatch.setenv(LIMIT, str(limit))
    out = place(FAKES[kind])
    start = time.monotonic()
    with pytest.raises(WorkbenchError) as caught:
        export.export(fig, out / "a.pdf")
    assert time.monotonic() - start < (30 if limit == 60 else 5.5)
    said = str(caught.value)
    assert "a.pdf" in said and "html and csv work without it" in said and "\n" not in said
    over = f"within the 3 seconds that it has for all of this, and was stopped; {LIMIT}"
    if "exits" in kind:
        assert "could not draw a.pdf (" in said
    elif kind == "answers garbage":  # which may be seen before the time is over
        assert over in said or "could not draw a.pdf (it gives answers that are not Chromium's: install" in said
    else:
        assert over in said
    assert alive(tmp_path) == []
    assert list(temporary.iterdir()) == [] and list(out.iterdir()) == []
    export.export(fig, out / "a.csv")  # goes on working


@pytest.mark.slow
@pytest.mark.load_sensitive("Ctrl-C is to be obeyed within two seconds")
def test_ctrl_c_stops_an_export_within_two_seconds_and_leaves_nothing(place, tmp_path, temporary):
    process = _command_line(place, tmp_path)
    os.kill(process.pid, signal.SIGINT)
    start = time.monotonic()
    assert process.wait(20) == 130 and time.monotonic() - start < 2
    assert b"Traceback" not in process.stderr.read()
    assert alive(tmp_path) == [] and list(temporary.iterdir()) == []


@pytest.mark.slow
def test_an_export_that_is_killed_takes_its_browser_with_it(place, tmp_path, temporary):
    process = _command_line(place, tmp_path)
    process.kill()
    process.wait(10)
    start = time.monotonic()
    while (alive(tmp_path) or list(temporary.iterdir())) and time.monotonic() - start < 15:
        time.sleep(0.1)
    assert alive(tmp_path) == [] and list(temporary.iterdir()) == []


def _command_line(place, tmp_path) -> subprocess.Popen:
    """`workbench figures` on a run, once its browser, which sleeps, has started."""
    out = place("sleep 600")
    keep(figure_runs.retrieval(layers=2, heads=2), "retrieval-heads-00000000000a")
    command = [
        sys.executable,
        "-c",
        "from workbench.cli import main; main()",
        "figures",
        "retrieval-heads-00000000000a",
    ]
    process = subprocess.Popen(
        [*command, "--format", "pdf,html", "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    start = time.monotonic()
    while not (tmp_path / "pids").exists() and process.poll() is None and time.monotonic() - start < 60:
        time.sleep(0.05)
    assert list(out.glob("*.html"))  # what needs no browser is there
    return process


@pytest.mark.slow
def test_a_browser_that_fails_once_is_started_again_and_what_is_drawn_stays(place, fig, tmp_path, temporary):
    chromium = next((p for n in ("chromium", "google-chrome", "chrome") if (p := shutil.which(n))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine: `make setup` installs one")
    out = place(f'test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}; exec {chromium} "$@"')
    told = []
    pictures = [
        drawing.Picture(export.dressed(fig, preset="single"), kind, out / f"a.{kind}") for kind in ("svg", "pdf")
    ]
    drawing.draw(pictures, save=Path.write_bytes, progress=lambda *what: told.append(what))
    assert (out / "a.svg").read_bytes()[:4] == b"<svg" and (out / "a.pdf").read_bytes()[:5] == b"%PDF-"
    assert told == [(0, 2, "a.svg"), (1, 2, "a.pdf"), (2, 2, "")]
    assert list(temporary.iterdir()) == []


def test_the_deadline_grows_with_the_pictures_and_can_be_set(monkeypatch):
    monkeypatch.delenv(LIMIT, raising=False)
    assert drawing.limit_for(1) == 80 and drawing.limit_for(10) == 260
    monkeypatch.setenv(LIMIT, "7.5")
    assert drawing.limit_for(10) == 7.5
    for bad in ("0", "-1", "nan", "inf", "long"):
        monkeypatch.setenv(LIMIT, bad)
        with pytest.raises(InputError, match=f"{LIMIT} is '{re.escape(bad)}'"):
            drawing.limit_for(1)


def test_no_room_to_draw_in_is_said_in_a_sentence(place, fig, temporary, monkeypatch):
    out = place("exit 1")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "not"))
    with pytest.raises(WorkbenchError, match="no temporary folder to draw in .*TMPDIR"):
        export.export(fig, out / "a.pdf")


@pytest.mark.parametrize("answer", ["{}", "[1]", "null", '{"result": 3}', '{"result": {}}'])
def test_an_answer_that_is_not_chromiums_is_said_in_words_and_not_as_an_exception(answer):
    import json

    from workbench.figures.drawing_process import in_words

    with pytest.raises(Exception) as caught:  # as Kaleido reads what a browser answers
        json.loads(answer)["result"]["frameTree"]["frame"]
    said = in_words(caught.value)
    assert said.startswith("it gives answers that are not Chromium's") and "BROWSER_PATH" in said
    assert "Error" not in said
    assert in_words(RuntimeError("no page\nat line 3")) == "RuntimeError: no page"
