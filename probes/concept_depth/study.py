"""One set under one condition: features of all layers, probes, nulls, points and what the model does with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch

from probes.concept_depth import (
    class_measures,
    control_tasks,
    layer_curves,
    linear_probe,
)
from probes.concept_depth.above_chance import above_chance
from probes.concept_depth.causal import CAUSAL, asked_of, causal_check
from probes.concept_depth.class_measures import on_the_scale_of_two
from probes.concept_depth.class_tables import CLASSES, class_table
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import FEW, FEW_GROUPS, OFTEN, Config
from probes.concept_depth.depth_points import DEPTH, control_table, row_of_points
from probes.concept_depth.directions import coefficients
from probes.concept_depth.held_out import FITS, Fit, courses_of, folds_of, held_out_of, score_held_out, solve
from probes.concept_depth.label_shuffles import arrangements
from probes.concept_depth.layer_features import layer_features
from probes.concept_depth.number_measures import NUMBERS
from probes.concept_depth.number_points import NUMBER_DEPTH
from probes.concept_depth.peak_layer import peak, picked_elsewhere, picking_parts
from probes.concept_depth.set_splits import Split
from probes.concept_depth.steering_check import STEERING, steering_check
from probes.concept_depth.transfer import fitted_on_all
from probes.concept_depth.written_texts import WrittenTexts
from workbench.core.context import Context
from workbench.models.model import Model
from workbench.stats.clusters import FEWEST

FLOPS, SECONDS_OF_A_FIT = 1e10, 0.003  # about: a second on one core, a probe of a hundred rows of width 64


def study(
    subject: Callable,
    concept: ConceptSet,
    condition: str,
    written: WrittenTexts,
    folds: Split,
    config: Config,
    context: Context,
) -> dict[str, Any]:
    """Tables of one set, the coefficients of the probes of the first fold [L, d + 1], and, for transfer, of those
    fitted on all rows [1 + shuffles, L, d + 1]."""
    model, (tests, by_group), labels, k = subject(), folds, concept.labels, len(concept.classes)
    where = {"dataset": concept.name, "condition": condition}
    stage = context.stages(stage_weights(model, concept, written, config, folds=len(tests), clean=condition == "clean"))
    with stage("activations"):
        features = layer_features(model, concept, written, config, context)
    rows = np.concatenate(tests)
    truth, groups = labels[rows], np.array(concept.groups if concept.groups is not None else np.arange(len(labels)))
    units = groups if by_group else None
    clusters = groups[rows]
    n = len(set(clusters))
    warn_of_few(concept, len(rows), n, folds=config.split == "kfold", context=context)

    fit = fitter(config, model.device, context, classes=k)
    others = layer_curves.shuffled_labels(
        labels, tests, units, shuffles=config.shuffles, rng=context.rng(f"shuffle {concept.name}")
    )
    drawn = control_tasks.drawn_tasks(
        control_tasks.types_of(concept),
        tasks=config.control_tasks,
        rng=context.rng(f"control tasks {concept.name}"),
        classes=k,
    )
    with stage("probes"):
        problems = [problem for own in (labels, *others) for problem in folds_of(own, tests)] + drawn
        solved = solve(features, problems, fit, told=lambda done: context.progress(done, len(problems)))
        held_out = held_out_of(solved, len(tests))
    layer_curves.warn_of_what_did_not_converge(held_out, concept.name, condition, context)
    rng = context.rng(f"bootstrap {concept.name}")
    curve = layer_curves.measured(held_out.scores, truth, clusters, tests, draws=config.draws, rng=rng)
    parts = picking_parts(truth, clusters if by_group else None, tests, context.rng(f"halves {concept.name}"))
    with stage("shuffled labels"):
        _, *courses = courses_of(solved.scores[: len(problems) - len(drawn)], len(tests))
        ways = arrangements(labels, tests, units)
        control = layer_curves.control_of(courses, [own[rows] for own in others], parts, ways, model.n_layers, k)
    context.check()
    scaled = partial(on_the_scale_of_two, classes=k)
    judged = above_chance(scaled(curve.value["balanced_accuracy"]), scaled(control.balanced), control.ways)
    tasks = control_tasks.task_accuracies(solved.scores[len(problems) - len(drawn) :], drawn, model.n_layers)
    selective = control_tasks.selectivity(curve.value["accuracy"], curve.low["accuracy"], curve.high["accuracy"], tasks)
    resampled = None if curve.resampled is None else scaled(curve.resampled)
    points = row_of_points(scaled(curve.value["accuracy"]), resampled, scaled(control.accuracy), judged)
    points |= peak(curve.hits, parts, clusters, curve.resampled, control.peak) | {"n": n, "n_test": len(rows)}
    causal, steered = [], []
    if condition == "clean":
        _warn_of_chance_jumps(concept, points, context)
        picked = picked_elsewhere(curve.hits, parts)[0] if len(tests) > 1 else [points["peak_layer"]]
        layers = {"peak": [int(picked[0])], "all": list(range(model.n_layers)), "off": []}[config.causal]
        probes = held_out.probes
        asked = asked_of(model, concept, written, tests[0], config, context) if layers else None
        if asked is not None and isinstance(probes, linear_probe.LinearProbes):  # of two classes
            with stage("causal check"):
                causal = causal_check(model, concept, asked, features, probes, layers, config, context)
                steered = steering_check(model, concept.name, asked, features, probes, layers, config, context)
    table = layer_curves.layer_table(
        where,
        curve,
        control,
        judged,
        selective,
        held_out,
        majority=float(np.bincount(truth).max() / len(truth)),
        n=n,
        n_train=len(labels) - len(tests[0]),
    )
    return {
        "layers": table,
        "depth": pl.DataFrame([where | points], schema=DEPTH),
        "controls": control_table(where, scaled(control.accuracy), control.peak),
        "path": layer_curves.penalty_path(
            where,
            config.c_path,
            lambda c: class_measures.metrics(
                score_held_out(
                    features, labels, tests, fit=fitter(replace(config, c=c), model.device, context, classes=k)
                ).scores,
                truth,
            ),
        ),
        "classes": class_table(where, concept, held_out.scores, truth, clusters, tests, control)
        if k > 2
        else pl.DataFrame(schema=CLASSES),
        "numbers": pl.DataFrame(schema=NUMBERS),
        "number_depth": pl.DataFrame(schema=NUMBER_DEPTH),
        "causal": pl.DataFrame([where | row for row in causal], schema=CAUSAL),
        "steering": pl.DataFrame([where | row for row in steered], schema=STEERING),
        "coefficients": coefficients(held_out.probes),
        "fitted_on_all": fitted_on_all(
            features,
            labels,
            None if concept.groups is None else groups,
            fit,
            shuffles=config.shuffles,
            rng=context.rng(f"transfer {concept.name}"),
        )
        if config.transfer and condition == "clean" and k == 2
        else np.empty(0),
    }


def stage_weights(
    model: Model, concept: ConceptSet, written: WrittenTexts, config: Config, *, folds: int, clean: bool
) -> dict[str, float]:
    """What the stages of a set take beside each other: about the seconds on one CPU core."""
    read = sum(map(len, written.ids)) * 24 * model.n_layers * model.width**2 / FLOPS
    fit = SECONDS_OF_A_FIT * model.n_layers * folds * (model.width / 64) * (len(concept) / 100)
    held_out = 0.3 * read
    passes = (2 + config.random_draws) * (model.n_layers if config.causal == "all" else config.causal == "peak")
    passes *= 1 + 2 * len(config.steer)
    return {
        "activations": read,
        "probes": (3 + config.shuffles + config.control_tasks / max(1, folds)) * fit,
        "shuffled labels": 0.02 * config.shuffles * fit,
        "causal check": passes * held_out if clean and concept.answers is not None else 0,
        "the rest": (len(config.c_path) + config.transfer * config.shuffles / max(1, folds)) * fit,
    }


def fitter(config: Config, device: torch.device, context: Context, *, classes: int = 2) -> Fit:
    """The classifier that the config asks for, of so many classes: probes of every layer for several problems."""
    options: dict[str, Any] = {"standardize": config.standardize, "device": device, "check": context.check}
    if config.classifier == "logistic":
        options["c"] = config.c
    return partial(FITS[config.classifier][classes > 2], **options)


def warn_of_few(concept: ConceptSet, rows: int, n: int, *, folds: bool, context: Context) -> None:
    """Say where the test rows, or the groups that they belong to (`n`), are too few; `folds`: every row is tested
    already."""
    if n < FEW_GROUPS and concept.groups is not None:
        context.warn(
            f"The set '{concept.name}' is tested on {n} groups only: "
            + (f"below {FEWEST} nothing has an interval; " if n < FEWEST else "its intervals are wide and rough; ")
            + ("add groups" if folds else "split=kfold tests every group")
            + "."
        )
    if rows < FEW:
        context.warn(
            f"The set '{concept.name}' is tested on {rows} rows: one of them is {100 / rows:.0f} "
            f"points of accuracy; add rows{'' if folds else ', or test all of them with split=kfold'}."
        )


def _warn_of_chance_jumps(concept: ConceptSet, points: dict, context: Context) -> None:
    if points["false_positive_low"] > OFTEN:
        shuffles = points["n_shuffles"]
        fired = round(points["false_positive_rate"] * shuffles)
        context.warn(
            f"On shuffled labels of '{concept.name}' the paper's jump rule fires in {fired} of {shuffles} courses "
            f"({points['n_test']} test rows, {points['n']} independent): `jump_by_rule` says little; read `jump`, "
            f"which is given only where no shuffled course has as large a step."
        )
