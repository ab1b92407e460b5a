"""What a model learns from a selection: a copy is fine-tuned on the selected rows, on as many random ones, and on the
whole pool, for the same number of tokens each, and asked for the loss of examples that built no prototype.

Selected is one set, trained on in several orders; random is another set for every seed; the whole pool is read in
another order for every seed, as far as the budget goes. Random and whole are the same for all targets. The seeds are a
sample, and so are the held-out texts: both are in the intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from probes.data_selection.config import Config
from probes.data_selection.held_out import HeldExamples, leaks
from probes.data_selection.precisions import BETTER, NOT_TOLD, WORSE, word
from probes.data_selection.samples import TokenizedSamples, tokenize
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.sample_tables import texts
from workbench.engine import finetuning as training
from workbench.models.model import Model
from workbench.models.prompt_style import style_of
from workbench.stats.clusters import FEWEST, clusters_of, crossed_interval
from workbench.stats.intervals import Estimate

SELECTED, RANDOM, FULL = CONDITIONS = ("selected", "random", "full")
FINETUNING = {
    "target": pl.String,
    "condition": pl.String,
    "seed": pl.Int64,
    "loss_before": pl.Float64,
    "loss_after": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
    "trained_rows": pl.Int64,
    "tokens": pl.Int64,
    "steps": pl.Int64,
}
FINETUNING_GAIN = {
    "target": pl.String,
    "against": pl.String,
    "loss_selected": pl.Float64,
    "loss_against": pl.Float64,
    "difference": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
    "seeds": pl.Int64,
}
EMPTY = {"finetuning": pl.DataFrame(schema=FINETUNING), "finetuning_gain": pl.DataFrame(schema=FINETUNING_GAIN)}
Losses = dict[str, np.ndarray]  # by condition [seeds, texts] of the held-out texts of all targets


@dataclass(frozen=True, eq=False)
class TuningMaterial:
    """What is trained on and measured: the pool's rows and, behind them, the held-out texts."""

    samples: TokenizedSamples  # of the pool, whose rows keep their numbers, then of the held-out texts
    usable: np.ndarray  # rows of the pool that may be trained on
    held: dict[str, np.ndarray]  # of each target its held-out texts, as rows of `samples`
    clusters: dict[str, np.ndarray]  # of these, which say almost the same

    def held_samples(self) -> dict[str, TokenizedSamples]:
        """The held-out texts of each target, with the tokens that their loss is of."""
        return {name: self.samples.take(rows.tolist()) for name, rows in self.held.items()}


@dataclass(frozen=True)
class TuningBudget:
    """`steps` of about `tokens` tokens each, the same for every condition."""

    steps: int
    tokens: float


def material_of(
    model: Model, config: Config, pool: pl.DataFrame, held: HeldExamples, context: Context
) -> TuningMaterial:
    """The rows as they are trained on: the loss is of the response where a row has one, else of the whole text. Rows of
    the pool that say almost what a held-out text says are left out. Raises InputError where no held-out text of a
    target fits into the context."""
    found = [_tokenized(model, config, table, what, context) for what, table in {"pool": pool, **held.tables}.items()]
    samples = TokenizedSamples([x for s in found for x in s.ids], [x for s in found for x in s.masks])
    start, places, clusters = len(found[0]), {}, {}
    for name, own in zip(held.tables, found[1:]):
        kept = np.flatnonzero(_scored(own))
        if not len(kept):
            raise InputError(f"No held-out example of the target '{name}' has a response within the model's context.")
        places[name], clusters[name] = start + kept, held.groups[name][kept]
        start += len(own)
    leaked = leaks(texts(pool), [text for table in held.tables.values() for text in texts(table)], context)
    if leaked.any():
        context.warn(
            f"{int(leaked.sum())} pool rows say almost the same as a held-out example; no model is fine-tuned on them."
        )
    usable = np.flatnonzero(_scored(found[0]) & ~leaked)
    if not len(usable):
        raise InputError(
            "Every row of the pool says almost the same as a held-out example or has no response within the context: "
            "there is nothing to fine-tune on."
        )
    return TuningMaterial(samples, usable, places, clusters)


def _tokenized(model: Model, config: Config, table: pl.DataFrame, what: str, context: Context) -> TokenizedSamples:
    part = "response" if {"prompt", "response"} <= set(table.columns) else "all"
    return tokenize(
        model,
        table,
        what=what,
        tokens=part,
        specials=True,
        style=style_of(config),
        long=config.long,
        check=context.check,
    )


def _scored(samples: TokenizedSamples) -> np.ndarray:
    """Which rows have a token that counts and another before it, bool [n]."""
    return np.array([bool(mask[1:].any()) for mask in samples.masks])


def budget_of(config: Config, size: int, mean_length: float) -> TuningBudget:
    """As many tokens as `finetune_epochs` passes over `size` rows of the pool's mean length, in steps of about
    `finetune_batch` such rows."""
    steps = max(1, math.ceil(config.finetune_epochs * size / config.finetune_batch))
    return TuningBudget(steps, config.finetune_epochs * size * mean_length / steps)


def finetune(
    model: Model,
    config: Config,
    material: TuningMaterial,
    selected: Mapping[str, np.ndarray],
    size: int,
    context: Context,
) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Tables `finetuning` and `finetuning_gain`, and what the summary says. `selected`: of each target the rows of the
    pool, best first, of which the first `size` that may be trained on are."""
    lengths = np.array([len(ids) for ids in material.samples.ids])
    budget = budget_of(config, size, float(lengths[material.usable].mean()))
    targets, every = list(material.held), np.concatenate(list(material.held.values()))
    seeds = range(config.finetune_seeds)
    runs = [(SELECTED, name, seed) for name in targets for seed in seeds]
    runs += [(condition, "", seed) for condition in (RANDOM, FULL) for seed in seeds]
    before = context.part("finetune before", lambda: _measured(model, config, material, every, context))["losses"]
    after: Losses = {condition: np.full((config.finetune_seeds, len(every)), np.nan) for condition in CONDITIONS}
    about: dict[tuple, np.ndarray] = {}
    done = [0]

    def told() -> None:
        done[0] += 1
        context.progress(done[0], len(runs) * budget.steps, "fine-tuning steps")

    for number, (condition, name, seed) in enumerate(runs):
        done[0] = number * budget.steps
        here = np.isin(every, material.held[name]) if name else np.ones(len(every), bool)
        rows = _rows(
            condition, selected.get(name), size, material.usable, context.rng(f"finetune rows {condition} {seed}")
        )
        order = context.rng(f"finetune order {condition} {name} {seed}")
        steps = training.steps_of(rows, lengths, steps=budget.steps, tokens=budget.tokens, rng=order)
        begun = context.torch_seed(f"finetune {condition} {name} {seed}")
        found = context.part(
            f"finetune {condition} {name} {seed}",
            lambda: _trained(model, config, material, steps, begun, every[here], context, told),  # noqa: B023
        )
        after[condition][seed, here], about[condition, name, seed] = found["losses"], found["about"]
    return tables_of(material, before, after, about, budget), verdict_of(material, before, after)


def _rows(condition: str, best: Any, size: int, usable: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rows of the pool that a condition is trained on."""
    if condition == SELECTED:
        return best[np.isin(best, usable)][:size]
    return usable if condition == FULL else rng.choice(usable, min(size, len(usable)), replace=False)


def _measured(model: Model, config: Config, material: TuningMaterial, rows: np.ndarray, context: Context) -> dict:
    """The losses before any step, of a copy: in the precision in which the others are measured."""
    hf = training.trainable_copy(model, config.finetune_weights, 0)
    context.count(tokens=sum(len(material.samples.ids[row]) for row in rows), forwards=1)
    return {"losses": training.text_losses(hf, model, material.samples, rows.tolist(), check=context.check)}


def _trained(
    model: Model,
    config: Config,
    material: TuningMaterial,
    steps: Sequence[Sequence[int]],
    seed: int,
    measured: np.ndarray,
    context: Context,
    told: Any,
) -> dict[str, np.ndarray]:
    """The losses [measured] of a copy that was trained, and [different rows, tokens] that it was fed. A token that is
    trained on counts three times: there, and twice back."""
    hf = training.trainable_copy(model, config.finetune_weights, seed)
    fed = training.train(hf, model, material.samples, steps, rate=config.finetune_rate, told=told)
    losses = training.text_losses(hf, model, material.samples, measured.tolist(), check=context.check)
    context.count(tokens=3 * fed + sum(len(material.samples.ids[row]) for row in measured), forwards=len(steps) + 1)
    return {"losses": losses, "about": np.array([len({row for step in steps for row in step}), fed])}


def tables_of(
    material: TuningMaterial, before: np.ndarray, after: Losses, about: Mapping, budget: TuningBudget
) -> dict:
    """The tables, from the losses [texts] before, and [seeds, texts] after training, of the texts of all targets."""
    runs, gains, start = [], [], 0
    for name, own in material.held.items():
        here, groups = slice(start, start + len(own)), material.clusters[name]
        start += len(own)
        counts = {"n": len(np.unique(groups)), "rows": len(own)}
        for condition, losses in after.items():
            for seed, loss in enumerate(losses[:, here].mean(1)):
                rows, fed = about[condition, name if condition == SELECTED else "", seed]
                runs.append(
                    {"target": name, "condition": condition, "seed": seed, "loss_before": before[here].mean()}
                    | {"loss_after": loss, **counts, "trained_rows": rows, "tokens": fed, "steps": budget.steps}
                )
        for other in (RANDOM, FULL):
            mine, theirs = after[SELECTED][:, here], after[other][:, here]
            found = estimated(mine - theirs, groups)
            gains.append(
                {"target": name, "against": other, "loss_selected": mine.mean(), "loss_against": theirs.mean()}
                | {"difference": found.value, "ci_low": found.low, "ci_high": found.high, **counts, "seeds": len(mine)}
            )
    ends = pl.col("ci_low", "ci_high").fill_nan(None)
    return {
        "finetuning": pl.DataFrame(runs, schema=FINETUNING),
        "finetuning_gain": pl.DataFrame(gains, schema=FINETUNING_GAIN).with_columns(ends),
    }


def estimated(values: np.ndarray, names: np.ndarray) -> Estimate:
    """The mean of values [seeds, texts] with its interval: seeds and clusters of texts both vary."""
    clusters = clusters_of(names)
    low, high = crossed_interval(values, clusters)
    return Estimate(float(values.mean()), float(low), float(high), clusters.n, values.shape[1])


def verdict_of(material: TuningMaterial, before: np.ndarray, after: Losses) -> dict[str, Any]:
    """What the summary says: losses on average over the held-out texts of all targets, and what selected has less than
    the others. From five targets on the targets are the clusters; below, texts within them."""
    targets = np.repeat(np.arange(len(material.held)), [len(own) for own in material.held.values()])
    names = targets
    if len(material.held) < FEWEST:
        groups = np.concatenate(list(material.clusters.values()))
        names = targets * (groups.max() + 1) + groups
    out: dict[str, Any] = {"finetuned_loss_before": float(before.mean())}
    out |= {f"finetuned_loss_{condition}": estimated(losses, names).as_dict() for condition, losses in after.items()}
    said: dict[str, list[str]] = {BETTER: [], WORSE: [], NOT_TOLD: []}
    for other in (RANDOM, FULL):
        found = estimated(after[SELECTED] - after[other], names)
        out[f"finetuned_selected_minus_{other}"] = found.as_dict()
        if (told := word(-found.high, -found.low)) is not None:  # a lower loss is better
            said[told].append(other)
    keys = {BETTER: "finetuned_better_than", WORSE: "finetuned_worse_than", NOT_TOLD: "finetuned_not_better_than"}
    return out | {keys[told]: ", ".join(others) for told, others in said.items() if others}
