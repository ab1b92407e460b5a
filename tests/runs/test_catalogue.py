"""Many runs as one table: each number is the one in the run's own files, and a search keeps the rows that it says."""

from __future__ import annotations

import json
import os
import statistics

import pytest

from tests.support.many_runs import keep_many
from workbench.core.errors import InputError
from workbench.core.files import write_json
from workbench.runs import notes
from workbench.runs.catalogue import ALWAYS, catalogue, columns_named, grouped, metrics_of, searched, settings_of
from workbench.runs.execution import list_runs, runs_root
from workbench.runs.kept_files import KeptFiles
from workbench.runs.records import seal
from workbench.runs.removal import remove

MODEL = {"name": "mine", "fingerprint": "a" * 64, "layers": 2, "heads": 4, "dtype": "float32", "device": "cpu"}


def again(identifier: str, **about) -> None:
    path = runs_root() / identifier / "run.json"
    write_json(path, seal({**json.loads(path.read_text()), **about}))


@pytest.fixture
def ids():
    """Twelve runs that differ in a setting, a number, a tag."""
    found = keep_many(12, mine=6, model=MODEL)
    for i, identifier in enumerate(found):
        again(identifier, config={"lengths": [64, 128] if i % 2 else [64], "k": i, "same": 1}, files=None)
        write_json(
            runs_root() / identifier / "summary.json", {"recall": {"value": i / 4, "n": 3}, "layers": [1], "z": i}
        )
        if i % 4 == 0:
            notes.write(runs_root() / identifier, tags=["kept"], note="to do" if i else "")
    return found


def made(**how):
    return catalogue(list_runs(), notes=lambda run: notes.read(run.folder), **how)


def summary(run):
    return run.summary


def test_each_cell_is_what_the_files_of_the_run_say(ids):
    names = settings_of(list_runs())
    assert names == ["config lengths", "config k"]  # not 'same'
    metrics = metrics_of(list_runs(), summary)
    assert metrics == ["recall", "z"]
    frame = made(settings=names, metrics=metrics, summaries=summary)
    assert frame.columns == [*ALWAYS, *names, *metrics] and frame.height == 12
    for row in frame.iter_rows(named=True):
        folder = runs_root() / row["id"]
        info, found = (json.loads((folder / name).read_text()) for name in ("run.json", "summary.json"))
        assert (row["probe"], row["seed"], row["status"]) == (info["probe"], info["seed"], info["status"])
        assert row["model"] == info["model"]["name"].rsplit("/")[-1] and row["seconds"] == info["seconds"]["total"]
        assert json.loads(row["config lengths"]) == info["config"]["lengths"] and row["config k"] == info["config"]["k"]
        assert row["recall"] == found["recall"]["value"] and row["z"] == found["z"]
        assert row["finished"] == info["finished"][:16].replace("T", " ")
        kept = folder / "notes.json"
        assert row["tags"] == ("kept" if kept.exists() else "")


@pytest.mark.parametrize(
    "text, holds",
    [
        ("", lambda i: True),
        ("CONCEPT", lambda i: i % 3 == 1),
        ("concept kept", lambda i: i % 3 == 1 and i % 4 == 0),
        ("recall>1", lambda i: i / 4 > 1),
        ("recall>=1 z<8", lambda i: i / 4 >= 1 and i < 8),
        ("k=3", lambda i: i == 3),
        ("k!=3", lambda i: i != 3),
        ("lengths=[64]", lambda i: i % 2 == 0),
        ('note="to do"', lambda i: i in (4, 8)),
        ("model=mine retrieval", lambda i: i < 6 and i % 3 == 0),
        ("finished<2026-01-01 finished>=2025", lambda i: False),
        ("seed<=2 tags!=kept", lambda i: i in (1, 2)),
        ('"to do', lambda i: i in (4, 8)),  # not closed yet
    ],
)
def test_a_search_keeps_the_rows_that_it_says(ids, text, holds):
    frame = made(settings=["config lengths", "config k"], metrics=["recall", "z"], summaries=summary)
    assert {int(seed) for seed in searched(frame, text)["seed"]} == {i for i in range(12) if holds(i)}


def test_a_search_for_a_column_that_is_not_there_or_a_number_that_is_none_is_refused(ids):
    frame = made()
    with pytest.raises(InputError, match="no column 'secondz'.*seconds"):
        searched(frame, "secondz>3")
    with pytest.raises(InputError, match="'many' is not a number"):
        searched(frame, "seconds>many")
    assert columns_named("recall>1 k=3 seconds>1 nothing", ["seconds", "config k", "recall", "z"]) == [
        *("recall", "config k", "seconds")
    ]


@pytest.mark.parametrize("by", ["probe", "model", "config lengths"])
def test_groups_are_counted_and_their_metric_is_pooled_as_by_hand(ids, by):
    frame = made(settings=["config lengths"], metrics=["recall"], summaries=summary)
    for row in grouped(frame, by, "recall").iter_rows(named=True):
        values = [r["recall"] for r in frame.iter_rows(named=True) if r[by] == row[by]]
        assert row["runs"] == row["with recall"] == len(values)
        assert (row["mean"], row["min"], row["max"]) == pytest.approx(
            (statistics.mean(values), min(values), max(values))
        )
    assert grouped(frame, by)["runs"].sum() == 12


def test_runs_without_the_metric_are_counted_and_not_pooled(ids):
    write_json(runs_root() / ids[0] / "summary.json", {"recall": None})
    frame = made(metrics=["recall"], summaries=summary)
    row = grouped(frame, "probe", "recall").filter(probe="retrieval-heads").row(0, named=True)
    assert (row["runs"], row["with recall"], row["min"]) == (4, 3, 0.75)
    assert searched(frame, "recall!=0.25").height == 11 and searched(frame, "recall<100").height == 11


def test_a_small_file_is_read_again_only_when_it_has_changed(ids):
    read = []
    kept = KeptFiles("notes.json", lambda run: read.append(run.id) or notes.read(run.folder), {"tags": []}, {"tags": 0})
    run = next(run for run in list_runs() if run.id == ids[0])
    assert kept.of(run)["tags"] == kept.of(run)["tags"] == ["kept"] and len(read) == 1
    notes.retag(run.folder, add=["new"])
    assert kept.of(run)["tags"] == ["kept", "new"] and len(read) == 2
    (run.folder / "notes.json").write_text("{")
    assert kept.of(run) == kept.of(run) == {"tags": 0} and len(read) == 3
    os.unlink(run.folder / "notes.json")
    assert kept.of(run) == {"tags": []}


def test_tags_are_added_at_the_end_and_taken_away_and_the_note_stays(ids):
    folder = runs_root() / ids[4]
    before = (folder / "notes.json").stat().st_ino
    notes.retag(folder, add=["kept"], remove=["nothing"])
    assert (folder / "notes.json").stat().st_ino == before  # nothing changed, nothing written
    notes.retag(folder, add=["b", "a"], remove=["kept"])
    assert notes.read(folder) == {"tags": ["b", "a"], "note": "to do"}


def test_only_runs_of_the_runs_folder_that_are_not_at_work_are_deleted(ids, tmp_path):
    again(ids[0], status="running", pid=os.getpid(), host=__import__("socket").gethostname())
    by_id = {run.id: run for run in list_runs()}
    with pytest.raises(InputError, match="in progress"):
        remove(by_id[ids[0]])
    elsewhere = type(by_id[ids[1]])(tmp_path, by_id[ids[1]].info)
    with pytest.raises(InputError, match="not in the runs folder"):
        remove(elsewhere)
    remove(by_id[ids[1]])
    assert tmp_path.exists() and (runs_root() / ids[0]).exists() and len(list_runs()) == 11
