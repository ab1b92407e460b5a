"""Diverse selections: the greedy one is that of the slow loop, copies come once, the tables count what was taken."""

import numpy as np
import polars as pl
import pytest

from probes.data_selection import diversity
from tests.support.selection_pool import PLACES, execute, read, sentence, slow_vectors, write
from workbench.core.errors import InputError
from workbench.runs import execution as runs
from workbench.stats.near_duplicates import near_duplicates


def slow_greedy(groups, features, size):
    """O(n²): at every step all candidates are counted anew."""
    chosen, covered = [], set()
    while len(chosen) < size:
        open_ = [i for i in range(len(features)) if i not in chosen]
        fresh = [i for i in open_ if groups[i] not in {groups[j] for j in chosen}]
        if not fresh:
            return chosen + open_[: size - len(chosen)]
        best = max(fresh, key=lambda i: (len(set(features[i]) - covered), -i))
        chosen.append(best)
        covered |= set(features[best])
    return chosen


@pytest.mark.parametrize("seed", range(30))
def test_the_greedy_choice_is_that_of_counting_every_candidate_at_every_step(seed):
    rng = np.random.default_rng(seed)
    n, size = int(rng.integers(3, 40)), int(rng.integers(1, 12))
    features = [rng.choice(25, int(rng.integers(0, 9)), replace=False) for _ in range(n)]
    groups = rng.integers(0, rng.integers(1, n + 1), n)
    rows = rng.permutation(1000)[:n]
    found = diversity.covering(rows, groups, features, min(size, n))
    assert found.tolist() == rows[slow_greedy(groups, features, min(size, n))].tolist()


def test_copies_come_behind_all_that_is_new_in_the_order_of_the_scores():
    rows, groups = np.array([9, 4, 7, 1, 3, 8]), np.array([0, 0, 1, 0, 2, 1])
    assert diversity.without_copies(rows, groups).tolist() == [9, 7, 3, 4, 1, 8]


def test_a_run_takes_the_rows_of_the_slow_computation(model, tiny_llama, material, tmp_path):
    plain = execute(model, material, tmp_path / "plain", ratio=0.1)
    run = execute(model, material, tmp_path / "run", ratio=0.1, diversity="features")
    rows = read(material / "pool.jsonl")
    vectors = slow_vectors(tiny_llama, material, rows)
    texts = [f"{row['prompt']} {row['response']}" for row in rows]
    table, summary = run.table("diversity"), run.summary
    for name in ("sea", "park"):
        by_score = plain.table("scores").filter(target=name).sort("rank")["row"].to_list()
        candidates = by_score[:18]
        features = [np.flatnonzero(vectors[row] > 0).tolist() for row in candidates]
        read_rows = run.table("scores").filter(target=name).sort("rank")["row"].to_list()
        groups = near_duplicates([texts[row] for row in candidates])
        expected = [candidates[i] for i in slow_greedy(groups, features, 6)]
        assert read_rows[:6] == expected and read_rows[6:] == [row for row in by_score if row not in expected]
        assert run.table("selected").filter(target=name)["row"].to_list() == expected
        for what, some in (("diverse", expected), ("by_score", by_score[:6])):
            own = table.filter(target=name, selection=what).row(0, named=True)
            assert own["features_covered"] == len(set(np.flatnonzero((vectors[some] > 0).any(0))))
            assert own["rows"] == 6 and own["n"] <= 6
        top = run.table("selections").filter(pl.col("rank") <= 6, target=name, method="sae_plain")["row"].to_list()
        assert top == by_score[:6]
    assert summary["features_covered_diverse"] > summary["features_covered_by_score"]
    apart = summary["features_covered_diverse_minus_by_score"]
    assert apart["value"] > 0 and apart["n"] == 2 and np.isnan(apart["low"] if apart["low"] is not None else np.nan)
    assert {"precision_sae_plain", "sae_minus_sae_plain"} <= summary.keys()


def test_rows_that_say_the_same_are_selected_once(model, material, tmp_path):
    rng = np.random.default_rng(4)
    pool = [sentence(rng, topic) for topic in rng.choice(list(PLACES), 50)]
    pool += [read(material / "sea.jsonl")[0]] * 8
    write(tmp_path / "pool.jsonl", pool)
    write(tmp_path / "one.jsonl", pool[-2:])
    config = {"target": (str(tmp_path / "one.jsonl"),), "sae": "none", "baselines": ("hidden", "random"), "k": 8}
    values = {"data": tmp_path / "pool.jsonl"}
    plain = runs.execute("data-selection", model, config=config, out=tmp_path / "a", **values)
    wide = {"diversity": "near_duplicates", "diversity_among": 5}
    run = runs.execute("data-selection", model, config=config | wide, out=tmp_path / "b", **values)

    def copies(some):
        return sum(row >= 50 for row in some.table("selected")["row"])

    assert copies(plain) == 8 and copies(run) == 1
    table = run.table("diversity")
    assert table.filter(selection="diverse")["n"].item() == 8 > table.filter(selection="by_score")["n"].item()
    assert table["features_covered"].null_count() == 3 and "features_covered_diverse" not in run.summary
    assert plain.table("diversity").is_empty() and "hidden_plain" not in plain.table("selections")["method"].to_list()


def test_what_cannot_be_diverse_is_refused(model, material, tmp_path):
    with pytest.raises(InputError, match="needs an autoencoder, and sae=none leaves none"):
        execute(model, material, tmp_path / "a", sae="none", diversity="features")
    with pytest.raises(InputError, match="needs an autoencoder, and none ships with"):
        execute(model, material, tmp_path / "b", sae="default", diversity="features")
    with pytest.raises(InputError, match="random numbers select here"):
        execute(model, material, tmp_path / "c", sae="none", baselines=("random",), diversity="near_duplicates")
