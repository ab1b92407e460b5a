"""Full disks, disks that can only be read, and folders that are somebody else's: one sentence, nothing lost, and a run
that never stays "running"."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from workbench.core import files
from workbench.core.disk_errors import disk_errno, refusals_as_sentences
from workbench.core.errors import InputError, RunFailed
from workbench.runs import execution as runs
from workbench.runs.verify import verify

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

MODEL = tiny_probes.fake_model()


def made(**how) -> runs.Run:
    return runs.execute("parts", MODEL, **{"config": {"parts": 2}, **how})


@pytest.fixture
def read_only(monkeypatch):
    """From now on whatever writes below the cache is refused, as a disk that is mounted to be read refuses it."""
    root = os.environ["WORKBENCH_CACHE"]

    def start() -> None:
        def guarded(name: str):
            real = getattr(os, name)

            def call(path, *args, **kwargs):
                asks_to_write = name != "open" or (args[0] if args else kwargs.get("flags", 0)) & (
                    os.O_WRONLY | os.O_RDWR | os.O_CREAT
                )
                if asks_to_write and str(path).startswith(root):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return real(path, *args, **kwargs)

            monkeypatch.setattr(os, name, call)

        for name in ("open", "mkdir", "unlink", "rmdir", "rename", "replace", "utime", "chmod"):
            guarded(name)
        import builtins

        real = builtins.open

        def opened(path, mode="r", *args, **kwargs):
            if set(mode) & set("wax+") and str(path).startswith(root):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, mode, *args, **kwargs)

        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr("io.open", opened)

    return start


def test_a_complete_run_is_shown_compared_verified_and_run_again_from_a_disk_that_can_only_be_read(read_only, capsys):
    from workbench.cli.main import run as command_line

    one, two = made(), made(seed=1)
    read_only()
    with pytest.raises(OSError):
        (one.folder / "x").write_text("x")
    again = made()
    assert again.info == one.info and again.table("rows").equals(one.table("rows"))
    for words in (["runs"], ["show", one.id], ["compare", one.id, two.id], ["verify"], ["show", one.id, "--json"]):
        assert command_line(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("left", [".lock", "parts"])
def test_what_a_killed_process_left_behind_does_not_stop_one_from_reading(left, read_only):
    one = made()
    (one.folder / left).mkdir() if left == "parts" else (one.folder / left).touch()
    read_only()
    assert made().info == one.info


def test_a_run_that_cannot_be_written_is_a_sentence_with_a_place_to_go(read_only):
    one = made()
    read_only()
    for how in ({"seed": 1}, {"fresh": True}):
        with pytest.raises((InputError, RunFailed), match="Read-only file system.*choose another") as caught:
            made(**how)
        assert "\n" not in str(caught.value)
    assert made().info == one.info


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("say", ["the system", "a library in Rust", "a library that wraps it"])
def test_what_the_disk_refuses_is_one_sentence_whoever_says_it(number, say):
    def refuse() -> None:
        if say == "the system":
            raise OSError(number, os.strerror(number))
        if say == "a library in Rust":
            raise RuntimeError(f"ComputeError: {os.strerror(number)} (os error {number})")
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise ValueError("could not write the figure") from error

    with pytest.raises(RunFailed) as caught, refusals_as_sentences("/some/place"):
        refuse()
    said = str(caught.value)
    assert "/some/place" in said and ("full" in said or os.strerror(number) in said) and said.endswith(".")


def test_what_is_no_fault_of_the_disk_is_none_of_its_sentences():
    assert disk_errno(ValueError("no space in the grid")) is None and disk_errno(FileNotFoundError(2, "x")) is None
    with pytest.raises(ValueError, match="plain"), refusals_as_sentences("/x"):
        raise ValueError("plain")


@pytest.mark.parametrize("from_write", range(12))
def test_a_disk_that_fills_up_at_any_write_leaves_no_running_run_and_it_goes_on(from_write, monkeypatch, tmp_path):
    """Also when run.json itself can no longer be written, which then says "running" for ever."""
    real, count = files.write_bytes, [0]

    def full(path: Path, data: bytes) -> None:
        count[0] += 1
        if count[0] > from_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, data)

    with monkeypatch.context() as patch:
        for module in ("core.files", "core.context", "core.parquet", "runs.results"):
            patch.setattr(f"workbench.{module}.write_bytes", full)
        if from_write < 10:
            with pytest.raises(RunFailed, match="full; free some space, and the same command resumes"):
                made(config={"parts": 5})
        else:
            made(config={"parts": 5})
    written = {0: []}.get(from_write, ["interrupted"] if from_write < 10 else ["complete"])
    assert [run.status for run in runs.list_runs()] == written
    again = made(config={"parts": 5})
    assert again.status == "complete" and verify(again.id).status == "ok"
    assert again.table("rows").equals(made(config={"parts": 5}, out=tmp_path / "whole").table("rows"))


def test_a_run_whose_end_could_not_be_written_is_interrupted_and_then_complete(monkeypatch, tmp_path):
    real = files.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name == "run.json" and b'"running"' not in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("workbench.core.files.write_bytes", full)
        with pytest.raises(RunFailed, match="is full"):
            made(out=tmp_path / "run")
        assert runs.open_run(tmp_path / "run").status == "interrupted"
    again = made(out=tmp_path / "run")
    assert again.status == "complete" and verify(again.folder).status == "ok"
    assert not [item.name for item in again.folder.iterdir() if item.name.startswith(".")]


@pytest.mark.parametrize("inside", [".git", ".hidden", ".lockfile", "notes.txt", "data", "pruned.json"])
def test_a_folder_with_anything_of_somebody_else_in_it_is_refused_and_left_alone(inside, tmp_path):
    folder = tmp_path / "mine [1]"
    folder.mkdir()
    (folder / inside).mkdir() if inside == ".git" else (folder / inside).write_text("mine")
    for fresh in (False, True):
        with pytest.raises(InputError, match="not empty and holds no run.*choose another --out"):
            made(out=folder, fresh=fresh)
    assert [item.name for item in folder.iterdir()] == [inside]


def test_fresh_never_takes_a_folder_with_an_odd_run_json_beside_what_is_no_file_of_a_run(tmp_path):
    (tmp_path / "run.json").write_text("5")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.csv").write_text("a")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="thesis.tex.*left alone"):
        made(out=tmp_path, fresh=True)
    assert (tmp_path / "run.json").read_text() == "5" and (tmp_path / "tables" / "mine.csv").is_file()


def test_no_run_is_put_into_the_home_folder_the_root_or_the_runs_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for out in ("~", tmp_path, "/", runs.runs_root(), f"{tmp_path}/x/.."):
        with pytest.raises(InputError, match="no folder for one run; choose another --out"):
            made(out=out)
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_can_be_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "ring").symlink_to("ring")
    for out, said in [
        ("", "is empty"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        (str(tmp_path / ("x" * 256)), "too long"),
        (str(tmp_path / ("ü" * 128)), "too long"),
        ("/".join([str(tmp_path), *["x" * 200] * 25]), "too long"),
        (f"{tmp_path}/a\0b", "null character"),
        (f"{tmp_path}/\ud800", "half a character"),
        (tmp_path / "ring", "ring"),
    ]:
        with pytest.raises(InputError, match=said):
            made(out=out)
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_the_same_folder_under_a_name_with_brackets_spaces_and_line_breaks_works(tmp_path):
    out = tmp_path / "lab [1] *ü% \n x"
    run = made(out=out)
    assert run.folder == out and made(out=out).info == run.info and verify(out).status == "ok"
