"""The causal test: the best heads masked while the model answers, against random heads of the same layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from probes.retrieval_heads.answers import answer_text
from probes.retrieval_heads.config import Config
from probes.retrieval_heads.detection import each_step, guesses
from probes.retrieval_heads.haystack import Haystack, places
from probes.retrieval_heads.needle_grid import NeedleGrid
from probes.retrieval_heads.needles import Trial, recall
from probes.retrieval_heads.speculative_decoding import greedy_steps
from workbench.core.context import Context
from workbench.engine.edits import HeadAblation, apply
from workbench.engine.kv_cache import Cached, merge, prefill
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.models.batching import batches, halving
from workbench.models.model import Model
from workbench.stats.intervals import cluster_bootstrap_mean

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
MASKING = {
    "k": pl.Int64,
    "heads": pl.String,
    "draw": pl.Int64,
    "ablation": pl.String,
    "recall": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
    "masked": pl.String,
}


class Masking(NamedTuple):
    """`kind`: "top" for the `k` best heads, "random" for a draw of others; k = 0 masks none."""

    k: int
    kind: str
    draw: int
    heads: tuple[tuple[int, int], ...]


def choosing_and_testing(
    trials: Sequence[Trial], kept: np.ndarray, answered: np.ndarray, config: Config, context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Which trials choose the heads to mask and which test the masking, both bool [trials]; held out: every second
    answered needle."""
    needles = np.array([t.needle for t in trials])
    met = np.unique(needles[answered])
    if config.mask_on == "same":
        return kept, answered
    if len(met) < 2:
        if len(met) and any(config.mask_k):
            context.warn("Only one needle was answered, so heads were masked on the trials that had chosen them.")
        return kept, answered
    held = np.isin(needles, met[1::2])
    return kept & ~held, answered & held


def spread(rows: np.ndarray, wanted: int) -> list[int]:
    """At most `wanted` of `rows`, evenly over their order (which runs over lengths, depths and needles)."""
    if not len(rows):
        return []
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(wanted, len(rows))).round().astype(int))].tolist()


def mask_plan(model: Model, scores: np.ndarray, config: Config, context: Context) -> list[Masking]:
    """Every masking, by `scores` [layers, H]: none, then the top k and its random controls for every k. Heads without a
    score have no order, so none of them is a top head. Empty where there is nothing to mask."""
    order = [divmod(int(i), model.n_heads) for i in np.argsort(-scores.ravel(), kind="stable")]
    plan, scored = [Masking(0, "top", 0, ())], int((scores > 0).sum())
    wanted_k = {k for k in config.mask_k if 0 < k <= len(order) // 2}
    if scored and wanted_k and max(wanted_k) > scored:
        some = (
            "1 head has a score, so masking ends with it"
            if scored == 1
            else f"{scored} heads have a score, so masking ends with these"
        )
        context.warn(f"{some}; mask_k asks for up to {max(wanted_k)}.")
    for k in sorted({min(k, scored) for k in wanted_k} - {0}):
        top = tuple(order[:k])
        plan.append(Masking(k, "top", 0, top))
        for draw in range(config.random_draws):
            others = _others_of_the_same_layers(model, top, context.rng(f"random-{k}-{draw}"), context)
            plan.append(Masking(k, "random", draw, others))
    return plan if len(plan) > 1 else []


def _others_of_the_same_layers(
    model: Model, top: Sequence[tuple[int, int]], rng: np.random.Generator, context: Context
) -> tuple[tuple[int, int], ...]:
    """As many random heads in every layer as `top` has there, none of them in it."""
    chosen = []
    for layer in sorted({layer for layer, _ in top}):
        wanted = sum(1 for l, _ in top if l == layer)
        free = [h for h in range(model.n_heads) if (layer, h) not in top]
        if len(free) < wanted:
            context.warn(
                f"Layer {layer} has too few other heads for a random control of k={len(top)}; it masks "
                f"{len(free)} instead of {wanted} there."
            )
        chosen += [(layer, int(h)) for h in rng.permutation(free)[:wanted]]
    return tuple(chosen)


def mask(
    model: Model,
    config: Config,
    context: Context,
    grid: NeedleGrid,
    haystack: Haystack,
    chosen: Sequence[int],
    plan: Sequence[Masking],
) -> pl.DataFrame:
    """Answers and recall of the trials `chosen` (their numbers) under every masking: the columns of TRIALS."""
    if not plan or not len(chosen):
        return pl.DataFrame(schema=TRIALS)
    mean = _haystack_mean(model, grid.shared, context) if config.ablation == "mean" else None

    def compute(numbers: list[int]) -> dict[str, pl.DataFrame]:
        masked = halving(numbers, lambda some: _mask_group(model, config, context, grid, haystack, some, plan, mean))
        rows = [row for _, found in masked for row in found]
        return {"trials": pl.DataFrame(rows, schema=TRIALS, orient="row")}

    # prompts of any length and depth go on together once they are read; few enough that a stopped run has parts to go
    # on from
    groups = batches([len(grid.trials[i].ids) for i in chosen], max_tokens=config.max_tokens, max_rows=16)
    tables, done = [], 0
    for number, group in enumerate(groups):
        context.progress(done, len(chosen), "masking")
        part = context.part(f"masking-{number}", lambda group=group: compute([chosen[k] for k in group]))
        tables.append(part["trials"])
        done += len(group)
    context.progress(done, len(chosen), "masking")
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
    for k, kind, draw, heads in plan:
        context.check()
        edits = (*context.edits, HeadAblation(heads, config.ablation, mean)) if heads else context.edits
        with apply(model, edits):
            before = read if config.mask_phase == "decode" else prefill(model, [ids[:-1] for ids in prompts], None)
            answers = greedy_steps(
                model,
                before,
                [ids[-1:] for ids in prompts],
                guesses(model, trials),
                max_new_tokens=config.max_new_tokens,
                stops=grid.stops,
                check=each_step(context),
            )
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


def _prompts_read(model: Model, alike: Sequence[Sequence[Trial]], haystack: Haystack) -> Cached:
    """Keys and values of every prompt but its last token; trials of one place together."""
    return merge(
        [
            prefill(model, [t.ids[t.shared : -1] for t in trials], haystack.upto(trials[0].shared, len(trials)))
            for trials in alike
        ]
    )


def _haystack_mean(model: Model, tokens: list[int], context: Context) -> torch.Tensor:
    context.count(tokens=min(len(tokens), MEAN_OVER), forwards=1)
    return mean_head_outputs(model, [tokens[:MEAN_OVER]], edits=context.edits)


def mask_table(
    masked: pl.DataFrame, plan: Sequence[Masking], clusters: np.ndarray, config: Config, context: Context
) -> pl.DataFrame:
    """Mean recall per masking with its interval: the columns of MASKING; `clusters` belong to the trials in the order
    of their numbers."""
    rows = []
    for k, kind, draw, heads in plan if masked.height else ():
        here = masked.filter((pl.col("k") == k) & (pl.col("heads") == kind) & (pl.col("draw") == draw))
        recalls = here.sort("trial")["recall"].to_numpy()
        low, high = cluster_bootstrap_mean(recalls, clusters, draws=config.draws, rng=context.rng("masking"))
        names = " ".join(f"{l}.{h}" for l, h in heads)
        rows.append((k, kind, draw, config.ablation, float(recalls.mean()), low, high, len(recalls), names))
    return pl.DataFrame(rows, schema=MASKING, orient="row")
