"""One odd file in a run folder costs that folder a sentence, and nothing else: lists go on, nothing is overwritten."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from workbench.core.errors import InputError
from workbench.core.files import write_json
from workbench.runs import execution as runs
from workbench.runs import notes
from workbench.runs.folder import UnreadableRun, unreadable_sentence

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

MODEL = tiny_probes.fake_model()
NO_RUN_JSON = {
    "a number": b"5",
    "a list": b"[1, 2]",
    "text": b'"run"',
    "null": b"null",
    "nothing": b"",
    "half": b'{"schema": 1, "id": "x',
    "empty": b"{}",
    "deep": b'{"schema": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "rather deep": b'{"schema": 1, "x": ' + b"[" * 400 + b"]" * 400 + b"}",
    "digits": b'{"schema": ' + b"9" * 6000 + b"}",
    "not UTF-8": b'{"schema": 1, "id": "\xff\xfe"}',
    "UTF-16": json.dumps({"schema": 1}).encode("utf-16"),
}
ODD_FIELDS = [
    {"schema": "1"},
    {"schema": 0},
    {"schema": 99},
    {"schema": True},
    {"schema": None},
    {"id": 7},
    {"id": "../../etc"},
    {"id": "a\x1b[2Jb"},
    {"id": "x" * 300},
    {"probe": None},
    {"probe": ["parts"]},
    {"status": "done"},
    {"status": ["complete"]},
    {"status": {}},
    {"model": 5},
    {"model": ["fake"]},
    {"model": {"name": 5}},
    {"model": {"layers": "two"}},
    {"seconds": 5},
    {"seconds": {"total": "long"}},
    {"seconds": {"total": -1}},
    {"counters": []},
    {"counters": {"tokens": "many"}},
    {"counters": {"tokens": -4}},
    {"status": "running", "pid": "12"},
    {"status": "running", "pid": -1},
    {"status": "running", "pid": True},
    {"status": "running", "pid": 10**30},
    {"status": "running", "pid": 0},
    {"status": "running", "host": 5},
    {"started": 5},
    {"finished": ["now"]},
    {"seed": "0"},
    {"seed": -1},
    {"config": [1]},
    {"data": "file.csv"},
    {"data": {"rows": "3"}},
    {"warnings": "none"},
    {"warnings": [1]},
    {"error": "it failed"},
    {"command": 3},
    {"files": {"a": 5}},
    {"files": ["a"]},
]


def made(seed: int = 0, **how) -> runs.Run:
    return runs.execute("parts", MODEL, config={"parts": 2}, seed=seed, **how)


def listed() -> tuple[list[str], str]:
    unreadable: list[UnreadableRun] = []
    return [run.id for run in runs.list_runs(unreadable=unreadable)], unreadable_sentence(unreadable)


def held_to_its_rules(bad: Path, good: runs.Run, capsys) -> None:
    """The folder is named by every list, its neighbour is listed, and only --fresh takes it."""
    from workbench.cli.main import run as command_line

    found, said = listed()
    assert found == [good.id] and said.startswith("1 folder could not be read: ") and str(bad / "run.json") in said
    assert command_line(["runs"]) == 0
    shown = capsys.readouterr()
    assert good.id in shown.out and "1 folder could not be read" in shown.err and "Traceback" not in shown.err
    assert command_line(["runs", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [good.id]
    for words in (["show", bad.name], ["compare", good.id, str(bad)], ["figures", bad.name]):
        assert command_line(words) == 2
        assert "run.json" in (said := capsys.readouterr().err) and said.count("\n") == 1 and "\x1b" not in said
    assert command_line(["verify"]) == 3


@pytest.mark.parametrize("kind", NO_RUN_JSON)
def test_a_run_json_that_is_none_is_named_left_alone_and_computed_again_by_fresh_only(kind, capsys):
    bad, good = made(), made(seed=1)
    (bad.folder / "run.json").write_bytes(NO_RUN_JSON[kind])
    held_to_its_rules(bad.folder, good, capsys)
    with pytest.raises(InputError, match="run.json cannot be read: .*--fresh"):
        made()
    assert (bad.folder / "run.json").read_bytes() == NO_RUN_JSON[kind]
    again = made(fresh=True)
    assert again.status == "complete" and listed() == ([again.id, good.id], "")


def test_a_run_json_with_an_odd_field_is_named_with_the_field_and_costs_no_other_run(capsys):
    from workbench.cli.main import run as command_line

    bad, good = made(), made(seed=1)
    before = {key: value for key, value in bad.info.items() if key not in ("files", "checksum")}
    for odd in ODD_FIELDS:
        host = {"host": socket.gethostname()} if odd.get("status") == "running" and "host" not in odd else {}
        (bad.folder / "run.json").write_text(json.dumps(before | host | odd))
        found, said = listed()
        assert found == [good.id] and said.startswith("1 folder could not be read: "), odd
        assert odd == {"schema": 99} or f"'{list(odd)[-1]}" in said, (odd, said)
        assert command_line(["runs"]) == 0 and command_line(["show", bad.id]) == 2, odd
        assert "Traceback" not in capsys.readouterr().err, odd


def test_numbers_that_no_float_holds_are_no_numbers():
    bad, good = made(), made(seed=1)
    for number in ("1e400", "-1e400", "NaN", "Infinity"):
        text = json.dumps({key: bad.info[key] for key in ("schema", "id", "probe", "status")} | {"pid": 0})
        (bad.folder / "run.json").write_text(text.replace('"pid": 0', f'"pid": {number}'))
        assert listed()[0] == [good.id] and "1 folder could not be read" in listed()[1]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "link to itself", "device"])
def test_what_is_no_file_by_the_name_of_run_json_is_named_and_nobody_waits_for_it(kind, capsys):
    bad, good = made(), made(seed=1)
    path = bad.folder / "run.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
        (path / "mine").write_text("x")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link to nothing": "nowhere", "link to itself": "run.json", "device": "/dev/zero"}[kind])
    held_to_its_rules(bad.folder, good, capsys)
    with pytest.raises(InputError, match="run.json cannot be read"):
        made()
    assert made(fresh=True).status == "complete"


def test_files_that_nobody_may_open_are_named(monkeypatch, capsys):
    bad, good = made(), made(seed=1)
    real = os.open

    def refuse(path, *how, **more) -> int:
        if Path(path) == bad.folder / "run.json":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *how, **more)

    monkeypatch.setattr(os, "open", refuse)
    held_to_its_rules(bad.folder, good, capsys)
    assert "Permission denied" in listed()[1]


def test_a_folder_that_nobody_may_look_into_is_named(monkeypatch):
    bad, good = made(), made(seed=1)
    real = os.listdir

    def refuse(path="."):
        if Path(path) == bad.folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert listed()[0] == [good.id] and f"{bad.folder} cannot be read: Permission denied" in listed()[1]


def test_a_run_that_lost_its_run_json_is_named_and_computed_again_by_fresh_only():
    bad, good = made(), made(seed=1)
    (bad.folder / "run.json").unlink()
    assert listed()[0] == [good.id] and bad.id in listed()[1]
    with pytest.raises(InputError, match="holds no run: .* --fresh"):
        made()
    assert made(fresh=True).status == "complete"


def test_folders_of_any_name_are_listed_and_opened_by_it(capsys):
    from workbench.cli.main import run as command_line

    run = made()
    names = ["copy [1] of it", "a*b", "line\nbreak", "\x1b[31mred"]
    for name in names:
        (runs.runs_root() / name).mkdir()
        for item in ("tables", "summary.json", "run.json", "arrays.safetensors", "progress.jsonl"):
            (runs.runs_root() / name / item).symlink_to(run.folder / item)
    assert {found.folder.name for found in runs.list_runs()} == {run.id, *names}
    for name in names:
        assert runs.run_by_id(name).table("rows").equals(run.table("rows"))
    assert command_line(["runs"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 6 and "\x1b" not in out and "\\x1b[31mred" in out
    with pytest.raises(InputError, match="no run"):
        runs.run_by_id("../" + run.id)


@pytest.mark.parametrize("data", [*NO_RUN_JSON.values(), b'{"tags": "a"}', b'{"tags": [1]}', b'{"note": 5}'])
def test_notes_that_cannot_be_read_are_named_and_never_written_over(data):
    run = made()
    (run.folder / "notes.json").write_bytes(data)
    if data == b"{}":
        assert notes.read(run.folder) == {"tags": [], "note": ""}
        return
    for use in (lambda: notes.read(run.folder), lambda: notes.write(run.folder, tags=["a"], note="b")):
        with pytest.raises(InputError, match="notes.json cannot be read: .* is not overwritten"):
            use()
    assert (run.folder / "notes.json").read_bytes() == data
    assert made().status == "complete" and made(fresh=True).status == "complete"  # which never touches notes
    assert (run.folder / "notes.json").read_bytes() == data


def older(run: runs.Run) -> runs.Run:
    """The same run as one from before checksums."""
    info = {key: value for key, value in run.info.items() if key not in ("files", "checksum")}
    write_json(run.folder / "run.json", info)
    return runs.open_run(run.folder)


@pytest.mark.parametrize("kind", [kind for kind in NO_RUN_JSON if kind != "empty"])
def test_an_odd_summary_is_a_sentence_and_odd_progress_is_none(kind, capsys):
    from workbench.cli.main import run as command_line

    run = older(made())
    (run.folder / "progress.jsonl").write_bytes(NO_RUN_JSON[kind])
    assert run.progress() is None and command_line(["show", run.id]) == 0
    (run.folder / "summary.json").write_bytes(NO_RUN_JSON[kind])
    with pytest.raises(InputError, match="summary.json cannot be read"):
        _ = run.summary
    capsys.readouterr()
    assert command_line(["show", run.id]) == 2 and "summary.json cannot be read" in capsys.readouterr().err


def test_the_last_whole_line_of_progress_counts_whatever_stands_after_it():
    run = older(made())
    line = {"time": "t", "seconds": 1.0, "done": 1, "total": 2, "label": "x"}
    odd = [b'{"done": "a"}', b"[" * 5000, b"\xff", b'{"done": 1, "total": 2}', b'{"done": -1, "total": 2, "label": ""}']
    (run.folder / "progress.jsonl").write_bytes(b"\n".join([json.dumps(line).encode(), *odd]))
    assert run.progress() == line


@pytest.mark.parametrize("name", ["summary.json", "progress.jsonl", "arrays.safetensors", "tables/rows.parquet"])
def test_a_pipe_in_place_of_a_result_is_a_sentence_and_nobody_waits_for_it(name):
    for run in (made(), older(made(seed=1))):
        (run.folder / name).unlink()
        os.mkfifo(run.folder / name)
        if name == "progress.jsonl" and run.files is None:
            assert run.progress() is None
            continue
        with pytest.raises(InputError, match="cannot be read"):
            _ = (run.summary, run.progress(), run.arrays, run.table("rows"))


def test_a_process_that_began_after_the_run_is_not_the_one_that_computes_it():
    run = made()
    running = {**run.info, "status": "running", "pid": os.getpid()}
    assert runs.Run(run.folder, running).status == "running"
    os.utime(run.folder / "run.json", (1, 1))
    assert runs.Run(run.folder, running).status == "interrupted"
