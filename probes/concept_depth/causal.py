"""The causal check: does the model use what the probe reads? The probe's direction projected out of the site that it
reads, against random directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import torch

from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import Config
from probes.concept_depth.linear_probe import LinearProbes
from probes.concept_depth.written_texts import WrittenTexts, answer_ids, read_positions
from workbench.core.context import Context
from workbench.engine.capture import logits
from workbench.engine.edits import ProjectOut
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.stats.intervals import bootstrap_mean

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
    "n": pl.Int64,
}


def causal_check(
    model: Model,
    concept: ConceptSet,
    written: WrittenTexts,
    test: np.ndarray,
    features: Sequence[torch.Tensor],
    probes: LinearProbes,
    layers: Sequence[int],
    config: Config,
    context: Context,
) -> list[dict]:
    """What projecting a direction out of the probed site of each of `layers` does to the model's own answer on the
    held-out rows `test`: rows with the columns of CAUSAL but the first two, the unedited model's first.

    The answer is the likelier of the two answer words' first tokens; `separation` is how much further the logit
    difference lies towards class 1 for texts of class 1 than for texts of class 0; `changed` is the share of answers
    that differ from the unedited model's; `removed_variance` is the share of the held-out features' variance that lies
    along the direction: how much an edit takes out at all."""
    words = _answer_tokens(model, concept, written, context) if layers else None
    if words is None:
        return []
    test = np.sort(test)
    label, own = concept.labels[test], written.take(test.tolist())
    prompts = own.ids
    run = Pass(context.edits, max_tokens=model.tokens_at_once(config.max_tokens), check=context.check)

    def answers(*edits: ProjectOut) -> np.ndarray:
        scores = logits(model, prompts, run=replace(run, edits=(*run.edits, *edits)))
        return (scores[:, words[1]] - scores[:, words[0]]).double().numpy()

    def measured(difference: np.ndarray) -> dict:
        rng = context.rng("causal")
        return _effect(difference, base, label, draws=config.draws, rng=rng)

    base = answers()
    rows = [{"layer": -1, "direction": "none", "draw": 0, "removed_variance": 0.0} | measured(base)]
    positions = read_positions(model, own, config.token)
    generator = context.rng(f"directions {concept.name}")
    for layer in layers:
        x = features[layer][test].double().cpu()
        x = x - x.mean(0)
        directions = [("probe", 0, probes.coef[layer])]
        directions += [
            ("random", draw, torch.from_numpy(generator.standard_normal(model.width)))
            for draw in range(config.random_draws)
        ]
        for direction, draw, vector in directions:
            if float(vector.norm()) > 0:
                removed = float((x @ (vector / vector.norm())).square().sum() / x.square().sum().clamp(min=1e-300))
                place = {"layer": layer, "direction": direction, "draw": draw, "removed_variance": removed}
                edit = ProjectOut(Site(config.site, layer), vector, positions=positions)
                rows.append(place | measured(answers(edit)))
    return rows


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


def _effect(
    difference: np.ndarray, base: np.ndarray, label: np.ndarray, *, draws: int, rng: np.random.Generator
) -> dict:
    """Accuracy of the answers, separation of the classes and share of changed answers, from the differences of the two
    answers' logits, edited and unedited [n], and the labels [n]."""
    right = (difference > 0) == (label == 1)
    # the difference of two means does not see the centring, but their bootstrap would
    centred = difference - difference.mean()
    signed = np.where(label == 1, centred / (label == 1).mean(), -centred / (label == 0).mean())
    low, high = bootstrap_mean(np.stack([right, signed], 1), draws=draws, rng=rng)
    return {
        "answer_accuracy": float(right.mean()),
        "ci_low": low[0],
        "ci_high": high[0],
        "separation": float(signed.mean()),
        "separation_low": low[1],
        "separation_high": high[1],
        "changed": float(((difference > 0) != (base > 0)).mean()),
        "n": len(label),
    }
