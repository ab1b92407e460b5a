"""The study of data selection: its committed results hold together, and a small draw of it runs."""

import json

import pytest

from tests.studies import selection

METHODS = {"sae", "neurons", "hidden", "bm25", "random"}


def test_the_committed_results_are_complete_and_no_interval_is_empty():
    results = json.loads(selection.RESULTS.read_text())
    assert results["mixed pool"]["rows"] == sum(selection.ROWS.values()) and results["organism pool"]["rows"] == 1000
    table = selection.frame(results)
    assert table.height == 10 and set(table["method"]) == METHODS and (table["low"] < table["high"]).all()
    assert ((table["low"] <= table["precision"]) & (table["precision"] <= table["high"])).all()
    for pool in ("organism pool", "mixed pool"):
        found = results[pool]
        better = {m for m in ("neurons", "hidden", "bm25") if found["methods"][f"sae_minus_{m}"]["low"] > 0}
        assert set(filter(None, found["not_better_than"].split(", "))) == {"neurons", "hidden", "bm25"} - better
        assert set(found["targets"]) == set(found["lengths"]) and all(
            {"target", "pool", "mean", "sum"} <= set(row) for row in found["lengths"].values()
        )
    assert set(results["mixed pool"]["targets"]) == set(selection.ROWS)


def test_what_the_probe_says_of_the_study_is_what_the_study_found():
    """The sentences of the probe's docstring, as inequalities on the committed numbers."""
    results = json.loads(selection.RESULTS.read_text())
    for pool in ("organism pool", "mixed pool"):
        methods = results[pool]["methods"]
        assert methods["sae_minus_random"]["low"] > 0, "features are better than chance"
        assert set(results[pool]["not_better_than"].split(", ")) == {"neurons", "hidden", "bm25"}
        lengths = results[pool]["lengths"].values()
        apart = {how: sum(abs(row[how] - row["target"]) / row["target"] for row in lengths) for how in ("mean", "sum")}
        assert apart["sum"] < apart["mean"] and sum(row["mean"] for row in lengths) > sum(row["sum"] for row in lengths)


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_small_draw_runs_and_sums_prefer_the_targets_length(shared, tmp_path):
    shared("instruct/gsm8k_train_1000.jsonl")
    pool, targets = selection.mixed_pool(tmp_path, share=0.2)
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    examples = [json.loads(line) for path in targets for line in path.read_text().splitlines()]
    assert len(rows) == 119 and len(examples) == 100 and not {str(r) for r in rows} & {str(r) for r in examples}
    from workbench.runs import execution as runs

    found = {}
    for aggregate in ("mean", "sum"):
        config = {
            "target": (str(targets[0]),),
            "aggregate": aggregate,
            "features": 0,
            "explain": 0,
            "resamples": 0,
            "baselines": ("bm25",),
            "ratio": 0.1,
        }
        found[aggregate] = runs.execute(
            "data-selection", "organism", data=pool, config=config, out=tmp_path / aggregate
        )
    row = {how: run.table("lengths").filter(method="sae", k=12).row(0, named=True) for how, run in found.items()}
    assert abs(row["sum"]["mean"] - row["sum"]["target_mean"]) < abs(row["mean"]["mean"] - row["mean"]["target_mean"])
    assert found["mean"].summary["precision_sae"]["value"] > 0.4
