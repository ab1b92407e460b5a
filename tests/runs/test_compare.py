"""Two runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support import figure_runs
from workbench.cli.main import run as command_line
from workbench.core.errors import InputError
from workbench.core.files import write_json
from workbench.runs import compare as comparing
from workbench.runs import execution as runs
from workbench.runs.folder import open_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402,F401


def make(folder: Path, tables: dict[str, pl.DataFrame], probe="some-probe", **info):
    """A run folder with these tables."""
    (folder / "tables").mkdir(parents=True)
    for name, frame in tables.items():
        frame.write_parquet(folder / "tables" / f"{name}.parquet")
    model = {"name": info.pop("model", "a"), "fingerprint": "0" * 64, "dtype": "float32"}
    write_json(
        folder / "run.json",
        {
            "schema": 1,
            "id": folder.name,
            "probe": probe,
            "status": "complete",
            "model": model,
            "config": {"n": 1},
            "seed": 0,
            **info,
        },
    )
    return open_run(folder)


def heads(scores, layers=2):
    per = len(scores) // layers
    return pl.DataFrame(
        {
            "layer": np.repeat(range(layers), per),
            "head": np.tile(range(per), layers),
            "score": scores,
            "is_retrieval": [s > 0.5 for s in scores],
        }
    )


@pytest.fixture
def pair(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random(32)
    y = np.clip(x + 0.1 * rng.normal(size=32), 0, 1)
    shuffled = heads(y).sample(fraction=1.0, shuffle=True, seed=1)
    return (
        make(tmp_path / "one", {"heads": heads(x), "only": heads(x)}),
        make(tmp_path / "two", {"heads": shuffled}, seed=1, model="b"),
        x,
        y,
    )


def test_head_maps_are_joined_on_layer_and_head_whatever_their_order(pair):
    one, two, x, y = pair
    joined = comparing.joined(one, two, "heads")
    assert joined.columns[:5] == ["layer", "head", "score_first", "score_second", "score_difference"]
    assert joined["score_first"].to_list() == x.tolist() and joined["score_second"].to_list() == y.tolist()
    assert np.allclose(joined["score_difference"], y - x, atol=0)


def test_differences_and_correlations_are_those_of_scipy_with_an_interval_around(pair):
    from scipy import stats

    one, two, x, y = pair
    found = comparing.compare(one, two)
    table = found["tables"]["heads"]
    score = table["columns"]["score"]
    assert list(found["tables"]) == ["heads"] and table["keys"] == ["layer", "head"]
    assert (table["matched"], table["only_first"], table["only_second"]) == (32, 0, 0)
    assert score["mean_difference"] == pytest.approx((y - x).mean()) and score["max_abs_difference"] == pytest.approx(
        np.abs(y - x).max()
    )
    for kind, function in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        estimate = score[kind]
        assert estimate["value"] == pytest.approx(function(x, y)[0], abs=1e-12)
        assert estimate["low"] < estimate["value"] < estimate["high"] and estimate["n"] == 32
    assert set(found["settings"]) == {"model", "seed"} and found["settings"]["seed"] == [0, 1]
    assert comparing.compare(one, two) == found
    assert found["not_compared"] is None and found["headline"] == {} and table["apart"] == []  # no probe says otherwise
    assert any("pearson" in line for line in comparing.lines(found))


def test_rows_that_only_one_run_has_are_counted_and_left_out(tmp_path):
    one, two = (
        make(tmp_path / "one", {"heads": heads([0.1, 0.2, 0.3, 0.4])}),
        make(tmp_path / "two", {"heads": heads([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], layers=3)}),
    )
    table = comparing.compare(one, two)["tables"]["heads"]
    assert (table["matched"], table["only_first"], table["only_second"]) == (4, 0, 2)
    assert table["columns"]["score"]["max_abs_difference"] == 0


def test_a_run_compared_with_itself_differs_nowhere(pair):
    one = pair[0]
    found = comparing.compare(one, one)
    assert found["settings"] == {} and found["tables"]["heads"]["columns"]["score"]["max_abs_difference"] == 0
    assert found["tables"]["heads"]["columns"]["score"]["pearson"]["value"] == pytest.approx(1)


def test_missing_numbers_are_left_out_and_text_and_lists_are_counted_as_equal_or_not(tmp_path):
    def frame(values, words):
        return pl.DataFrame({"row": [0, 1, 2, 3], "x": values, "text": words, "ids": [[1], [2], [3], [4]]})

    one = make(tmp_path / "one", {"t": frame([1.0, None, float("nan"), 4.0], list("abcd"))})
    two = make(tmp_path / "two", {"t": frame([2.0, 2.0, 3.0, 4.0], list("abcx"))})
    columns = comparing.compare(one, two)["tables"]["t"]["columns"]
    assert columns["x"] == {
        "n": 2,
        "mean_first": 2.5,
        "mean_second": 3.0,
        "mean_difference": 0.5,
        "max_abs_difference": 1.0,
    }
    assert columns["text"] == {"n": 4, "equal": 0.75} and columns["ids"] == {"n": 4, "equal": 1.0}


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        ({"layer": [0, 0, 1], "head": [0, 1, 0], "score": [1.0, 2, 3]}, ["layer", "head"]),
        ({"layer": [0, 1, 2], "head": [0, 0, 0], "score": [1.0, 2, 3]}, ["layer", "head"]),
        ({"prompt": ["a", "b", "c"], "bf": [1.0, 2, 3], "position": [5, 5, 5]}, ["prompt"]),
        (
            {
                "k": [1, 1, 1],
                "heads": ["top", "random", "random"],
                "draw": [0, 0, 1],
                "ablation": ["z"] * 3,
                "recall": [0.0, 1, 1],
            },
            ["k", "heads", "draw", "ablation"],
        ),
        ({"row": [0, 1, 2], "target": ["t"] * 3, "score": [1.0, 2, 3], "rank": [3, 2, 1]}, ["row", "target"]),
    ],
)
def test_the_columns_that_say_which_row_it_is_are_found(columns, keys):
    frame = pl.DataFrame(columns)
    assert comparing.key_columns(frame, frame) == keys


def test_a_column_that_only_names_the_model_does_not_keep_two_models_apart(tmp_path):
    def layers(name):
        return pl.DataFrame({"checkpoint": [name] * 3, "layer": [0, 1, 2], "rankme": [1.0, 2, 3]})

    one, two = make(tmp_path / "one", {"layers": layers("a")}), make(tmp_path / "two", {"layers": layers("b")})
    table = comparing.compare(one, two)["tables"]["layers"]
    assert table["keys"] == ["layer"] and table["matched"] == 3


def test_a_table_of_one_row_each_is_compared_whatever_the_row_is_called_but_other_keys_keep_rows_apart(tmp_path):
    def tables(name, dataset):
        return {
            "checkpoints": pl.DataFrame({"checkpoint": [name], "loss": [2.0 if name == "a" else 3.0]}),
            "layers": pl.DataFrame({"dataset": [dataset] * 2, "layer": [0, 1], "accuracy": [0.5, 0.9]}),
            "phases": pl.DataFrame(schema={"phase": pl.String, "start_step": pl.Float64}),
        }

    one, two = make(tmp_path / "one", tables("a", "sentiment")), make(tmp_path / "two", tables("b", "topic"))
    found = comparing.compare(one, two)["tables"]
    assert found["checkpoints"]["matched"] == 1 and found["checkpoints"]["columns"]["loss"]["mean_difference"] == 1
    assert (found["layers"]["matched"], found["layers"]["only_first"], found["layers"]["only_second"]) == (
        0,
        2,
        2,
    )  # two concepts are not one
    text = comparing.lines(comparing.compare(one, two))
    assert (
        "checkpoints: 1 row each" in text
        and "phases: no rows" in text
        and any(line.startswith("layers: no rows matched on") for line in text)
    )


def test_only_measured_columns_are_correlated(tmp_path):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "layer": range(20),
            "kv_group": [i // 4 for i in range(20)],
            "depth": np.arange(20) / 20,
            "score": rng.random(20),
            "ci_low": rng.random(20),
            "n_test": range(20),
            "is_retrieval": [i % 2 == 0 for i in range(20)],
        }
    )
    one, two = make(tmp_path / "one", {"t": frame}), make(tmp_path / "two", {"t": frame})
    columns = comparing.compare(one, two)["tables"]["t"]["columns"]
    assert [name for name, entry in columns.items() if "pearson" in entry] == ["score"]
    assert columns["n_test"]["mean_first"] == 9.5 and columns["is_retrieval"]["mean_difference"] == 0


def test_rows_without_a_known_key_are_told_apart_by_what_stands_left_of_the_first_measurement():
    frame = pl.DataFrame(
        {
            "measure": ["rankme", "rankme", "alpha"],
            "against": ["loss", "task", "loss"],
            "value": [0.1, 0.2, 0.3],
            "n": [6, 6, 6],
        }
    )
    assert comparing.key_columns(frame, frame) == ["measure", "against"]


def test_rows_that_cannot_be_told_apart_are_said_to_be_so(tmp_path):
    frame = pl.DataFrame({"layer": [0, 0], "x": [1.0, 2.0]})
    one, two = make(tmp_path / "one", {"t": frame}), make(tmp_path / "two", {"t": frame})
    found = comparing.compare(one, two)
    assert "cannot be told apart by layer" in found["tables"]["t"]["problem"]
    assert any("not compared" in line for line in comparing.lines(found))


def test_runs_of_different_probes_or_without_a_common_table_are_refused(tmp_path):
    one = make(tmp_path / "one", {"a": heads([1.0, 2.0])})
    with pytest.raises(InputError, match="different probes"):
        comparing.compare(one, make(tmp_path / "two", {"a": heads([1.0, 2.0])}, probe="another"))
    with pytest.raises(InputError, match="no table in common"):
        comparing.compare(one, make(tmp_path / "three", {"b": heads([1.0, 2.0])}))


@pytest.fixture(scope="module")
def two_models(tiny_llama):
    """The same weights twice, under two names and a little apart."""
    from workbench.models.loading import load

    one, two = (load(str(tiny_llama)) for _ in range(2))
    two.hf.model.layers[2].mlp.down_proj.weight.mul_(1.05)
    two.name, two.fingerprint = "another", "f" * 64
    return one, two


@pytest.mark.parametrize("probe", ["concept-depth", "representation-geometry"])
def test_two_models_are_compared_from_the_command_line_in_every_table(two_models, probe, tmp_path, capsys):
    """Rows differ in the model's name only: all of them are matched, and a table without rows says so."""
    data = tmp_path / "texts.jsonl"
    data.write_text(
        "".join(
            f'{{"text": "{who} saw {i} dogs because", "label": {k}, "answer": "{("he", "she")[k]}"}}\n'
            for i in range(20)
            for k, who in enumerate(("Tom", "Lily"))
        )
    )
    config = {
        "concept-depth": {"draws": 100, "shuffles": 2, "random_draws": 2, "c_path": (0.1,), "split": "code"},
        "representation-geometry": {"draws": 10, "fit_range": (3, 20), "loss_rows": 4, "ablate": (4,), "layers": "all"},
    }[probe]
    made = [
        runs.execute(probe, model, config=config, data=data, out=tmp_path / model.name.split("/")[-1])
        for model in two_models
    ]
    assert command_line(["compare", *(str(run.folder) for run in made)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line and line[0] != " "]
    for name in made[0].tables:
        line = next(line for line in said if line.startswith(f"{name}: "))
        rows = made[0].table(name).height
        matched = {0: f"{name}: no rows", 1: f"{name}: 1 row"}.get(rows, f"{name}: {rows} rows matched on ")
        assert line.startswith(matched) and "only" not in line
    found = comparing.compare(*made)["tables"]
    first, second = (run.table("layers") for run in made)
    column = "accuracy" if probe == "concept-depth" else "rankme"
    assert found["layers"]["columns"][column]["max_abs_difference"] == pytest.approx(
        (first[column] - second[column]).abs().max()
    )


def test_several_runs_are_drawn_in_one_figure_from_the_command_line(tmp_path, capsys):
    """Two models of different depth over relative depth; a figure that a probe does not have is refused in a
    sentence."""
    folders = []
    for name, layers in (("small", 6), ("larger", 12)):
        run = figure_runs.depth(layers=layers, conditions=("clean",))
        folders.append(make(tmp_path / name, run.frames, probe="concept-depth", model=name).folder)
    geometry = make(tmp_path / "geometry", figure_runs.geometry().frames, probe="representation-geometry").folder
    assert command_line(["figures", *map(str, folders), "--format", "csv,html", "--out", str(tmp_path / "out")]) == 0
    drawn = pl.read_csv(tmp_path / "out" / "compare.csv")
    for name, layers in (("small", 6), ("larger", 12)):
        part = drawn.filter(trace=name, panel="kind of animal").sort("x")
        assert part["x"].to_list() == pytest.approx(np.arange(layers) / layers)
        assert part["y"].to_list() == pytest.approx(
            open_run(tmp_path / name)
            .table("layers")
            .filter(dataset="kind of animal")
            .sort("layer")["accuracy"]
            .to_list()
        )
    caption = (tmp_path / "out" / "compare.caption.txt").read_text()
    assert (
        "Model: small" in caption and "Further runs: larger" in caption and (tmp_path / "out" / "compare.bib").exists()
    )
    capsys.readouterr()
    for arguments, sentence in (
        ([folders[0], geometry], "runs of one probe"),
        ([geometry, geometry], "has no figure of several runs"),
        ([*folders, "--only", "curves"], "several runs have one figure"),
    ):
        assert command_line(["figures", *map(str, arguments)]) == 2
        assert sentence in capsys.readouterr().err
