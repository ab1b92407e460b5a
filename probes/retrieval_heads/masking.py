"""The causal test: the best heads masked while the model answers, against random heads of the same layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.detection import each_step, guesses
from probes.retrieval_heads.haystack import Haystack, places
from probes.retrieval_heads.needle_grid import NeedleGrid
from probes.retrieval_heads.random_heads import random_sets
from probes.retrieval_heads.speculative_decoding import Step, greedy_steps
from workbench.core.context import Context
from workbench.engine.edits import HeadAblation, apply
from workbench.engine.kv_cache import Cached, merge, prefill
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.models.answer_ends import answer_text
from workbench.models.batching import batches, halving
from workbench.models.model import Model
from workbench.models.needle_prompts import Trial, recall

MEAN_OVER = 4096  # tokens of the haystack that mean ablation takes the means over
TRIALS = {
    "k": pl.Int64,
    "heads": pl.String,
    "draw": pl.Int64,
    "trial": pl.Int64,
    "length": pl.Int64,
    "depth": pl.Float64,
    "recall": pl.Float64,
    "response": pl.String,
}


class Masking(NamedTuple):
    """`kind`: "top" for the `k` best heads, "random" for a draw of others; k = 0 masks none."""

    k: int
    kind: str
    draw: int
    heads: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plans:
    """`folds`: of each its maskings, in one order; `top`: k → the heads that all trials choose; `sampled`: the k whose
    random sets are some of many."""

    folds: list[list[Masking]]
    top: dict[int, tuple[tuple[int, int], ...]]
    sampled: frozenset[int]


class Fold(NamedTuple):
    """Which trials choose heads and which test them, both bool [trials]."""

    choosing: np.ndarray
    testing: np.ndarray


def folds(
    trials: Sequence[Trial], kept: np.ndarray, answered: np.ndarray, config: Config, context: Context
) -> list[Fold]:
    """Which trials choose the heads to mask and which test the masking. Held out: every second answered needle is
    tested by heads that the others chose, and the others by heads that it and its like chose."""
    needles = np.array([t.needle for t in trials])
    met = np.unique(needles[answered])
    if config.mask_on == "same":
        return [Fold(kept, answered)]
    if len(met) < 2:
        if len(met) and any(config.mask_k):
            context.warn("Only one needle was answered, so heads were masked on the trials that had chosen them.")
        return [Fold(kept, answered)]
    halves = [np.isin(needles, met[start::2]) for start in (1, 0)]
    return [Fold(kept & ~held, answered & held) for held in halves]


def spread(rows: np.ndarray, needles: np.ndarray, wanted: int) -> list[int]:
    """At most `wanted` of `rows` (numbers of trials, in the order of lengths and depths), as many of each needle as can
    be, each needle's evenly over the grid and not all at the same cells; `needles` [rows]."""
    found: list[int] = []
    names = np.unique(needles)
    for i, needle in enumerate(names):
        own = rows[needles == needle]
        share = min(len(own), wanted // len(names) + (i < wanted % len(names)))
        places = (np.arange(share) + (i + 0.5) / len(names)) * len(own) / max(share, 1)
        found += own[places.astype(int)].tolist()
    return sorted(found)


def mask_plans(
    model: Model, chosen_by: Sequence[np.ndarray], scores: np.ndarray, config: Config, context: Context
) -> Plans:
    """Every masking of every fold: none, then its own top k and random heads for every k, the same random sets in all
    folds. `chosen_by`: the scores [layers, H] that choose in each fold; `scores` [layers, H]: those of all trials that
    count, whose layers the random heads are of. Heads without a score have no order, so none of them is a top head; no
    random head has a score above the threshold, anywhere. Without folds where there is nothing to mask."""
    orders = [[divmod(int(i), model.n_heads) for i in np.argsort(-s.ravel(), kind="stable")] for s in chosen_by]
    whole = [divmod(int(i), model.n_heads) for i in np.argsort(-scores.ravel(), kind="stable")]
    scored = min(int((s > 0).sum()) for s in (*chosen_by, scores))
    retrieve = {
        divmod(int(i), model.n_heads) for s in (*chosen_by, scores) for i in np.flatnonzero(s > config.threshold)
    }
    wanted_k = {k for k in config.mask_k if 0 < k <= len(whole) // 2}
    if scored and wanted_k and max(wanted_k) > scored:
        some = (
            "1 head has a score, so masking ends with it"
            if scored == 1
            else f"{scored} heads have a score, so masking ends with these"
        )
        context.warn(f"{some}; mask_k asks for up to {max(wanted_k)}.")
    ks = sorted({min(k, scored) for k in wanted_k} - {0})
    shape = (model.n_layers, model.n_heads)
    controls = {}
    for k in ks:
        never = retrieve | {head for order in orders for head in order[:k]}
        rng = context.rng(f"random-{k}")
        controls[k] = random_sets(shape, whole[:k], never, draws=config.random_draws, rng=rng, context=context)
    plans = []
    for order in orders if ks else ():
        plan = [Masking(0, "top", 0, ())]
        for k in ks:
            plan.append(Masking(k, "top", 0, tuple(order[:k])))
            plan += [Masking(k, "random", d, heads) for d, heads in enumerate(controls[k].sets)]
        plans.append(plan)
    sampled = frozenset(k for k, control in controls.items() if not control.all_of_them)
    return Plans(plans, {k: tuple(whole[:k]) for k in ks}, sampled)


def mask(
    model: Model,
    config: Config,
    context: Context,
    grid: NeedleGrid,
    haystack: Haystack,
    chosen: Sequence[int],
    plan: Sequence[Masking],
    *,
    part: str = "masking",
) -> pl.DataFrame:
    """Answers and recall of the trials `chosen` (their numbers) under every masking: the columns of TRIALS. `part`:
    what the pieces of work are called."""
    if not plan or not len(chosen):
        return pl.DataFrame(schema=TRIALS)
    mean = haystack_mean(model, grid.shared, context) if config.ablation == "mean" else None

    def compute(numbers: list[int]) -> dict[str, pl.DataFrame]:
        masked = halving(numbers, lambda some: _mask_group(model, config, context, grid, haystack, some, plan, mean))
        rows = [row for _, found in masked for row in found]
        return {"trials": pl.DataFrame(rows, schema=TRIALS, orient="row")}

    # prompts of any length and depth go on together once they are read; few enough that a stopped run has parts to go
    # on from
    groups = batches([len(grid.trials[i].ids) for i in chosen], max_tokens=config.max_tokens, max_rows=16)
    tables, done = [], 0
    for number, group in enumerate(groups):
        context.progress(done, len(chosen), "prompts")
        made = context.part(f"{part}-{number}", lambda group=group: compute([chosen[k] for k in group]))
        tables.append(made["trials"])
        done += len(group)
    context.progress(done, len(chosen), "prompts")
    return pl.concat(tables).sort("k", "heads", "draw", "trial", descending=[False, True, False, False])


def _mask_group(
    model: Model,
    config: Config,
    context: Context,
    grid: NeedleGrid,
    haystack: Haystack,
    numbers: Sequence[int],
    plan: Sequence[Masking],
    mean: torch.Tensor | None,
) -> list[tuple]:
    """The rows of one batch of trials. The prompts are read once, every masking continues from there (unless it masks
    the prompts too)."""
    alike = [[numbers[k] for k in rows] for rows in places(model, [grid.trials[i] for i in numbers], config.max_tokens)]
    numbers = [i for some in alike for i in some]
    trials = [grid.trials[i] for i in numbers]
    prompts, rows = [t.ids for t in trials], []
    with apply(model, context.edits):
        read = _prompts_read(model, [[grid.trials[i] for i in some] for some in alike], haystack)
    how = {"max_new_tokens": config.max_new_tokens, "stops": grid.stops}
    answered = each_masking(model, config, context, prompts, guesses(model, trials), plan, mean, read, **how)
    for (k, kind, draw, _), answers in answered:
        for i, t, steps in zip(numbers, trials, answers):
            text = answer_text(model, [step.token for step in steps], grid.split)
            found = recall(grid.needles[t.needle].answer, text)
            rows.append((k, kind, draw, i, t.length, float(t.depth), found, text))
    again = config.mask_phase == "all"
    context.count(
        tokens=sum(len(t.ids) - t.shared for t in trials) + again * len(plan) * sum(map(len, prompts)),
        forwards=len(alike) + len(plan) * (1 + again),
    )
    return rows


def each_masking(
    model: Model,
    config: Config,
    context: Context,
    prompts: Sequence[Sequence[int]],
    guessed: Sequence[Sequence[int]],
    plan: Sequence[Masking],
    mean: torch.Tensor | None,
    read: Cached,
    *,
    max_new_tokens: int,
    stops: Callable[[Sequence[int]], bool],
) -> Iterator[tuple[Masking, list[list[Step]]]]:
    """Every masking with the greedy steps of all prompts under it, from the last prompt token on. `read`: all prompts
    but their last tokens, in one batch and unmasked; not changed, and not used where the prompts are masked, too."""
    for item in plan:
        context.check()
        edits = (*context.edits, HeadAblation(item.heads, config.ablation, mean)) if item.heads else context.edits
        with apply(model, edits):
            before = read if config.mask_phase == "decode" else prefill(model, [ids[:-1] for ids in prompts], None)
            answers = greedy_steps(
                model,
                before,
                [ids[-1:] for ids in prompts],
                guessed,
                max_new_tokens=max_new_tokens,
                stops=stops,
                check=each_step(context),
            )
        yield item, answers


def _prompts_read(model: Model, alike: Sequence[Sequence[Trial]], haystack: Haystack) -> Cached:
    """Keys and values of every prompt but its last token; trials of one place together."""
    return merge(
        [
            prefill(model, [t.ids[t.shared : -1] for t in trials], haystack.upto(trials[0].shared, len(trials)))
            for trials in alike
        ]
    )


def haystack_mean(model: Model, tokens: list[int], context: Context) -> torch.Tensor:
    context.count(tokens=min(len(tokens), MEAN_OVER), forwards=1)
    return mean_head_outputs(model, [tokens[:MEAN_OVER]], edits=context.edits)
