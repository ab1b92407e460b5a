"""The runs of a folder are read once each, and what a click costs does not grow with their number."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import time
from collections import Counter

import pytest

from tests.support.many_runs import keep_many
from workbench.core.files import write_json
from workbench.explorer import head_sets
from workbench.explorer.heads_in_runs import HeadsInRuns
from workbench.runs import records
from workbench.runs.execution import list_runs, runs_root
from workbench.runs.records import seal
from workbench.runs.run_index import RunIndex

MODEL = {"name": "mine", "fingerprint": "a" * 64, "layers": 2, "heads": 4, "dtype": "float32", "device": "cpu"}


def aged() -> None:
    """As if no folder had come or gone for a while."""
    then = time.time() - 60
    os.utime(runs_root(), (then, then))


@pytest.fixture
def touched(monkeypatch):
    """Counts every question about a file below the runs root."""
    counts: Counter[str] = Counter()
    root = str(runs_root())

    def count(module, name):
        real = getattr(module, name)

        def asked(path, *args, **kwargs):
            if str(path).startswith(root):
                counts[name] += 1
            return real(path, *args, **kwargs)

        monkeypatch.setattr(module, name, asked)

    for name in ("stat", "lstat", "open", "listdir", "scandir"):
        count(os, name)
    count(io, "open")
    count(builtins, "open")
    return counts


def test_the_index_has_the_runs_of_the_list_in_its_order_and_what_cannot_be_read():
    keep_many(7, mine=3, model=MODEL)
    (runs_root() / "odd").mkdir()
    (runs_root() / "odd" / "run.json").write_text("5")
    (runs_root() / "empty").mkdir()
    (runs_root() / "file").write_text("")
    index = RunIndex(runs_root())
    index.glance()
    odd = []
    assert [run.id for run in index.runs] == [run.id for run in list_runs(unreadable=odd)]
    assert index.unreadable == odd and [found.folder.name for found in odd] == ["odd"]


@pytest.mark.parametrize("what", ["added", "removed", "rewritten", "mended"])
def test_a_change_is_seen_and_only_what_changed_is_read_again(what, monkeypatch):
    ids = keep_many(6, mine=6, model=MODEL)
    (runs_root() / "odd").mkdir()
    (runs_root() / "odd" / "run.json").write_text("5")
    index = RunIndex(runs_root())
    index.look()
    aged()
    index.look()
    read, real = [], records.read_run
    monkeypatch.setattr(records, "read_run", lambda folder: read.append(folder.name) or real(folder))
    version = index.version
    index.look()
    index.glance()
    assert read == [] and index.version == version
    folder = runs_root() / ids[0]
    info = json.loads((folder / "run.json").read_text())
    if what == "added":
        shutil.copytree(folder, runs_root() / "z")
        write_json(runs_root() / "z" / "run.json", seal({**info, "id": "z"}))
        index.glance()
        assert read == ["z"] and len(index.runs) == 7
    elif what == "removed":
        shutil.rmtree(folder)
        index.glance()
        assert read == [] and len(index.runs) == 5
    elif what == "rewritten":
        write_json(folder / "run.json", seal({**info, "seed": 99}))
        index.look()
        assert read == [ids[0]] and next(run for run in index.runs if run.id == ids[0]).info["seed"] == 99
    else:
        write_json(runs_root() / "odd" / "run.json", seal({**info, "id": "odd"}))
        index.glance()
        assert read == ["odd"] and len(index.runs) == 7 and index.unreadable == []
    assert index.version == version + 1


@pytest.mark.parametrize("early", ["folder", "running"])
def test_a_run_that_begins_is_seen_to_end_without_a_sign_at_the_root(early):
    (identifier,) = keep_many(1, mine=1, model=MODEL)
    folder = runs_root() / identifier
    done = (folder / "run.json").read_bytes()
    if early == "folder":
        (folder / "run.json").unlink()
    else:
        write_json(folder / "run.json", {**json.loads(done), "status": "running", "files": None})
    index = RunIndex(runs_root())
    aged()
    index.glance()
    aged()
    index.glance()
    assert [run.info["status"] for run in index.runs] == (["running"] if early == "running" else [])
    (folder / "run.json").write_bytes(done)
    aged()
    index.glance()
    assert [run.info["status"] for run in index.runs] == ["complete"]


def test_what_a_click_asks_of_the_disk_does_not_grow_with_the_number_of_runs(touched):
    asked = []
    for count in (3, 30):
        shutil.rmtree(runs_root(), ignore_errors=True)
        keep_many(count, mine=count, model=MODEL)
        index, heads = RunIndex(runs_root()), HeadsInRuns(MODEL["fingerprint"])
        aged()
        index.look()
        assert len(heads.of(index.runs, seen=(index.version, index.looks)).tables) == count // 3
        touched.clear()
        for _ in range(5):
            index.glance()
            heads.of(index.runs, seen=(index.version, index.looks))
        asked.append(touched.total())
    assert asked[0] == asked[1] == 5  # the root, each time


def test_a_look_reads_only_the_tables_that_changed(touched):
    keep_many(9, mine=9, model=MODEL)
    index, heads = RunIndex(runs_root()), HeadsInRuns(MODEL["fingerprint"])
    index.look()
    slow = head_sets.head_tables(index.runs, fingerprint=MODEL["fingerprint"])
    fast = heads.of(index.runs, seen=1).tables
    assert [run.id for run, _ in fast] == [run.id for run, _ in slow]
    assert all(one.equals(two) for (_, one), (_, two) in zip(fast, slow))
    touched.clear()
    heads.of(index.runs, seen=2)
    assert touched["open"] == 0 and touched["stat"] == 6  # a table and its run.json, three times
    damaged = slow[1][0]
    (damaged.folder / "tables" / "heads.parquet").write_bytes(b"PAR1")
    touched.clear()
    heads.of(index.runs, seen=3)
    assert touched["open"] == 1 and len(heads.tables) == 2 and damaged.id in heads.damaged[0]


def test_the_menu_of_colours_has_the_newest_run_of_each_score_first_and_old_links_lead_to_the_same_column():
    keep_many(12, mine=12, model=MODEL)
    runs = list_runs()
    columns = head_sets.run_columns(head_sets.head_tables(runs, fingerprint=MODEL["fingerprint"]))
    labels = list(columns)
    newest = max((run for run in runs if run.probe == "retrieval-heads"), key=lambda run: run.info["finished"])
    assert labels[0] == f"score · seed 9 · 2026-01-01 · {newest.id}" and columns[labels[0]] == (newest.id, "score")
    assert [columns[label][1] for label in labels[:3]] == ["score", "activation_frequency", "is_retrieval"]
    scores = [label for label in labels[3:] if label.startswith("score")]
    assert [label.split(" · ")[1] for label in scores] == ["seed 6", "seed 3", "seed 0"] and labels[3:6] == scores
    assert head_sets.whole_label(f"score · {newest.id}", columns) == labels[0]
    for odd in (labels[1], "induction", "output norm", "score · nobody", "", " · "):
        assert head_sets.whole_label(odd, columns) == odd
