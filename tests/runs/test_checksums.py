"""Every file of a run has a checksum: no number changes without a word, and the same command mends what is damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.files import write_json
from workbench.core.registry import Probe
from workbench.runs import execution as runs
from workbench.runs import records
from workbench.runs.verify import verify, verify_all

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402

MODEL = tiny_probes.fake_model()
FILES = ["arrays.safetensors", "progress.jsonl", "summary.json", "tables/rows.parquet"]


def made(**how) -> runs.Run:
    return runs.execute("parts", MODEL, **{"config": {"parts": 2}, **how})


def everything(run: runs.Run) -> dict:
    """All that a run says, as a reader gets it."""
    tables = {name: run.table(name).to_dicts() for name in run.tables}
    arrays = {name: run.array(name).tolist() for name in run.arrays}
    return {"tables": tables, "arrays": arrays, "summary": run.summary, "progress": run.progress(), "info": run.info}


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def test_run_json_holds_size_and_checksum_of_every_file_of_the_run_and_of_nothing_else():
    run = made()
    assert sorted(run.info["files"]) == FILES
    for name, entry in run.info["files"].items():
        assert entry["bytes"] == (run.folder / name).stat().st_size and len(entry["sha256"]) == 64
    (run.folder / "figures").mkdir()
    for name in ("figures/a.pdf", "notes.json", ".hidden"):
        (run.folder / name).write_text("{}")
    assert verify(run.id).status == "ok" and verify(run.id).files == len(FILES)


def test_what_a_probe_leaves_in_its_folder_is_checked_as_well():
    def leaving(model, config, context: Context) -> Result:
        (context.out / "heads [1] ü.json").write_text('{"heads": [[0, 1]], "ablation": "zero"}')
        (context.out / "deep").mkdir()  # which fails where it is left over
        (context.out / "deep" / "er.bin").write_bytes(b"x")
        return Result(tables={"t": pl.DataFrame({"a": [1]})}, summary={"a": 1})

    from workbench.engine.head_masks import parse_mask
    from workbench.runs.folder import read_file

    about = {"name": "leaving", "summary": "s", "tables": {"t": ("a",)}, "bibtex": "@misc{a}"}
    probe = Probe(**about, run=leaving, config=tiny_probes.PartsConfig, leaves={"heads*.json": "head mask"})
    run = runs.execute(probe, MODEL)
    assert {"heads [1] ü.json", "deep/er.bin"} <= set(run.info["files"])
    mask = run.folder / "heads [1] ü.json"
    assert parse_mask(read_file(mask), mask).heads == ((0, 1),)
    mask.write_text('{"heads": [[0, 2]], "ablation": "zero"}')
    with pytest.raises(InputError, match="ü.json of the run leaving-.* cannot be read .its content has changed"):
        read_file(mask)
    assert list(verify(run.id).damage) == ["heads [1] ü.json"]
    assert runs.execute(probe, MODEL).status == "complete" and "[[0, 1]]" in mask.read_text()


@pytest.mark.parametrize("name", [*FILES, "run.json"])
def test_no_flipped_bit_changes_a_number_without_a_word(name):
    run = made()
    truth = everything(run)
    path = run.folder / name
    whole, dice = path.read_bytes(), random.Random(f"flips of {name}")
    bits = dice.sample(range(8 * len(whole)), min(60, 8 * len(whole)))
    silent = 0
    for bit in bits:
        flip(path, bit)
        try:
            silent += everything(runs.open_run(run.folder)) != truth
        except InputError as error:
            assert "\n" not in str(error) and name.partition("/")[2].removesuffix(".parquet") in str(error)
        if name != "run.json":
            assert verify(run.folder).status == "damaged"
        path.write_bytes(whole)
    assert silent == 0 and everything(runs.open_run(run.folder)) == truth


@pytest.mark.parametrize("touched", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_named_with_the_way_back_and_the_run_is_not_complete(name, touched):
    run = made()
    path = run.folder / name
    flip(path, 100)
    if not touched:  # a bit that fell over by itself, which no time of change tells
        os.utime(path, ns=(0, (run.folder / "run.json").stat().st_mtime_ns - 1))
    assert runs.open_run(run.id).status == ("damaged" if touched else "complete")
    with pytest.raises(InputError, match=f"run {run.id} cannot be read .*the same command computes it again"):
        everything(runs.open_run(run.id))
    assert verify(run.id).damage == {name: "its content has changed"}
    path.unlink()
    assert runs.open_run(run.id).status == "damaged" and verify(run.id).damage == {name: "it is missing"}
    with pytest.raises(InputError, match="it is missing"):
        everything(runs.open_run(run.id))


@pytest.mark.parametrize("name", [*FILES, "run.json"])
def test_the_same_command_computes_a_damaged_run_again_and_says_so(name, tmp_path):
    log = tmp_path / "log"
    run = made(config={"parts": 2, "log": str(log)})
    truth = {name: (run.folder / name).read_bytes() for name in ("tables/rows.parquet", "arrays.safetensors")}
    (run.folder / "figures").mkdir()
    (run.folder / "figures" / "mine.pdf").write_bytes(b"%PDF")
    if name == "run.json":
        write_json(run.folder / name, run.info | {"seed": 7})
        with pytest.raises(InputError, match="does not match its own checksum; the same command"):
            runs.open_run(run.id)
    else:
        (run.folder / name).unlink()
    again = made(config={"parts": 2, "log": str(log)})
    assert len(log.read_text().split()) == 4 and again.id == run.id and again.info["seed"] == 0
    assert again.info["warnings"][0].startswith("Files of this run were damaged on disk and were computed again: ")
    assert name in again.info["warnings"][0]
    assert {name: (again.folder / name).read_bytes() for name in truth} == truth
    assert verify(run.id).status == "ok" and (run.folder / "figures" / "mine.pdf").is_file()
    assert made(config={"parts": 2, "log": str(log)}).info == again.info and len(log.read_text().split()) == 4


def test_a_copy_of_a_run_is_sound_whatever_the_times_of_its_files(tmp_path):
    run = made()
    shutil.copytree(run.folder, tmp_path / "copy [1] *", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy [1] *" / "run.json", (0, 0))
    copy = runs.open_run(tmp_path / "copy [1] *")
    assert copy.status == "complete" and everything(copy) == everything(run)


def test_a_run_from_before_checksums_is_read_and_named_as_one():
    run = made()
    older = {key: value for key, value in run.info.items() if key not in ("files", "checksum")}
    write_json(run.folder / "run.json", older | {"seconds": {"total": 1.0}})
    again = runs.open_run(run.id)
    assert again.status == "complete" and again.table("rows").equals(run.table("rows")) and again.summary == run.summary
    assert [verdict.status for verdict in verify_all()] == ["no checksums"]
    assert made().info == again.info  # and it is not computed again
    (run.folder / "tables" / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="table 'rows' of the run .* cannot be read .*; run it with --fresh"):
        runs.open_run(run.id).table("rows")


def test_a_table_that_somebody_puts_into_a_run_is_none_of_its_tables():
    run = made()
    pl.DataFrame({"a": [1]}).write_parquet(run.folder / "tables" / "mine.parquet")
    assert runs.open_run(run.id).tables == ["rows"] and verify(run.id).status == "ok"


def test_checksums_of_files_outside_the_folder_are_refused(tmp_path):
    run = made()
    outside = tmp_path / "secret"
    outside.write_text("x")
    for name in (str(outside), "../secret", "tables/../../secret", "a//b", ""):
        entry = {name: {"sha256": "0" * 64, "bytes": 1}}
        write_json(run.folder / "run.json", records.seal(run.info | {"files": entry}))
        with pytest.raises(InputError, match="run.json cannot be read: the field 'files"):
            runs.open_run(run.folder)


def test_verify_on_the_command_line_names_file_and_run_and_exits_with_3(capsys):
    from workbench.cli.main import run as command_line

    one, two = made(), made(seed=1)
    assert command_line(["verify"]) == 0
    assert [line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]] == [["ok", "4"], ["ok", "4"]]
    (one.folder / "tables" / "rows.parquet").unlink()
    assert command_line(["verify", two.id]) == 0 and command_line(["verify", one.id, two.id]) == 3
    assert f"{one.id}, tables/rows.parquet: it is missing" in capsys.readouterr().err
    assert command_line(["verify", "--json"]) == 3
    found = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert found[one.id]["damage"] == {"tables/rows.parquet": "it is missing"} and found[two.id]["status"] == "ok"
    assert command_line(["verify", "no-such-run"]) == 2
    (two.folder / "run.json").write_text("5")
    assert command_line(["verify"]) == 3 and "run.json" in capsys.readouterr().err


def test_show_compare_and_figures_name_the_damaged_file_and_show_nothing_of_it(capsys):
    from workbench.cli.main import run as command_line

    one, two = made(), made(seed=1)
    flip(one.folder / "tables" / "rows.parquet", 200)
    for words in (["show", one.id], ["compare", one.id, two.id], ["show", one.id, "--table", "rows"]):
        assert command_line(words) == 2
        said = capsys.readouterr()
        assert "rows" in said.err and one.id in said.err and "computes it again" in said.err
        assert "complete" not in said.out and "\n" not in said.err.strip()
    assert command_line(["show", one.id, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["damage"] == {"tables/rows.parquet": "its content has changed"}
    assert command_line(["runs"]) == 0
    assert {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()} == {
        "run": "status",
        one.id: "damaged",
        two.id: "complete",
    }


def test_numbers_are_still_what_the_probe_gave():
    run = made()
    expected = np.concatenate([Context(seed=0).rng(f"part {number}").normal(size=4) for number in range(2)])
    assert run.table("rows")["x"].to_list() == expected.tolist() == run.array("x").ravel().tolist()


def test_a_figure_that_needs_a_damaged_table_names_it_and_the_others_are_drawn(tmp_path, capsys):
    from tests.support.app_screens import keep
    from tests.support.figure_runs import retrieval
    from workbench.cli.main import run as command_line
    from workbench.runs.checksums import of_folder

    folder = runs.runs_root() / keep(retrieval(), "retrieval-heads-000000000001")
    info = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", records.seal({**info, "files": of_folder(folder)}))
    words = ["figures", folder.name, "--format", "csv", "--out"]
    assert command_line([*words, str(tmp_path / "sound")]) == 0
    flip(folder / "tables" / "heads.parquet", 300)
    capsys.readouterr()
    assert command_line([*words, str(tmp_path / "damaged")]) == 2
    assert "tables/heads.parquet (its content has changed)" in capsys.readouterr().err
    sound, damaged = ({path.name for path in (tmp_path / name).iterdir()} for name in ("sound", "damaged"))
    assert damaged and damaged < sound and "head_map.csv" in sound - damaged
    with pytest.raises(InputError, match="The table 'heads' of the run .* cannot be read"):
        runs.figure(folder, "head_map")
