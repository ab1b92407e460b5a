"""The few numbers of a run that a person would quote, each beside its null."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from probes.concept_depth.above_chance import FOUND, LEVEL, NOT_JUDGED
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import Config
from workbench.stats.intervals import wilson

QUOTED = {"jump": "jump", "converge_stable": "converge stable", "comprehension": "accuracy 0.7"}


def left_out(sets: Sequence[ConceptSet], config: Config) -> dict[str, str]:
    """What was asked for and needs two classes, by the name of a set of more."""
    asked = [
        name for name, wanted in (("causal check", config.causal != "off"), ("transfer", config.transfer)) if wanted
    ]
    return {concept.name: ", ".join(asked) for concept in sets if len(concept.classes) != 2 and asked}


def summary_of(tables: dict[str, pl.DataFrame], without: Mapping[str, str]) -> dict[str, Any]:
    """Peak accuracy on rows that did not pick the layer, with its value on shuffled labels; layers above chance, and
    the depths that shuffled labels do not show (words in place of the others). `without`: what was left out of a set of
    more than two classes."""
    out: dict[str, Any] = {}
    for row in tables["depth"].iter_rows(named=True):
        name = row["dataset"] if row["condition"] == "clean" else f"{row['dataset']} ({row['condition']})"
        kind = tables["sets"].row(by_predicate=pl.col("dataset") == row["dataset"], named=True)
        if (k := kind["n_classes"]) > 2:
            out[f"{name}: classes"] = f"{k} (chance 1/{k} = {1 / k:.2g}; depths on the scale of two classes)"
            if row["condition"] == "clean" and row["dataset"] in without:
                out[f"{name}: left out, for it needs two classes"] = without[row["dataset"]]
        size = {"n": row["n"], "rows": row["n_test"]}
        out[f"{name}: peak accuracy"] = _quoted(row, "peak_accuracy", "peak") | size
        out[f"{name}: the same on shuffled labels"] = row["peak_control"]
        out[f"{name}: peak layer"] = row["peak_layer"]
        if row["layers_above_chance"] is not None:
            out[f"{name}: layers above chance"] = f"{row['layers_above_chance']} of {row['n_layers']}"
        for point, words in QUOTED.items():
            said = row[f"{point}_says"]
            stands = said == FOUND or (said == NOT_JUDGED and row[point] is not None)
            out[f"{name}: {words}"] = _quoted(row, point, point) | size if stands else said
        if row["condition"] == "clean":
            out |= _used(tables["causal"].filter(dataset=row["dataset"], direction="probe"), name)
            out |= _steered(tables["steering"].filter(dataset=row["dataset"], direction="probe"), name)
    return out | _of_numbers(tables["number_depth"], without) | _false_marks(tables)


def _of_numbers(depth: pl.DataFrame, without: Mapping[str, str]) -> dict[str, Any]:
    """The same of sets of numbers: R² in place of accuracy, and the depths at shares of the highest R²."""
    out: dict[str, Any] = {}
    for row in depth.iter_rows(named=True):
        name = row["dataset"] if row["condition"] == "clean" else f"{row['dataset']} ({row['condition']})"
        size = {"n": row["n"], "rows": row["n_test"]}
        out[f"{name}: peak R²"] = _quoted(row, "peak_r2", "peak") | size
        out[f"{name}: the same on shuffled numbers"] = row["peak_control"]
        out[f"{name}: peak layer"] = row["peak_layer"]
        if row["layers_above_chance"] is not None:
            out[f"{name}: layers above chance"] = f"{row['layers_above_chance']} of {row['n_layers']}"
        out[f"{name}: first layer above chance"] = row["onset"] if row["onset"] is not None else row["onset_says"]
        for point, words in (("half_way", "half of the highest R²"), ("nine_tenths", "nine tenths of the highest R²")):
            there = row[point] is not None
            out[f"{name}: {words}"] = _quoted(row, point, point) | size if there else row[f"{point}_says"]
        if row["condition"] == "clean" and row["dataset"] in without:
            out[f"{name}: left out, for it needs two classes"] = without[row["dataset"]]
    return out


def _used(causal: pl.DataFrame, name: str) -> dict[str, Any]:
    """What the answers lose without the direction, beside random ones; of several layers which of them lose more."""
    if causal.is_empty():
        return {}
    if causal.height > 1:
        words = f"{name}: layers whose direction the answers lose more without than without random ones"
        return {words: _marked(causal, causal.height)}
    row = causal.row(0, named=True)
    return {
        f"{name}: logits lost without the direction": row["lost"],
        f"{name}: the same of random directions": row["lost_to_random"],
        f"{name}: lost beyond random directions": {"value": row["excess"]}
        | {"low": row["excess_low"], "high": row["excess_high"], "n": row["n"], "rows": row["rows"]},
    }


def _steered(steering: pl.DataFrame, name: str) -> dict[str, Any]:
    """What adding the direction moves the answers by, beside random ones, at every strength; of several layers in which
    it moves them more."""
    out: dict[str, Any] = {}
    for (strength,), own in steering.group_by("strength", maintain_order=True):
        how = f"{name}: steered by ±{strength:g} deviations"
        if own.height > 1:
            out[f"{how}, layers whose direction moves the answers more than random ones"] = _marked(
                own, steering.height
            )
            continue
        row = own.row(0, named=True)
        size = {"n": row["n"], "rows": row["rows"]}
        out[f"{how}, log-odds"] = _quoted(row, "log_odds", "log_odds") | size
        out[f"{how}, the same of random directions"] = row["of_random"]
        out[f"{how}, beyond random directions"] = _quoted(row, "excess", "excess") | size
    return out


def _marked(rows: pl.DataFrame, tests: int) -> str:
    """How many layers are marked, and which, of a column of p that was adjusted over so many tests."""
    found = rows.filter((pl.col("p_adjusted") < LEVEL) & (pl.col("excess") > 0))["layer"].to_list()
    which = f" ({', '.join(map(str, found))})" if found else ""
    return (
        f"{len(found)} of {rows.height}{which}; p below {LEVEL}, adjusted over {tests} tests (Benjamini and Hochberg)"
    )


def _quoted(row: dict, value: str, ends: str) -> dict:
    return {"value": row[value], "low": row[f"{ends}_low"], "high": row[f"{ends}_high"]}


def _false_marks(tables: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """How often the paper's jump rule fires on shuffled labels, over the clean sets (the other conditions shuffle the
    labels in the same way: no further trials), and how many of the layers that were marked are wrong in expectation."""
    out: dict[str, Any] = {}
    rates = tables["depth"].filter(condition="clean")
    if shuffles := int(rates["n_shuffles"].sum()):
        fired = int(round((rates["false_positive_rate"].fill_null(0) * rates["n_shuffles"]).sum()))
        low, high = wilson(fired, shuffles)
        out["jump rule on shuffled labels"] = {"value": fired / shuffles, "low": low, "high": high, "n": shuffles}
    judged = [tables[name].filter(pl.col("p").is_not_null()) for name in ("layers", "numbers")]
    if any(frame.height for frame in judged):
        marked = sum(int(frame["above_chance"].sum()) for frame in judged)
        out["expected false marks among layers above chance"] = f"at most {math.ceil(LEVEL * marked)} of {marked}"
    return out
