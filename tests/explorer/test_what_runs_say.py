"""Heads and layers in the explorer are coloured by what each probe declares, and guessed only where it is not
installed."""

from __future__ import annotations

import re

import polars as pl
import pytest

from tests.support import figure_runs
from workbench.core.errors import InputError
from workbench.explorer import head_sets, layer_curves
from workbench.explorer.layer_curves_drawn import layer_curves_figure
from workbench.figures import sparkline
from workbench.runs.folder import Run


def kept(folder, identifier, fake, probe=None) -> Run:
    """A synthetic run as a complete folder."""
    (folder / identifier / "tables").mkdir(parents=True)
    for name in fake.tables:
        fake.table(name).write_parquet(folder / identifier / "tables" / f"{name}.parquet")
    about = {"id": identifier, "status": "complete", "model": {"fingerprint": "a"}}
    return Run(folder / identifier, about | {"probe": probe or fake.info["probe"]})


def test_the_columns_of_heads_are_those_that_the_probe_declares(tmp_path):
    retrieval = kept(tmp_path, "r-1", figure_runs.retrieval())
    conflict = kept(tmp_path, "c-1", figure_runs.conflict())
    tables = head_sets.head_tables([retrieval, conflict], fingerprint="a")
    assert [frame.columns for _, frame in tables] == [
        ["layer", "head", "score", "activation_frequency", "is_retrieval", "ci_low", "ci_high"],
        [
            *("layer", "head", "memory_importance", "context_importance", "gradient_memory", "gradient_context"),
            *("role", "ci_low", "ci_high"),
        ],
    ]
    assert head_sets.score_columns(tables[1][1]) == [
        *("memory_importance", "context_importance", "gradient_memory", "gradient_context")
    ]  # a role is no number
    frame = retrieval.table("heads")
    assert head_sets.best_head(tables) == head_sets.top_heads(frame, "score", 1)[0]
    assert head_sets.is_share(retrieval, "score") and not head_sets.is_share(retrieval, "is_retrieval")
    assert not head_sets.is_share(conflict, "score")
    assert head_sets.head_tables([kept(tmp_path, "d-1", figure_runs.depth())], fingerprint="a") == []


def test_head_tables_of_one_run_stand_side_by_side():
    one = pl.DataFrame({"layer": [0, 0], "head": [0, 1], "x": [1.0, 2.0]})
    two = pl.DataFrame({"layer": [0, 0], "head": [1, 0], "x": [5.0, 6.0], "y": [3.0, 4.0]})
    assert head_sets._side_by_side([one, two]).to_dict(as_series=False) == {
        "layer": [0, 0],
        "head": [0, 1],
        "x": [1.0, 2.0],
        "y": [4.0, 3.0],
    }


def test_masks_are_the_files_that_a_probe_says_are_masks_and_without_the_probe_those_that_look_like_one(tmp_path):
    from workbench.engine.head_masks import save_heads

    runs = [
        kept(tmp_path, "known", figure_runs.conflict()),
        kept(tmp_path, "unknown", figure_runs.conflict(), probe="not-installed"),
    ]
    for run in runs:
        save_heads(run.folder / "pruned_heads.json", [(0, 1)])
        save_heads(run.folder / "elsewhere.json", [(0, 1)])
        (run.folder / "pruned_heads_note.json").write_text("[1]")
    found = head_sets.saved_masks(runs, fingerprint="a")
    assert list(found) == [
        *("pruned heads · known", "pruned heads note · known", "elsewhere · unknown", "pruned heads · unknown")
    ]


def test_a_layer_is_told_in_the_columns_that_the_probe_declares_and_of_what_by_its_keys(tmp_path):
    depth = kept(tmp_path, "d-1", figure_runs.depth())
    geometry = kept(tmp_path, "g-1", figure_runs.geometry())
    found = layer_curves.curves([depth, geometry], fingerprint="a")
    mine = [curve for curve in found if curve.run is depth]
    rows = depth.table("layers").filter(layer=3)
    assert [curve.column for curve in mine] == ["accuracy", "selectivity"] * rows.height
    for curve, row in zip(mine[::2], rows.iter_rows(named=True)):
        assert curve.of == f"{row['dataset']} · {row['condition']}"
        assert curve.at(3) == (row["accuracy"], (row["ci_low"], row["ci_high"]))
        assert curve.at(99) == (None, None)
    assert mine[1].at(3) == (rows["selectivity"][0], None)
    theirs = [curve for curve in found if curve.run is geometry]
    assert {curve.column for curve in theirs} == {"rankme", "alpha"}
    assert layer_curves.curves([depth], fingerprint="b") == []
    assert layer_curves.probes_with_curves()[:2] == ["Concept depth", "Representation geometry"]


@pytest.mark.parametrize("steps", [True, False])
def test_no_checkpoint_is_left_out_and_the_last_one_of_training_comes_first(tmp_path, steps):
    fake = figure_runs.geometry()
    whole = fake.table("layers")
    every = [whole.with_columns(checkpoint=pl.lit(f"c{i}"), step=pl.lit(i * 10)) for i in range(30)]
    table = pl.concat(every if not steps else every[::2] + every[1::2])  # by step, whatever the order of the rows
    run = kept(tmp_path, "g-1", fake)
    (table if steps else table.drop("step")).write_parquet(run.folder / "tables" / "layers.parquet")
    found = [curve for curve in layer_curves.curves([run]) if curve.column == "rankme"]
    assert [curve.of.split(" · ")[0] for curve in found] == [f"c{i}" for i in range(29, -1, -1)]
    first = whole["checkpoint"][0]
    assert whole.filter(checkpoint=first)["layer"].n_unique() <= len(found[0].layers)


@pytest.mark.parametrize("layer", [0, 3])
def test_without_the_probe_names_are_words_and_what_was_measured_are_numbers(tmp_path, layer):
    run = kept(tmp_path, "x-1", figure_runs.depth(), probe="not-installed")
    found = layer_curves.curves([run])
    row = run.table("layers").filter(layer=layer).row(0, named=True)
    assert found[0].of == f"{row['dataset']} · {row['condition']}" and found[0].at(layer)[0] == row["accuracy"]
    assert {curve.column for curve in found} == {"accuracy", "f1", "auc", "control_accuracy"}


def test_the_table_and_the_figure_of_curves_hold_the_numbers_of_the_runs(tmp_path):
    runs = [kept(tmp_path, f"d-{i}", figure_runs.depth()) for i in (1, 2)]
    found = layer_curves.curves(runs)
    table = layer_curves.as_table(found)
    for run in runs:
        for row in run.table("layers").iter_rows(named=True):
            of = f"{row['dataset']} · {row['condition']}"
            here = table.filter(run=run.id, column="accuracy", of=of, layer=row["layer"]).row(0, named=True)
            assert (here["value"], here["ci_low"], here["ci_high"]) == (row["accuracy"], row["ci_low"], row["ci_high"])
    fig = layer_curves_figure(found, layer=2)
    lines = [t for t in fig.data if t.mode and t.mode.startswith("lines") and t.fill is None]
    assert 0 < len(lines) <= 16 and [float(y) for y in lines[0].y] == [float(v) for v in found[0].values]
    assert "more are in the table" in fig.layout.meta["note"] or len(found) == len(lines)
    with pytest.raises(InputError, match="No finished run says anything about this model's layers"):
        layer_curves_figure([])


@pytest.mark.parametrize("y, pieces, dots", [([0.0, 1.0, 0.5], 1, 0), ([0.0, None, 1.0, 2.0], 1, 1), ([None], 0, 0)])
def test_a_small_curve_goes_through_its_points_and_breaks_where_there_is_none(y, pieces, dots):
    drawn = sparkline.svg(range(len(y)), y)
    assert drawn.count("<polyline") == pieces and drawn.count("<circle") == dots
    points = [float(v) for line in re.findall(r"points='([^']*)'", drawn) for v in re.findall(r",([0-9.]+)", line)]
    values = y[-2:] if dots else [v for v in y if v is not None]
    least, most = min((v for v in y if v is not None), default=0), max((v for v in y if v is not None), default=1)
    assert points == pytest.approx([20 - 16 * (v - least) / (most - least) for v in values], abs=0.06)
    assert ("<img" in sparkline.image(drawn)) == bool(drawn) and "<b" not in sparkline.image(drawn, said="'<b>")
