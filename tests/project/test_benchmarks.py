"""The benchmarks do what they say: rows that are measured anew replace the old ones, a cache of many runs is one that
the Explorer counts."""

from tests.benchmarks.__main__ import without_old
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
