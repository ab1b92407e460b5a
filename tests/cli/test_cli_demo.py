"""The demo and the figures command, end to end on a model written by hand; the progress bar on a terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from workbench.cli.main import run as command_line
from workbench.core import registry
from workbench.runs import demo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402


@pytest.fixture
def short_demo():
    """The demo on a smaller grid."""
    usual = demo.main_probe()
    small = {
        "lengths": (64, 96),
        "depths": (0, 50, 100),
        "needles": 2,
        "max_new_tokens": 6,
        "mask_k": (1,),
        "draws": 100,
    }
    registry.register(dataclasses.replace(usual, example=lambda model: small))
    yield
    registry.register(usual)


def test_the_demo_runs_draws_and_says_where_everything_is(short_demo, monkeypatch, capsys):

    monkeypatch.setattr(demo, "can_draw", lambda: False)
    assert command_line(["demo", "--model", "circuit-copy", "-q"]) == 0
    text = capsys.readouterr().out
    assert "retrieval-heads on circuit-copy: complete" in text and "Open the app:  make app" in text
    folder = Path(next(line for line in text.splitlines() if line.startswith("  in "))[5:])
    assert folder.name == "figures" and list(folder.glob("*.html")) and list(folder.glob("*.caption.txt"))

    (run,) = [line.split(": ")[1] for line in text.splitlines() if line.startswith("  folder: ")]
    assert command_line(["figures", run, "--format", "csv", "--json", "--out", str(Path(run).parent / "there")]) == 0
    written = json.loads(capsys.readouterr().out)
    assert all(Path(path).is_file() for path in written) and any(path.endswith(".csv") for path in written)
    assert command_line(["figures", run, "--format", "gif"]) == 2
    assert command_line(["figures", run, "--format", "csv", "--only", "no_such_figure"]) == 2


def test_the_examples_are_those_that_the_probes_ask_for_and_the_first_probe_is_the_main_one(monkeypatch):
    assert demo.main_probe().name == "retrieval-heads"
    found = [(probe.name, model) for probe, model in demo.declared()]
    assert sorted(found) == [
        ("bigram-subnetwork", "organism"),
        ("branching-factor", "organism"),
        ("concept-depth", "organism"),
        ("data-selection", "organism"),
        ("hopping", "organism"),
        ("knowledge-conflict", "organism"),
        ("latent-language", "circuit-bilingual"),
        ("latent-language", "organism"),
        ("layer-redundancy", "organism"),
        ("representation-geometry", "organism"),
        ("retrieval-heads", "organism-chat"),
        ("talking-heads", "organism"),
        ("token-filter", "organism"),
    ]
    real = registry.problem
    monkeypatch.setattr(registry, "problem", lambda name: "broken" if name == "concept-depth" else real(name))
    assert ("concept-depth", "organism") not in [(probe.name, model) for probe, model in demo.declared()]


def test_the_demo_does_not_pass_over_what_goes_wrong(short_demo, monkeypatch, capsys):
    assert command_line(["demo", "--model", "no-such-model", "-q"]) == 2
    import workbench.figures.export as export

    def broken(*_, **__):
        raise RuntimeError("no figures today")

    monkeypatch.setattr(export, "export_run", broken)
    assert command_line(["demo", "--model", "circuit-copy", "-q"]) == 3
    assert "no figures today" in capsys.readouterr().err


def test_on_a_terminal_progress_is_a_bar(tmp_path):
    command = [
        sys.executable,
        tiny_probes.__file__,
        "workbench",
        "run",
        "parts",
        "--model",
        "fake",
        "--set",
        "parts=4",
        "seconds=0.15",
    ]
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="100", WORKBENCH_CACHE=str(tmp_path / "cached"))
        os.execv(sys.executable, command)
    text = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the terminal closes with the process
            break
        if not piece:
            break
        text += piece
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.decode())
    assert "━" in said and "3 of 4" in said and "68%" in said and "parts on fake: complete" in said, said
