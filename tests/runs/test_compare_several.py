"""More than two runs: ranks and rank correlations are those of the plain definition, and what has none says why."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tests.support.app_screens import keep
from tests.support.figure_runs import depth, retrieval
from workbench.cli.main import main
from workbench.core.errors import InputError
from workbench.explorer.layer_curves import curves
from workbench.explorer.several_runs_drawn import agreement_figure, overlaid_curves
from workbench.runs.compare_several import check_several, compare_several, head_ranks, rank_agreement, spearman_of
from workbench.runs.execution import open_run, runs_root


def command_line(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def kept(count: int, **how):
    return [open_run(runs_root() / keep(retrieval(seed=i, **how), f"retrieval-heads-{i:012x}")) for i in range(count)]


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_is_the_one_of_scipy_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    x, y = rng.integers(0, levels, (2, 50)).astype(float)
    assert spearman_of(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_every_pair_is_the_correlation_of_the_rows_that_both_have():
    runs = kept(4)
    found = rank_agreement(runs, "heads", "score")
    for i, j in combinations(range(4), 2):
        one, two = (runs[k].table("heads").sort("layer", "head")["score"].to_numpy() for k in (i, j))
        assert found.rho[i][j] == found.rho[j][i] == pytest.approx(stats.spearmanr(one, two).statistic)
        assert found.rows[i][j] == len(one)
    assert [found.rho[i][i] for i in range(4)] == [1.0] * 4 and found.not_compared == []


def test_the_rows_of_a_pair_are_found_by_their_keys_and_missing_values_are_left_out():
    runs = kept(3)
    path = runs[1].folder / "tables" / "heads.parquet"
    frame = runs[1].table("heads")
    gone = frame.with_columns(score=pl.when(pl.int_range(pl.len()) < 2).then(None).otherwise("score"))
    gone.sample(fraction=1, shuffle=True, seed=1).write_parquet(path)
    found = rank_agreement(runs, "heads", "score")
    one, two = (run.table("heads").sort("layer", "head")["score"] for run in runs[:2])
    good = two.is_not_null()
    assert found.rho[0][1] == pytest.approx(stats.spearmanr(one.filter(good), two.filter(good)).statistic)
    assert found.rows[0][1] == frame.height - 2 and found.rows[0][2] == frame.height


def test_what_cannot_be_compared_is_said_and_the_other_pairs_are():
    runs = kept(2)
    small = open_run(runs_root() / keep(retrieval(layers=2, heads=4), "retrieval-heads-00000000000a"))
    found = rank_agreement([*runs, small], "heads", "score")
    assert found.rho[0][1] is not None and found.rho[0][2] is None and found.rho[1][2] is None
    assert len(found.not_compared) == 2 and all("different shapes" in reason for reason in found.not_compared)
    with pytest.raises(InputError, match="different shapes"):
        head_ranks([*runs, small], "heads", "score")
    with pytest.raises(InputError, match="constant"):
        spearman_of(np.ones(5), np.arange(5.0))
    with pytest.raises(InputError, match="2 rows in common"):
        spearman_of(np.arange(2.0), np.arange(2.0))


def test_heads_are_ranked_in_each_run_and_sorted_by_their_mean():
    runs = kept(3)
    found = head_ranks(runs, "heads", "score")
    for row in found.iter_rows(named=True):
        for run in runs:
            frame = run.table("heads")
            mine = frame.filter(layer=row["layer"], head=row["head"])["score"][0]
            above, same = (frame["score"] > mine).sum(), (frame["score"] == mine).sum()
            assert row[run.id] == pytest.approx(above + (same + 1) / 2)
        assert row["mean_rank"] == pytest.approx(sum(row[run.id] for run in runs) / 3)
    assert found["mean_rank"].is_sorted() and found.height == runs[0].table("heads").height


def test_what_was_asked_differently_has_a_value_for_each_run():
    runs = [
        open_run(runs_root() / keep(retrieval(), f"retrieval-heads-{i:012x}", seed=i // 2, config={"k": i, "same": 1}))
        for i in range(3)
    ]
    assert compare_several(runs)["settings"] == {"seed": [0, 0, 1], "config k": [0, 1, 2]}


def test_runs_that_have_nothing_to_do_with_each_other_are_refused():
    runs = kept(2)
    other = open_run(runs_root() / keep(depth(), "concept-depth-000000000001"))
    for odd, why in ((runs[:1], "at least two"), ([*runs, other], "different probes"), ([*runs, runs[0]], "twice")):
        with pytest.raises(InputError, match=why):
            check_several(odd)


def test_the_command_line_compares_two_or_more(capsys):
    runs = kept(3)
    ids = [run.id for run in runs]
    assert command_line(["compare", *ids, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "seed" not in found["settings"]  # all have the same
    assert [run["id"] for run in found["runs"]] == ids
    entry = found["tables"]["heads"]["columns"]["score"]
    assert entry["means"] == pytest.approx([run.table("heads")["score"].mean() for run in runs])
    assert entry["spearman"] == compare_several(ids)["tables"]["heads"]["columns"]["score"]["spearman"]
    assert command_line(["compare", *ids]) == 0
    out = capsys.readouterr().out
    assert f"[1] {ids[0]}" in out and f"[1][2] {entry['spearman'][0][1]:.3f}" in out
    assert command_line(["compare", *ids, "--table", "heads"]) == 2 and "two runs" in capsys.readouterr().err
    assert command_line(["compare", ids[0]]) == 2
    assert command_line(["compare", *ids[:2]]) == 0 and "first:" in capsys.readouterr().out


def test_the_figures_hold_the_numbers():
    runs = kept(3)
    found = rank_agreement(runs, "heads", "score")
    fig = agreement_figure(found, ["a", "b", "c"], label="score")
    drawn = sorted(float(v) for t in fig.data if t.type == "bar" for v in np.atleast_1d(t.marker.color).tolist())
    assert drawn == pytest.approx(sorted(v for row in found.rho for v in row))
    depths = [open_run(runs_root() / keep(depth(), f"concept-depth-{i:012x}")) for i in range(3)]
    all_curves = curves(depths)
    fig = overlaid_curves(all_curves, {run.id: run.id for run in depths}, column="selectivity")
    lines = [t for t in fig.data if t.mode and t.mode.startswith("lines") and t.fill is None]
    expected = [tuple(map(float, c.values)) for c in all_curves if c.column == "selectivity"]
    assert sorted(tuple(map(float, t.y)) for t in lines) == sorted(expected) and len({t.name for t in lines}) == 3
    with pytest.raises(InputError, match="curve of 'score'"):
        overlaid_curves(all_curves, {}, column="score")
