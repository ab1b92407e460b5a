"""The benchmarks do what they say: rows that are measured anew replace the old ones, a cache of many runs is one that
the Explorer counts, and the rows for one card are rehearsed without one."""

import json
import time

import pytest

from tests.benchmarks.__main__ import one_card, without_old
from tests.benchmarks.card import ROUNDS, Clock
from tests.benchmarks.card_run import LAUNCHES
from tests.support import many_runs
from workbench.explorer import head_sets
from workbench.models.loading import load
from workbench.runs import execution


def test_rows_of_what_is_no_longer_measured_go_and_those_of_others_stay():
    before = {
        "app: ablation [cpu, small]": {},
        "app: ablation [cpu, smoke]": {},
        "app: ablation [cpu, small, 2 threads]": {},
        "application of heads [cpu, small]": {},
        "store read [cpu, small]": {},
    }
    assert list(without_old(before, "app", "[cpu, small]")) == [
        "app: ablation [cpu, smoke]",
        "app: ablation [cpu, small, 2 threads]",
        "application of heads [cpu, small]",
        "store read [cpu, small]",
    ]


def test_many_runs_are_complete_runs_of_this_very_model_and_differ_in_id_seed_and_date(tmp_path):
    ids = many_runs.make(tmp_path, 5)
    unreadable: list = []
    runs = execution.list_runs(root=tmp_path / "runs", unreadable=unreadable)
    assert unreadable == [] and sorted(run.id for run in runs) == sorted(ids) and len(set(ids)) == 5
    assert {run.status for run in runs} == {"complete"}
    assert len({run.of("seed") for run in runs}) == len({run.info["finished"] for run in runs}) == 5
    model = load("organism")
    tables = head_sets.head_tables(runs, fingerprint=model.fingerprint, name="organism")
    assert {run.of("model")["fingerprint"] for run in runs} == {model.fingerprint}
    assert len(tables) == 2 and all(frame.height == model.n_layers * model.n_heads for _, frame in tables)


RECOUNTED = (
    "capture: all residual sites, last token",
    "losses over the whole vocabulary",
    "patching: windows of layers switched off",
)


def test_all_rows_for_one_card_are_rehearsed_on_the_virtual_accelerator_and_their_counts_are_the_published_ones(
    tmp_path, monkeypatch, capsys
):
    """The very code that a GPU runs, gates and all; with no time, each row runs one round and says so."""
    monkeypatch.setattr("tests.benchmarks.card_run.SECONDS", 0.0)
    out, published = tmp_path / "rows.json", json.loads(LAUNCHES.read_text())
    assert one_card("virtual", "tiny", out) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text()).values()}
    assert rows.keys() == published.keys()
    for name, row in rows.items():
        assert row["ours"] > 0 and row["reference"] > 0 and row["machine"] == "virtual accelerator 0"
        assert row["details"]["rounds_dropped"] == ROUNDS - 1
        if name in RECOUNTED:  # after a change that means to change them: python -m tests.benchmarks --counts
            counts = row["details"]["counts"]
            assert {key: published[name][key] for key in counts} == counts, name
    assert {"share_of_matmul_peak", "share_of_bandwidth"} <= set(rows["decoding with statistics, 4 rows"]["details"])
    printed = capsys.readouterr()
    assert printed.out.count("\n| ") == len(rows) and "rounds were dropped" in printed.err


def test_a_row_whose_sides_differ_gets_no_speed():
    from tests.benchmarks import card_rows

    with pytest.raises(AssertionError, match="no speed is reported"):
        card_rows.within("losses", 0.2, 0.1)
    with pytest.raises(AssertionError, match="no speed is reported"):
        card_rows.within("losses", float("nan"), 0.1)


def test_the_clock_drops_rounds_and_no_row():
    clock, done = Clock(0.0, 2), []
    for _ in range(3):  # more than it knew of
        done.append(clock.rounds(clock.row(), lambda number: 1.0))
    assert done == [1, 1, 1]
    assert Clock.rounds(time.monotonic() + 60, lambda number: 0.0) == ROUNDS
