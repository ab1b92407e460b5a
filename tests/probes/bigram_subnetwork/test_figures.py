"""Figures show the numbers of the tables, also of large models, and say in a sentence when there is nothing to show."""

import numpy as np
import polars as pl
import pytest

from probes.bigram_subnetwork.figures import FIGURES, ORDER
from tests.support.figure_runs import FakeRun, about
from workbench.core.errors import InputError
from workbench.figures.run_tables import collect


def test_every_figure_of_a_run_is_drawn_but_those_that_were_not_asked_for(found):
    made, reasons = collect(found, FIGURES)
    assert set(made) == {"agreement", "parameters", "layers", "search"} and set(reasons) == {"rotations"}
    evaluation = found.table("evaluation")
    drawn = [x for trace in made["agreement"].data if trace.xaxis in (None, "x") for x in trace.x]
    assert sorted(drawn) == pytest.approx(sorted(evaluation["correlation"]))


def large(layers: int = 32) -> FakeRun:
    rng = np.random.default_rng(0)
    parameters = [
        {"module": role, "layer": layer, "kept": 1, "total": 9, "share": float(rng.random() ** 6)}
        for role in reversed(ORDER)
        for layer in range(layers)
    ]
    rotations = [
        {"model": kind, "after_blocks": i, "to_input": float(i), "to_output": 70.0 - i, "n": 128_000}
        for kind in ("full", "subnetwork", "random")
        for i in range(layers + 1)
    ]
    tables = {"parameters": pl.DataFrame(parameters), "rotations": pl.DataFrame(rotations)}
    return FakeRun("bigram-subnetwork", tables, about("bigram-subnetwork", layers=layers, heads=32))


def test_every_matrix_of_a_large_model_has_its_cell():
    run = large()
    made, _ = collect(run, FIGURES)
    cells = [bar for bar in made["parameters"].data if bar.type == "bar"]
    values = {(row[0], row[1]): row[2] for bar in cells for row in bar.customdata}
    wanted = {(role, layer): share for role, layer, share in run.table("parameters")["module", "layer", "share"].rows()}
    assert values == pytest.approx(wanted) and len(values) == 32 * len(ORDER)
    assert sorted(made) == ["parameters", "rotations"]


def test_a_subnetwork_that_keeps_nothing_has_no_map():
    frame = large().table("parameters").with_columns(share=pl.lit(0.0))
    run = FakeRun("bigram-subnetwork", {"parameters": frame}, about("bigram-subnetwork"))
    with pytest.raises(InputError, match="keeps no weight"):
        FIGURES["parameters"](run)
