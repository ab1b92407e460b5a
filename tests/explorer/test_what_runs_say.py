"""Heads and layers in the explorer are coloured by what each probe declares, and guessed only where it is not
installed."""

from __future__ import annotations

import polars as pl
import pytest

from tests.support import figure_runs
from workbench.explorer import head_sets, layer_curves
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
    found = layer_curves.at_layer([depth, geometry], 3, fingerprint="a")
    mine = [point for point in found if point.run is depth]
    rows = depth.table("layers").filter(layer=3)
    assert [point.column for point in mine] == ["accuracy", "selectivity"] * rows.height
    first = rows.row(0, named=True)
    assert mine[0].of == f"{first['dataset']} · {first['condition']}" and mine[0].value == first["accuracy"]
    assert mine[0].interval == (first["ci_low"], first["ci_high"]) and mine[1].interval is None
    theirs = [point for point in found if point.run is geometry]
    assert {point.column for point in theirs} == {"rankme", "alpha"}
    assert [point.of for point in theirs[::2]] == geometry.table("layers").filter(layer=3)["checkpoint"].to_list()[:12]
    assert layer_curves.at_layer([depth], 3, fingerprint="b") == []
    assert layer_curves.probes_with_curves() == ["Concept depth", "Representation geometry"]


@pytest.mark.parametrize("layer", [0, 3])
def test_without_the_probe_names_are_words_and_what_was_measured_are_numbers(tmp_path, layer):
    run = kept(tmp_path, "x-1", figure_runs.depth(), probe="not-installed")
    found = layer_curves.at_layer([run], layer)
    row = run.table("layers").filter(layer=layer).row(0, named=True)
    assert found[0].of == f"{row['dataset']} · {row['condition']}" and found[0].value == row["accuracy"]
    assert {point.column for point in found} == {"accuracy", "f1", "auc", "control_accuracy"}
