"""Results of others as run folders: the same file is the same run, everything that reads runs reads it, and nothing
says that it was computed here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from tests.support.app_screens import open_page, words
from workbench.cli.main import run as command_line
from workbench.core.errors import InputError
from workbench.figures import build, problems
from workbench.figures.export import caption
from workbench.figures.several_runs import figure_of_several
from workbench.runs import compare as comparing
from workbench.runs.folder import list_runs, open_run
from workbench.runs.imported import import_file
from workbench.runs.verify import verify

SCORES = {f"{layer}-{head}": [0.0, 0.5 * layer, 0.25 * head] for layer in range(2) for head in range(4)}
CURVE = "model,series,x,bf\nLlama-X,plain,0,12.5\nLlama-X,plain,1,9.0\nLlama-X,nudged,0,12.5\nLlama-X,nudged,1,3.5\n"
FEATURES = [
    {"index": "7", "layer": "3-res", "modelId": "tiny", "description": "dates", "frac_nonzero": 0.25},
    {"index": 2, "layer": "3-res", "modelId": "tiny", "description": "names", "frac_nonzero": 0.5},
]


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("scores.json", "curve.csv", "features.json")}
    found["scores.json"].write_text(json.dumps(SCORES))
    found["curve.csv"].write_text(CURVE)
    found["features.json"].write_text(json.dumps(FEATURES))
    return found


def test_every_kind_is_recognised_by_its_content_and_gives_a_sound_run(files):
    probes = {"scores.json": "retrieval-heads", "curve.csv": "branching-factor", "features.json": "data-selection"}
    for name, probe in probes.items():
        run = import_file(files[name], source="a paper", licence="MIT")
        assert (run.probe, run.status, verify(run.id).status) == (probe, "complete", "ok")
        about = run.info["imported"]
        assert about | {"importer": "", "fingerprint": ""} == {
            "file": name,
            "fingerprint": "",
            "importer": "",
            "source": "a paper",
            "licence": "MIT",
        }
        assert "seed" not in run.info and run.info["model"]["fingerprint"] is None
    assert {run.probe for run in list_runs()} == set(probes.values())


def test_the_same_content_is_the_same_run_and_what_is_said_of_it_later_is_kept(files, tmp_path):
    first = import_file(files["scores.json"], source="a paper")
    files["scores.json"].rename(tmp_path / "other.json")
    second = import_file(tmp_path / "other.json", licence="CC-BY-4.0", model="owner/name")
    assert (second.id, second.folder) == (first.id, first.folder) and len(list_runs()) == 1
    assert second.info["imported"]["source"] == "a paper" and second.info["imported"]["licence"] == "CC-BY-4.0"
    third = import_file(tmp_path / "other.json")
    assert third.info == second.info and third.of("model", "name") == "owner/name"
    assert verify(third.id).status == "ok"
    (tmp_path / "more.json").write_text(json.dumps(SCORES | {"1-3": [0.0, 0.5, 0.7]}))
    assert import_file(tmp_path / "more.json").id != first.id


def test_a_damaged_import_is_made_again_from_its_file(files):
    run = import_file(files["scores.json"])
    before = run.table("heads")
    (run.folder / "tables" / "heads.parquet").write_bytes(b"x")
    assert open_run(run.id).status == "damaged"
    assert import_file(files["scores.json"]).table("heads").equals(before)
    (run.folder / "run.json").write_text("{")
    assert import_file(files["scores.json"]).table("heads").equals(before)


def test_a_folder_of_ones_own_takes_it_and_another_runs_folder_does_not(files, tmp_path):
    run = import_file(files["scores.json"], out=tmp_path / "mine")
    assert run.folder == tmp_path / "mine" and open_run(tmp_path / "mine").id == run.id
    with pytest.raises(InputError, match="already holds another run"):
        import_file(files["curve.csv"], out=tmp_path / "mine")


@pytest.mark.parametrize("name", ["scores.json", "curve.csv", "features.json"])
def test_every_figure_is_drawn_or_has_a_reason_and_the_caption_says_where_it_comes_from(files, name):
    run = import_file(files[name], source="a paper", licence="MIT")
    made = build(run)
    assert made and all(reason.endswith(".") for reason in problems(run).values())
    for fig in made.values():
        words = caption(run, fig)
        assert f"Imported from {name} (a paper, licence MIT), not computed here." in words and "Seed" not in words
    assert "licence not stated" in caption(import_file(files[name], out=run.folder.parent / "b"), made.popitem()[1])


def test_an_imported_run_is_compared_with_one_made_here_on_the_tables_that_both_have(files, tmp_path):
    from tests.support.app_screens import keep
    from tests.support.figure_runs import retrieval

    ours = open_run(keep(retrieval(layers=2, heads=4, kv_heads=2), "retrieval-heads-0123456789ab"))
    theirs = import_file(files["scores.json"], model="organism")
    found = comparing.compare(ours, theirs)
    assert list(found["tables"]) == ["heads"] and found["tables"]["heads"]["matched"] == 8
    expected = (theirs.table("heads")["score"] - ours.table("heads")["score"]).mean()
    assert found["tables"]["heads"]["columns"]["score"]["mean_difference"] == pytest.approx(expected)
    assert found["settings"]["imported"][0] is None and "seed" not in found["settings"]
    assert figure_of_several([ours, theirs]).data
    text = "\n".join(comparing.lines(found))
    assert "weights unknown" in text and "None" not in text.replace("differs in imported: None", "")


def test_features_without_a_target_are_held_against_all_targets(files, tmp_path):
    from tests.runs.test_compare import make

    theirs = import_file(files["features.json"])
    density = {"target": ["a", "b", "a"], "feature": [2, 2, 9], "density": [0.4, 0.4, 0.1]}
    ours = make(tmp_path / "ours", {"features": pl.DataFrame(density)}, probe="data-selection")
    table = comparing.compare(theirs, ours)["tables"]["features"]
    assert (table["keys"], table["matched"], table["only_first"], table["only_second"]) == (["feature"], 2, 1, 1)
    assert table["columns"]["density"]["mean_difference"] == pytest.approx(-0.1)


def test_the_explorer_takes_scores_that_were_imported_under_the_models_name(files):
    from workbench.explorer import head_sets

    import_file(files["scores.json"], model="owner/name")
    assert head_sets.head_tables(list_runs(), fingerprint="abc", name="another") == []
    ((run, frame),) = head_sets.head_tables(list_runs(), fingerprint="abc", name="owner/name")
    assert head_sets.best_head([(run, frame)]) == (1, 3)


def test_scores_of_more_heads_than_the_named_model_has_are_refused(files, tiny_llama):
    import_file(files["scores.json"], model=str(tiny_llama))
    files["scores.json"].write_text(json.dumps(SCORES | {"0-99": [0.5]}))
    with pytest.raises(InputError, match=r"speaks of 100 heads, and the model .* it is of another model\.$"):
        import_file(files["scores.json"], model=str(tiny_llama))


def test_the_command_line_imports_shows_and_lists(files, capsys):
    path = files["scores.json"]
    assert command_line(["import", str(path), "--model", "owner/m", "--license", "MIT", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["probe"] == "retrieval-heads" and made["summary"]["retrieval_heads"]["value"] == 6
    assert command_line(["import", str(path)]) == 0
    assert "imported from scores.json (licence MIT)" in capsys.readouterr().out
    assert command_line(["runs", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["imported"]["file"] == "scores.json" and listed["status"] == "complete"
    assert command_line(["show", made["id"]]) == 0
    shown = capsys.readouterr().out
    assert "imported from: scores.json" in shown and "command: workbench import" in shown and "None" not in shown
    assert command_line(["figures", made["id"], "--format", "csv"]) == 0
    assert command_line(["verify", made["id"]]) == 0


def test_a_file_of_no_known_kind_names_the_kinds_and_a_named_probe_says_what_is_missing(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    for name in ("a.json", "a.csv"):
        assert command_line(["import", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert "looks like no results that can be imported (retrieval-heads" in said and said.count("\n") == 1
    assert command_line(["import", str(tmp_path / "a.csv"), "--probe", "branching-factor"]) == 2
    assert "name it with --columns position:COLUMN" in capsys.readouterr().err
    assert command_line(["import", str(tmp_path / "a.json"), "--probe", "concept-depth"]) == 2
    assert "'concept-depth' imports no files; those that do are retrieval-heads" in capsys.readouterr().err
    assert command_line(["import", str(tmp_path / "a.json"), "--probe", "retrieval-head"]) == 2
    assert "retrieval-heads" in capsys.readouterr().err
    for wrong in ("x", "a:", ":b", "a:b,a:c"):
        assert command_line(["import", str(tmp_path / "a.csv"), "--columns", wrong]) == 2
    assert command_line(["import", str(tmp_path / "a.csv"), "--source", "two\nlines"]) == 2
    assert list_runs() == []


def test_packed_files_are_read_and_one_that_is_cut_off_is_refused(tmp_path):
    plain, packed = tmp_path / "f.json", tmp_path / "f.jsonl.gz"
    plain.write_text(json.dumps(FEATURES))
    lines = gzip.compress("".join(json.dumps(row) + "\n" for row in FEATURES).encode())
    packed.write_bytes(lines)
    assert import_file(packed).table("features").equals(import_file(plain).table("features"))
    packed.write_bytes(lines[:-12])
    with pytest.raises(InputError, match="cut off"):
        import_file(packed)
    packed.write_bytes(lines[:12] + b"\xff" * 20)
    with pytest.raises(InputError, match=r"f\.jsonl\.gz (cannot be unpacked|is cut off)"):
        import_file(packed)
    for name, data in (
        ("e.json", b""),
        ("n.json", b"\xff\xfe"),
        ("b.json", b"{"),
        ("t.json", b'{"0-0": [1], "0-0": [1]}'),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            import_file(tmp_path / name)
    with pytest.raises(InputError, match="no results file"):
        import_file(tmp_path / "absent.json")


def test_the_screens_show_an_imported_run_and_compare_it(files):
    first = import_file(files["scores.json"], source="a paper")
    other = files["scores.json"].with_name("more.json")
    other.write_text(json.dumps(SCORES | {"1-3": [1.0, 1.0, 1.0]}))
    second = import_file(other)
    at = open_page("runs", run=first.id)
    assert not at.exception and "imported from scores.json (a paper, licence not stated)" in words(at)
    at = open_page("runs", run=first.id, part="Settings")
    assert not at.exception
    at = open_page("compare", first=first.id, second=second.id)
    assert not at.exception and not at.error
