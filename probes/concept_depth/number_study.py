"""One set of numbers under one condition: a ridge probe a layer, its null, and the depths at which it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from probes.concept_depth.above_chance import LEAST, AboveChance, above_chance
from probes.concept_depth.causal import CAUSAL
from probes.concept_depth.class_tables import CLASSES
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import Config
from probes.concept_depth.depth_points import CONTROLS, DEPTH
from probes.concept_depth.directions import coefficients
from probes.concept_depth.label_shuffles import arrangements_of_numbers, shuffle_numbers
from probes.concept_depth.layer_curves import LAYERS, PATH
from probes.concept_depth.layer_features import layer_features
from probes.concept_depth.number_measures import (
    NUMBERS,
    NumberCurve,
    measured_numbers,
    r_squared,
    r_squared_interval,
    spearman_of_folds,
)
from probes.concept_depth.number_points import NUMBER_DEPTH, row_of_number_points
from probes.concept_depth.peak_layer import picked_elsewhere, picking_parts
from probes.concept_depth.ridge_probe import read_held_out
from probes.concept_depth.set_splits import Split, parts_in_proportion
from probes.concept_depth.steering_check import STEERING
from probes.concept_depth.study import warn_of_few
from probes.concept_depth.written_texts import WrittenTexts
from workbench.core.context import Context
from workbench.stats.clusters import clusters_of

INNER = 4  # parts of the rows fitted on, in choosing a penalty
NO_CLASSES = {
    "layers": LAYERS,
    "depth": DEPTH,
    "controls": CONTROLS,
    "path": PATH,
    "classes": CLASSES,
    "causal": CAUSAL,
    "steering": STEERING,
}  # tables that a set of numbers has no rows in


def number_study(
    subject: Callable,
    concept: ConceptSet,
    condition: str,
    written: WrittenTexts,
    folds: Split,
    config: Config,
    context: Context,
) -> dict[str, Any]:
    """Tables of one set, and the coefficients of the probes of the first fold [L, d + 1]."""
    model, (tests, by_group), numbers = subject(), folds, concept.labels
    where = {"dataset": concept.name, "condition": condition}
    features = layer_features(model, concept, written, config, context)
    rows = np.concatenate(tests)
    groups = np.array(concept.groups if concept.groups is not None else np.arange(len(numbers)))
    clusters, units = groups[rows], groups if by_group else None
    n = len(set(clusters))
    warn_of_few(concept, len(rows), n, folds=config.split == "kfold", context=context)

    rng = context.rng(f"shuffle {concept.name}")
    shuffled = [shuffle_numbers(numbers, tests, units, rng) for _ in range(config.shuffles)]
    targets = np.stack([numbers, *shuffled])
    rng = context.rng(f"penalty {concept.name}")

    def inner(train: np.ndarray) -> list[np.ndarray]:
        alike = np.zeros(len(train), dtype=int)  # the numbers have no part in it: it serves the shuffled ones as well
        return parts_in_proportion(alike, None if units is None else units[train], INNER, rng)

    held_out = read_held_out(
        features,
        targets,
        tests,
        inner,
        standardize=config.standardize,
        device=model.device,
        check=context.check,
    )
    truth = targets[:, rows]
    rng = context.rng(f"bootstrap {concept.name}")
    curve = measured_numbers(
        held_out.read[0], truth[0], held_out.guess[0], clusters, tests, draws=config.draws, rng=rng
    )
    # [shuffles, L, rows] and [shuffles, rows]
    errors, spread = (truth[1:, None] - held_out.read[1:]) ** 2, (truth[1:] - held_out.guess[1:]) ** 2
    control = r_squared(errors, spread[:, None])
    once = np.ones((1, len(rows)))
    ranks = [spearman_of_folds(read, own, tests, once)[0] for read, own in zip(held_out.read[1:], truth[1:])]
    judged = _above_zero_too(above_chance(curve.r2, control, arrangements_of_numbers(numbers, tests, units)), curve.r2)
    parts = picking_parts(
        concept.strata[rows], clusters if by_group else None, tests, context.rng(f"halves {concept.name}")
    )
    points = row_of_number_points(curve.r2, curve.resampled, judged, len(control))
    points |= _peak(curve, errors, spread, parts, clusters) | {"n": n, "n_test": len(rows)}
    empty = {name: pl.DataFrame(schema=schema) for name, schema in NO_CLASSES.items()}
    return empty | {
        "numbers": _table(
            where, curve, control, np.array(ranks), judged, held_out.alpha, n, len(numbers) - len(tests[0]), len(rows)
        ),
        "number_depth": pl.DataFrame([where | points], schema=NUMBER_DEPTH),
        "coefficients": coefficients(held_out.probes),
        "fitted_on_all": np.empty(0),
    }


def _above_zero_too(judged: AboveChance, r2: np.ndarray) -> AboveChance:
    """A probe that is worse than the mean says nothing, though shuffled numbers may be read still worse."""
    return replace(judged, above=judged.above & (r2 >= LEAST))


def _peak(
    curve: NumberCurve, errors: np.ndarray, spread: np.ndarray, parts: Sequence[np.ndarray], clusters: np.ndarray
) -> dict:
    """R² of the best layer on rows that did not pick it, with its interval, beside the mean of the same on shuffled
    numbers, errors [shuffles, L, rows]; `peak_layer`, where the whole curve is highest, with its range."""
    held_out = -picked_elsewhere(-curve.errors, parts)[1]
    there = ~np.isnan(held_out)
    row: dict = {"peak_r2": float("nan"), "peak_low": float("nan"), "peak_high": float("nan")}
    if there.any():
        own, of_guess = held_out[there], curve.spread[there]
        low, high = r_squared_interval(own, of_guess, clusters_of(clusters[there]))
        row = {"peak_r2": float(r_squared(own, of_guess)), "peak_low": float(low), "peak_high": float(high)}
    null = []
    for own, of_guess in zip(errors, spread):
        picked = -picked_elsewhere(-own, parts)[1]
        null.append(r_squared(picked[there], of_guess[there]))
    ends: tuple = (None, None)
    if curve.resampled is not None:
        ends = tuple(map(int, np.quantile(curve.resampled.argmax(1), [0.025, 0.975], method="nearest")))
    return row | {
        "peak_control": float(np.mean(null)) if null and there.any() else float("nan"),
        "peak_layer": int(curve.r2.argmax()),
        "peak_layer_low": ends[0],
        "peak_layer_high": ends[1],
    }


def _table(
    where: dict,
    curve: NumberCurve,
    control: np.ndarray,
    ranks: np.ndarray,
    judged: AboveChance,
    alpha: np.ndarray,
    n: int,
    n_train: int,
    n_test: int,
) -> pl.DataFrame:
    """One row per layer: the measures with their intervals, and what they are on shuffled numbers."""
    layers = np.arange(len(curve.r2))
    none = np.full(len(layers), np.nan)
    null = dict.fromkeys(("control_r2", "control_low", "control_high", "control_spearman"), none)
    if len(control):
        low, high = np.quantile(control, [0.025, 0.975], axis=0)
        null = {"control_r2": control.mean(0), "control_low": low, "control_high": high}
        null["control_spearman"] = np.nanmean(np.nan_to_num(ranks), axis=0)
    names = ("r2", "r2_low", "r2_high", "spearman", "spearman_low", "spearman_high")
    return pl.DataFrame(
        where
        | {"layer": layers, "depth": layers / len(layers)}
        | {name: getattr(curve, name) for name in names}
        | null
        | {"above_shuffled": curve.r2 - null["control_r2"]}
        | {"p": judged.p, "p_adjusted": judged.p_adjusted, "above_chance": judged.above}
        | {"alpha": np.exp(np.log(alpha).mean(0))}
        | {"n_train": n_train, "n": n, "n_test": n_test},
        schema_overrides={"n_train": pl.Int64, "n": pl.Int64, "n_test": pl.Int64},
    ).select(list(NUMBERS))
