"""What comes from files and arguments cannot steer the terminal, and paths that can be none are a sentence."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from workbench.cli.main import run as command_line
from workbench.core.files import write_json
from workbench.core.wording import harmless
from workbench.runs import execution as runs
from workbench.runs import records

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

STEERING = {
    "escape": "\x1b[2J",
    "title": "\x1b]0;owned\x07",
    "csi": "\x9b31m",
    "carriage return": "good\rbad",
    "backspace": "a\x08b",
    "delete": "\x7f",
    "turned round": "\u202egpj.exe",
    "isolate": "\u2066x\u2069",
    "mark": "\u200f",
    "line separator": "a\u2028b",
    "not seen": "\u200b\ufeff",
    "tag": "\U000e0041",
    "null": "\0",
}
UNSAFE = set("".join(STEERING.values())) - set("[2J]0;owned31mgoodbadgpj.exe")


@pytest.mark.parametrize("text", STEERING.values(), ids=STEERING)
def test_text_that_steers_a_terminal_is_spelt_out_and_the_rest_is_left_alone(text):
    assert not UNSAFE & set(harmless(text)) and "\\" in harmless(text)
    plain = "naïve Straße 東京 שלום مرحبا 👩\u200d🔬 a\tb\nc"
    assert harmless(plain) == plain and harmless(harmless(text)) == harmless(text)


@pytest.fixture
def hostile() -> runs.Run:
    """A run that says of itself what a terminal should not be told."""
    run = runs.execute("parts", tiny_probes.fake_model(), config={"parts": 1})
    word = "".join(STEERING.values())
    write_json(run.folder / "summary.json", {f"mean {word}": word, "list": [word]})
    model = run.info["model"] | {"name": word, "architecture": word, "device": word}
    info = {key: value for key, value in run.info.items() if key not in ("files", "checksum")}
    about = {"model": model, "warnings": [word], "command": word, "started": word, "config": {"log": word}}
    data = {"path": word, "rows": 3}
    write_json(run.folder / "run.json", info | about | {"data": data, "error": {"message": word}, "probe": f"p{word}"})
    return runs.open_run(run.folder)


def test_nothing_of_a_run_steers_the_terminal_and_json_stays_exact(hostile, capsys):
    for words in (["runs"], ["show", hostile.id], ["verify"], ["compare", hostile.id, hostile.id]):
        assert command_line(words) == 0
        said = capsys.readouterr()
        assert not UNSAFE & set(said.out + said.err), words
    assert command_line(["show", hostile.id, "--json"]) == 0
    out = capsys.readouterr().out
    shown = json.loads(out)
    assert not UNSAFE & set(out) and shown["model"]["name"] == hostile.info["model"]["name"]
    assert shown["summary"] == hostile.summary and shown["warnings"] == hostile.info["warnings"]


@pytest.mark.parametrize("word", STEERING.values(), ids=STEERING)
def test_no_error_steers_the_terminal(word, capsys):
    for words in (
        ["show", f"x{word}"],
        ["run", f"x{word}", "--model", "fake"],
        ["run", "parts", "--quiet", "--model", f"./x{word}"],
        ["run", "parts", "--model", "fake", "--set", f"x{word}=1"],
        ["run", "parts", "--model", "fake", "--set", f"parts={word}"],
        ["run", "parts", "--model", "fake", "--edit", f"x{word}"],
        ["figures", f"./x{word}"],
        [f"x{word}"],
        ["runs", f"--{word}"],
    ):
        assert command_line(words) == 2, words
        said = capsys.readouterr().err
        assert not UNSAFE & set(said) and said.count("\n") == 1, words


def test_what_a_run_folder_says_when_it_cannot_be_read_does_not_steer_the_terminal(capsys):
    run = runs.execute("parts", tiny_probes.fake_model(), config={"parts": 1})
    word = "".join(STEERING.values())
    write_json(run.folder / "run.json", records.seal(run.info | {"status": word}))
    assert command_line(["runs"]) == 0 and command_line(["show", run.id]) == 2 and command_line(["verify"]) == 3
    said = capsys.readouterr()
    assert "could not be read" in said.err and not UNSAFE & set(said.out + said.err)


def test_progress_labels_do_not_steer_the_terminal(capsys):
    from workbench.cli.show import progress

    with progress() as report:
        report(1, 2, "loading " + "".join(STEERING.values()))
    assert not UNSAFE & set(capsys.readouterr().err)


LONG = "x" * 300


@pytest.mark.parametrize("path", ["", LONG, f"folder/{LONG}/a", "a/" * 2500, "a\0b", "ü" * 130])
@pytest.mark.parametrize(
    "words",
    [
        ["run", "parts", "--model", "fake", "--out"],
        ["run", "next-token-entropy", "--model", "fake", "--data"],
        ["run", "parts", "--model", "fake", "--config"],
        ["run", "parts", "--model", "fake", "--edit"],
        ["run", "parts", "--model"],
        ["sweep"],
        ["show"],
        ["verify"],
        ["figures"],
        ["figures", "x", "--out"],
        ["runs", "--root"],
        ["export-pruned", "organism"],
        ["export-pruned", "organism", "mask.json"],
    ],
    ids=" ".join,
)
def test_a_path_that_can_be_none_is_one_sentence_and_exit_code_2(words, path, capsys, monkeypatch):
    fake = types.SimpleNamespace(load=lambda name, revision=None, **_: tiny_probes.fake_model(name))
    if words[-1] != "--model":
        monkeypatch.setitem(sys.modules, "workbench.models.loading", fake)
    last = ["folder"] if words == ["export-pruned", "organism"] else []
    assert command_line([*words, path, *last]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Errno" not in said and len(said) < 400, said
