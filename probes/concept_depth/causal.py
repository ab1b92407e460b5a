"""The causal check: does the model use what the probe reads? The probe's direction projected out of the site that it
reads, against random directions. Adding it is `probes/concept_depth/steering_check.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch

from probes.concept_depth.above_chance import FEWEST_FOR_P
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import Config
from probes.concept_depth.linear_probe import LinearProbes
from probes.concept_depth.written_texts import WrittenTexts, answer_ids, read_positions
from workbench.core.context import Context
from workbench.engine.capture import logits
from workbench.engine.edits import ProjectOut
from workbench.engine.passes import Pass
from workbench.engine.steering import Steer
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.stats.clusters import (
    Clusters,
    cluster_mean,
    cluster_share,
    clusters_of,
    crossed_interval,
    crossed_p_above,
    false_discovery,
)

CAUSAL = {
    "dataset": pl.String,
    "condition": pl.String,
    "layer": pl.Int64,
    "direction": pl.String,
    "draw": pl.Int64,
    "answer_accuracy": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "separation": pl.Float64,
    "separation_low": pl.Float64,
    "separation_high": pl.Float64,
    "changed": pl.Float64,
    "removed_variance": pl.Float64,
    "lost": pl.Float64,
    "lost_to_random": pl.Float64,
    "excess": pl.Float64,
    "excess_low": pl.Float64,
    "excess_high": pl.Float64,
    "p": pl.Float64,
    "p_adjusted": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class AnswerReader:
    """The held-out texts that the model is asked about: rows `test` [n] of the set, their class, what is independent
    of them, and which positions are edited. `answers(*edits)`: by how much the logit of the word for class 1 is above
    that of the word for class 0, [n], in a pass that is edited."""

    test: np.ndarray
    label: np.ndarray
    clusters: Clusters
    positions: tuple | None
    answers: Callable[..., np.ndarray]


def asked_of(
    model: Model, concept: ConceptSet, written: WrittenTexts, test: np.ndarray, config: Config, context: Context
) -> AnswerReader | None:
    """What is asked on the held-out rows `test`; None, perhaps with a warning, where there is no answer to read."""
    words = _answer_tokens(model, concept, written, context)
    if words is None:
        return None
    test = np.sort(test)
    own = written.take(test.tolist())
    run = Pass(context.edits, max_tokens=model.tokens_at_once(config.max_tokens), check=context.check)

    def answers(*edits: ProjectOut | Steer) -> np.ndarray:
        scores = logits(model, own.ids, run=replace(run, edits=(*run.edits, *edits)))
        return (scores[:, words[1]] - scores[:, words[0]]).double().numpy()

    clusters = clusters_of(np.arange(len(test)) if concept.groups is None else np.array(concept.groups)[test])
    return AnswerReader(test, concept.labels[test], clusters, read_positions(model, own, config.token), answers)


def causal_check(
    model: Model,
    concept: ConceptSet,
    asked: AnswerReader,
    features: Sequence[torch.Tensor],
    probes: LinearProbes,
    layers: Sequence[int],
    config: Config,
    context: Context,
) -> list[dict]:
    """What projecting a direction out of the probed site of each of `layers` does to the model's own answers: rows with
    the columns of CAUSAL but the first two, the unedited model's first.

    The answer is the likelier of the two answer words' first tokens; `separation` is how much further the logit
    difference lies towards class 1 for texts of class 1 than for texts of class 0; `changed` is the share of answers
    that differ from the unedited model's; `removed_variance` is the share of the held-out features' variance that lies
    along the direction: how much an edit takes out at all. `lost`, in the probe's own rows: how much of the unedited
    separation is gone, beside what the random directions take (`lost_to_random`, their mean), and the difference of
    the two, `excess`, with an interval over texts and directions. `p`: of the direction being one more random one, or
    of there being no excess over texts and directions, whichever is larger; `p_adjusted` over the layers (Benjamini and
    Hochberg). What is independent is a group (`n`), where the set has groups, else a text."""
    label, clusters = asked.label, asked.clusters
    base = asked.answers()
    rows = [{"layer": -1, "direction": "none", "draw": 0, "removed_variance": 0.0}]
    rows[0] |= _effect(base, base, label, clusters)
    generator = context.rng(f"directions {concept.name}")
    for layer in layers:
        x = features[layer][asked.test].double().cpu()
        x = x - x.mean(0)
        directions = [("probe", 0, probes.coef[layer])]
        directions += [
            ("random", draw, torch.from_numpy(generator.standard_normal(model.width)))
            for draw in range(config.random_draws)
        ]
        lost: dict[str, list[np.ndarray]] = {"probe": [], "random": []}
        for direction, draw, vector in directions:
            if float(vector.norm()) > 0:
                removed = float((x @ (vector / vector.norm())).square().sum() / x.square().sum().clamp(min=1e-300))
                place = {"layer": layer, "direction": direction, "draw": draw, "removed_variance": removed}
                edit = ProjectOut(Site(config.site, layer), vector, positions=asked.positions)
                edited = asked.answers(edit)
                rows.append(place | _effect(edited, base, label, clusters))
                lost[direction].append(_separated(base, label) - _separated(edited, label))
        if lost["probe"]:
            own = next(row for row in rows if row["layer"] == layer and row["direction"] == "probe")
            own |= _beside_random(lost["probe"][0], np.stack(lost["random"]), clusters)
    adjust(rows)
    return rows


def adjust(rows: list[dict]) -> None:
    """Give every row with a p its `p_adjusted`, over all of them (Benjamini and Hochberg)."""
    there = [row for row in rows if row.get("p") is not None]
    for row, adjusted in zip(there, false_discovery(np.array([row["p"] for row in there]))):
        row["p_adjusted"] = float(adjusted)


def _answer_tokens(model: Model, concept: ConceptSet, written: WrittenTexts, context: Context) -> list[int] | None:
    """The first tokens of the two answer words; None, with a warning, where the answer cannot be read off them."""
    if concept.answers is None:
        return None
    if context.engine != "hf":
        context.warn("The causal check needs edits, which only the engine 'hf' runs here; it was left out.")
        return None
    found = [answer_ids(model, concept, written, word) for word in concept.answers]
    words = [ids[0] for ids in found if ids]
    if len(words) < 2:
        context.warn(
            f"The tokenizer of {model.name} joins the answers of {concept.name} with what stands before them; the "
            f"causal check was left out."
        )
        return None
    if words[0] == words[1]:
        context.warn(
            f"The answers of {concept.name} ({' and '.join(concept.answers)}) begin with the same token; the "
            f"causal check was left out."
        )
        return None
    return words


def _separated(difference: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Of every text [n] what it adds to the separation, whose mean over texts is the separation itself: the mean
    difference of the two answers' logits over texts of class 1 minus that over texts of class 0."""
    # the difference of two means does not see the centring, but what a text adds to it would
    centred = difference - difference.mean()
    return np.where(label == 1, centred / (label == 1).mean(), -centred / (label == 0).mean())


def _effect(difference: np.ndarray, base: np.ndarray, label: np.ndarray, clusters: Clusters) -> dict:
    """Accuracy of the answers, separation of the classes and share of changed answers, from the differences of the two
    answers' logits, edited and unedited [n], and the labels [n]."""
    accuracy = cluster_share((difference > 0) == (label == 1), clusters.index)
    separation = cluster_mean(_separated(difference, label), clusters.index)
    return {
        "answer_accuracy": accuracy.value,
        "ci_low": accuracy.low,
        "ci_high": accuracy.high,
        "separation": separation.value,
        "separation_low": separation.low,
        "separation_high": separation.high,
        "changed": float(((difference > 0) != (base > 0)).mean()),
        "n": clusters.n,
        "rows": clusters.rows,
    }


def _beside_random(lost: np.ndarray, to_random: np.ndarray, clusters: Clusters) -> dict:
    """What of the separation is lost [n] without the probe's direction and without each random one [draws, n]."""
    low, high = crossed_interval(lost - to_random, clusters)
    return {
        "lost": float(lost.mean()),
        "lost_to_random": float(to_random.mean()),
        "excess": float((lost - to_random).mean()),
        "excess_low": low,
        "excess_high": high,
        "p": max(p_of_one_more(lost.mean(), to_random.mean(1)), crossed_p_above(lost - to_random, clusters)),
    }


def p_of_one_more(value: float, others: np.ndarray, *, about: float | None = None) -> float:
    """One-sided p of one more draw like `others` [draws] being as large as `value`: Student's t of a prediction, with
    their own spread, about their mean, or about a mean that is known. NaN for fewer than five."""
    from scipy import stats

    if len(others) < FEWEST_FOR_P:
        return float("nan")
    if about is None:
        spread, freedom = others.std(ddof=1) * np.sqrt(1 + 1 / len(others)), len(others) - 1
        off = value - others.mean()
    else:
        spread, freedom, off = np.sqrt(((others - about) ** 2).mean()), len(others), value - about
    if spread == 0:
        return 0.0 if off > 0 else 1.0
    return float(stats.t.sf(off / spread, freedom))
