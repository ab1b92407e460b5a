"""Figures of layer redundancy, of a run and of the tables of a large model; and what the explorer's card of a layer
shows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from probes.layer_redundancy.figures import FIGURES
from tests.support.figure_runs import FakeRun, about
from workbench.core.errors import InputError
from workbench.explorer import layer_curves
from workbench.figures.captions import caption
from workbench.figures.run_tables import collect
from workbench.models.loading import load
from workbench.runs.execution import execute

TEXTS = ["The dog ran to the park.", "Lily saw a big tree and sat down.", "Tom went home.", "It was a sad day for Ben."]


def fake(layers: int = 32, *, choices: bool = False, also: bool = True) -> FakeRun:
    """Tables as a run of so many layers writes them."""
    rng = np.random.default_rng(0)
    rows = []
    for kind in ("attention", "mlp", "block"):
        turn = 0.4 * np.exp(-np.arange(layers) / 4) + 0.03 * rng.random(layers)
        order = np.argsort(np.argsort(turn)) + 1
        for layer in range(layers):
            s = 1 - turn[layer]
            rows.append(
                {"component": kind, "layer": layer, "similarity": s, "ci_low": s - 0.01, "ci_high": s + 0.01}
                | {"without_first": s - 0.01, "without_sinks": s - 0.02, "text_mean": s, "null": s - 0.03}
                | {"norm_change": turn[layer], "scale": 1 + turn[layer], "rescales": layer == 3}
                | {"rank": int(order[layer]), "texts": 128}
            )
    dropped = []
    orders = ("similarity", "first", "last", "random", *(("iterative",) if also else ()))
    for kind in ("none", "attention", "mlp", "block", "joint"):
        for n in (0,) if kind == "none" else (4, 8, 16):
            for order in ("none",) if kind == "none" else orders:
                loss = 2 + 0.1 * n * (1 + orders.index(order) if order != "none" else 1)
                right = 0.6 - n / 100 if choices else None
                dropped.append(
                    {
                        "component": kind,
                        "n": n,
                        "order": order,
                        "loss": loss,
                        "ci_low": loss - 0.1,
                        "ci_high": loss + 0.1,
                    }
                    | {"accuracy": 0.5 - n / 100, "accuracy_low": 0.2, "accuracy_high": 0.6, "speed": 1 + n / 40}
                    | {"choice_accuracy": right, "choice_low": right, "choice_high": right}
                    | {"draws": 20 if order == "random" else 1, "texts": 64}
                )
    numbers = dict.fromkeys(("choice_accuracy", "choice_low", "choice_high"), pl.Float64)
    tables = {"layers": pl.DataFrame(rows), "dropping": pl.DataFrame(dropped, schema_overrides=numbers)}
    return FakeRun("layer-redundancy", tables, about("layer-redundancy", layers=layers, speed_length=512))


@pytest.mark.parametrize("layers", [6, 32, 80])
def test_every_figure_is_drawn_at_any_number_of_layers_with_what_its_caption_needs(layers):
    run = fake(layers)
    made, reasons = collect(run, FIGURES)
    assert set(made) == set(FIGURES) and reasons == {}
    said = {name: caption(run, fig) for name, fig in made.items()}
    assert "128 texts" in said["similarity"] and "64 texts" in said["dropping"]
    assert "20 draws" in said["dropping"] and "What is dropped was chosen on other texts" in said["dropping"]


def test_curves_are_the_tables_numbers_and_every_order_begins_with_the_whole_model():
    run = fake()
    fig = FIGURES["dropping"](run)
    curves = [
        trace for trace in fig.data if trace.name == "random" and "lines" in (trace.mode or "") and trace.fill is None
    ]
    assert len(curves) == 4
    for curve in curves:
        assert list(curve.x) == [0, 4, 8, 16] and curve.y[0] == 2.0
    fig = FIGURES["similarity"](run)
    (first, *_) = [trace for trace in fig.data if trace.name == "measured" and trace.fill is None]
    wanted = run.table("layers").filter(component="attention").sort("layer")["similarity"]
    np.testing.assert_allclose(first.y, wanted)
    marked = [trace for trace in fig.data if trace.name == "the quarter that goes first"]
    assert [len(trace.x) for trace in marked] == [8, 8, 8]


def test_accuracy_is_that_of_choices_where_some_were_asked_for():
    assert "share of right choices" in str(FIGURES["accuracy"](fake(choices=True)).layout)
    assert "next-token accuracy" in str(FIGURES["accuracy"](fake()).layout)


def test_what_is_not_in_the_tables_is_not_drawn_and_the_reason_is_said():
    run = fake()
    only = FakeRun(run.probe, run.frames | {"dropping": run.frames["dropping"].head(1)}, run.info)
    made, reasons = collect(only, FIGURES)
    assert "similarity" in made and "No modules were dropped" in reasons["dropping"]
    with pytest.raises(InputError, match="No modules were dropped by similarity"):
        FIGURES["speed"](only)


def test_the_card_of_a_layer_has_a_curve_of_every_kind_of_module_with_its_interval(tiny_llama, tmp_path):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(f"{a} {b}" for a in TEXTS for b in TEXTS if a != b) + "\n")
    model = load(str(tiny_llama))
    short = {"drop_n": (1,), "random_draws": 2, "timing_rounds": 0}
    run = execute("layer-redundancy", model, config=short, data=data, out=tmp_path / "run")
    found = layer_curves.curves([run], fingerprint=model.fingerprint)
    assert {(curve.column, curve.of) for curve in found} == {
        (column, kind) for column in ("similarity", "norm_change") for kind in ("attention", "mlp", "block")
    }
    layers = run.table("layers")
    for curve in found:
        own = layers.filter(component=curve.of, layer=2).row(0, named=True)
        value, ends = curve.at(2)
        assert value == own[curve.column]
        assert ends == ((own["ci_low"], own["ci_high"]) if curve.column == "similarity" else None)
