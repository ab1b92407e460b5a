"""Retrieval heads: which attention heads copy from a long context, and does the model still answer without them?

Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality (arXiv 2404.15574). A needle is put into a
haystack, the model answers greedily. A head copies at a step if the token it attends to most lies in the answer's span
in the context and is the token being emitted (Eq. 1). Its score in a trial is the share of the answer's tokens that it
copied; its score is the mean over trials.

Where paper and code differ, both are offered. `score=set` counts every token of the answer once (Eq. 1), `score=count`
every step, as the official code does, and can exceed 1. `keep=recalled` drops trials that the model fails (the code),
`keep=all` scores them too (Eq. 1); by default trials whose question is answered without the needle are dropped as well.
Masking acts on decoding only, from the last prompt token on, as in the code (`mask_phase=all` masks the prompt as
well); `ablation=uniform` is the code's masking, zero and mean are offered beside it. `mask_on=held_out` chooses the
heads to mask on half of the answered needles and masks them on the other half, both ways (the paper masks on a needle
of its own); `same` masks where it has chosen.

`score=attention` is that of Zhang et al., Query-Focused Retrieval Heads (arXiv 2506.09944): attention from the question
to the passage that answers it, minus that of a null question, with nothing generated (see `attention_scores`).

Deviations: the answer's span is found by character offsets, not by token-set overlap; random heads never have a score
above the threshold, are drawn from the same layers and stay the same over the grid (the code draws them anew for every
cell); BOS stands only at the start; a needle is put after a full stop, as in the code, but also after ! or ? and their
closing quotes; ROUGE-1 counts the words of every script, not of a-z only (the same on English); a prompt of length n
has at most n tokens, needle and question included, instead of n minus 200 plus these; of the needles that ship the
first 12 are used (the paper has 3), of a file of yours all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from probes.retrieval_heads.answers import Judged, judge, warn_of_answers
from probes.retrieval_heads.config import BIBTEX, COLUMNS, Config
from probes.retrieval_heads.estimate import estimate
from probes.retrieval_heads.head_scores import (
    cluster_names,
    head_table,
    how_many_are_enough,
    score,
    score_by_chance,
    warn_of_few,
)
from probes.retrieval_heads.needle_grid import NeedleGrid, read_grid, validate
from probes.retrieval_heads.shipped import material
from probes.retrieval_heads.short_run import example
from probes.retrieval_heads.summary import summary_of_heads, summary_of_masking
from workbench.core.context import Context, Result
from workbench.core.errors import InputError
from workbench.core.registry import HEAD_MASK, DataSpec, probe
from workbench.models.needle_prompts import recall
from workbench.organisms.needles import own_needles

if TYPE_CHECKING:
    from probes.retrieval_heads.detection import MeasuredTrials

TASKS = 50  # questions that a file of tasks is taken to hold, for how long they take beside the needles


@probe(
    "retrieval-heads",
    title="Retrieval heads",
    summary="Which attention heads copy from a long context, and what happens to the answers when they are masked.",
    tables={
        "heads": ("layer", "head", "score", "ci_low", "ci_high", "activation_frequency", "n_trials", "is_retrieval"),
        "trials": ("trial", "needle", "length", "depth", "recall", "recall_closed", "kept", "response"),
        "masking": ("k", "heads", "draw", "ablation", "recall"),
        "masked_recall": ("k", "heads", "recall", "ci_low", "ci_high", "n", "rows"),
        "closed_book": ("needle", "length", "recall_closed", "response", "ids", "generated_ids"),
        "inputs": ("row", "ids", "span_start", "span_end", "generated_ids"),
    },
    bibtex=BIBTEX,
    data=DataSpec(
        required=COLUMNS,
        what="needles",
        default="probes.retrieval_heads:material/needles.jsonl",
        for_model=own_needles,
        option="needles",
    ),
    material=material,
    validate=validate,
    before_loading="probes.retrieval_heads.before_loading:check",
    figures="probes.retrieval_heads.figures:figures",
    figures_of_several="probes.retrieval_heads.figures:of_several",
    estimate=estimate,
    example=example,
    example_models=("organism", "organism-chat"),
    leaves={"heads_top*.json": HEAD_MASK},
    needs=("tokenizer", "attention_rows"),
    head_scores={"heads": ("score", "activation_frequency", "span_mass", "is_retrieval")},
    shares=("score", "activation_frequency", "span_mass"),
    keys={
        "heads": ("layer", "head"),
        "trials": ("trial",),
        "masking": ("k", "heads", "draw"),
        "masked_recall": ("k", "heads"),
        "closed_book": ("needle", "length"),
        "masked_trials": ("k", "heads", "draw", "trial", "length", "depth"),
        "attention_inputs": ("row", "asked"),
        "overlap": ("k",),
        "task_masking": ("question", "k", "heads", "draw"),
        "task_scores": ("k", "heads"),
        "task_inputs": ("question",),
        "inputs": ("row",),
    },
    fed={"trials": {"row": "trial"}, "masked_trials": {"row": "trial"}},
    version=6,
    imports={'retrieval scores, JSON {"layer-head": [trial scores]}': "probes.retrieval_heads.published:read"},
)
def run(model, config: Config, context: Context) -> Result:
    """Score every head on the needle grid, then mask the best heads against random ones of the same layers.

    Scores are per query head. Raises InputError for needles without their answer and for lengths that do not fit the
    model."""
    from probes.retrieval_heads.attention_run import attention_beside
    from probes.retrieval_heads.closed_book import ask_without_needles, closed_table, recalled
    from probes.retrieval_heads.detection import measure
    from probes.retrieval_heads.haystack import Haystack

    _check_possible(model, config, context)
    if not config.generates:
        from probes.retrieval_heads.attention_run import attention_alone

        return attention_alone(model, config, context)
    grid = read_grid(model, config, context)
    trials = grid.trials
    stage = context.stages(_weights(config, grid))
    with stage("needles"):
        size = f"{len(trials):,} trials, {sum(len(t.ids) for t in trials):,} prompt tokens"
        context.progress(0, len(trials), size)
        haystack = Haystack(model, grid.haystack)
        measured = measure(model, config, context, grid, haystack)
    with stage("questions without their needle"):
        closed = ask_without_needles(model, config, context, grid, haystack)
    warn_of_answers(measured.responses, measured.thinking, config, context)
    recalls = np.array([recall(grid.needles[t.needle].answer, text) for t, text in zip(trials, measured.responses)])
    judged = judge(recalls, closed.of(trials, grid.closed), config)

    scored = zip(trials, measured.steps)
    pairs = [(score(t, steps, config.copied), score_by_chance(t, steps, config.copied)) for t, steps in scored]
    scores, chance = (np.stack(each) for each in zip(*pairs))  # [trials, layers, H]
    beside = None
    if config.score == "attention":
        with stage("attention to the passages"):
            beside = attention_beside(model, config, context, grid, haystack, scores, judged)
        scores, judged = beside.scores, replace(judged, kept=np.ones(len(trials), bool))
    names = cluster_names(trials, judged.kept, config)
    kept = judged.kept
    if beside is None:
        heads = head_table(model, scores[kept], chance[kept], measured.mass[kept], names, config)
    else:
        heads = beside.heads
    warn_of_few(names, config, context)
    _warn_of_unanswered(judged, context)
    tables = {
        "heads": heads,
        "trials": _trial_table(grid, measured, judged),
        "inputs": _input_table(trials, measured.generated),
        "closed_book": closed_table(grid, closed, config),
        "enough": how_many_are_enough(scores[kept], names, context),
    }
    with stage("masking"):
        masking, summary = _masking_test(model, config, context, grid, haystack, scores, judged)

    whole = cluster_names(trials, np.ones(len(trials), bool), config)
    without = (
        closed.recalls > config.recall_threshold,
        cluster_names(grid.closed, np.ones(len(grid.closed), bool), config),
    )
    found = recalled(judged.answered, judged.known, kept, whole, without, context) | {"trials_scored": int(kept.sum())}
    if kept.any():
        found |= summary_of_heads(heads, scores[kept], names, config, context)
    else:
        found |= {"note": "No trial counts, so heads have no score."}
    if beside is not None:
        tables, found = tables | beside.tables, found | beside.summary
    found |= summary | {"tied_maxima": measured.ties}
    return Result(tables | masking, {"trial_scores": scores.astype(np.float32)}, found)


def _weights(config: Config, grid: NeedleGrid) -> dict[str, float]:
    """What the stages take beside each other, in answers that are written under one of the maskings of a prompt that is
    read once: prompts of the grid are read anew with all of their attention rows, and without its needle a question is
    answered at length."""
    maskings = sum(1 for k in config.mask_k if k) * (1 + config.random_draws) if config.masks else 0
    masked = min(len(grid.trials), config.mask_trials or len(grid.trials))
    tasks = TASKS * maskings if config.tasks else 0
    return {
        "needles": 6 * len(grid.trials),
        "questions without their needle": 16 * len(grid.closed),
        "attention to the passages": 6 * len(grid.trials) if config.score == "attention" else 0,
        "masking": maskings * masked + tasks,
    }


def _check_possible(model, config: Config, context: Context) -> None:
    """Raise InputError for an engine without attention rows and a masking that the model cannot do."""
    from probes.retrieval_heads.before_loading import check_engine

    check_engine(context)
    model.require("attention_rows", for_what="retrieval-heads")
    if config.masks and config.ablation != "uniform":
        model.require("heads_apart", for_what=f"a masking test with ablation={config.ablation}")
    if config.ablation == "uniform" and config.masks and not model.attention_interface:
        raise InputError(
            f"Uniform attention cannot be put into {model.architecture}; use --set ablation=zero, or mask_k=0 "
            f"for no masking test."
        )


def _warn_of_unanswered(judged: Judged, context: Context) -> None:
    n = len(judged.recalls)
    if not judged.answered.any() and judged.kept.any():
        context.warn(
            f"The model answered none of the {n} trials: the scores are those of trials that it fails, and "
            f"say little of retrieval; there is nothing to mask. Try shorter lengths or another template."
        )
    elif not judged.answered.any():
        context.warn(
            f"The model answered none of the {n} trials, so no head has a score; try shorter "
            f"lengths, another template or keep=all."
        )
    elif not judged.kept.any():
        context.warn(
            f"The model answered {int(judged.answered.sum())} of the {n} trials, and each of them also without its "
            f"needle, so no head has a score; use needles that it cannot guess, or keep=recalled."
        )


def _masking_test(
    model, config: Config, context: Context, grid: NeedleGrid, haystack, scores: np.ndarray, judged: Judged
) -> tuple[dict[str, pl.DataFrame], dict]:
    """Mask the heads that some of the trials choose, by `scores` [trials, layers, H], on others: the tables `masking`,
    `masked_recall` and `masked_trials`, and the summary. The heads are left as files."""
    from probes.retrieval_heads.head_masks import save_masks
    from probes.retrieval_heads.masked_recall import mask_table, recall_table
    from probes.retrieval_heads.masking import TRIALS, Plans, folds, mask, mask_plans, spread
    from probes.retrieval_heads.task_masking import task_tables

    parts = folds(grid.trials, judged.kept, judged.tested, config, context)
    plans, masked, chosen = Plans([], {}, frozenset()), [pl.DataFrame(schema=TRIALS)], []
    if judged.tested.any() and all(fold.choosing.any() for fold in parts):
        each = [scores[fold.choosing].mean(0) for fold in parts]
        plans = mask_plans(model, each, scores[judged.kept].mean(0), config, context)
        rows = np.flatnonzero(judged.tested)
        chosen = spread(rows, np.array([grid.trials[i].needle for i in rows]), config.mask_trials)
    stage = context.stages({"needles without heads": len(chosen), "tasks": TASKS if config.tasks else 0})
    with stage("needles without heads"):
        for number, (fold, plan) in context.each(list(enumerate(zip(parts, plans.folds)))):
            own = [i for i in chosen if fold.testing[i]]
            masked.append(mask(model, config, context, grid, haystack, own, plan, part=f"masking-{number}"))
    masked = pl.concat(masked).sort("k", "heads", "draw", "trial", descending=[False, True, False, False])
    names = cluster_names(grid.trials, np.isin(np.arange(len(grid.trials)), chosen), config)
    recalls = recall_table(masked, names, plans.sampled)
    tables = {
        "masking": mask_table(masked, plans.folds, names, config),
        "masked_recall": recalls,
        "masked_trials": masked,
    }
    save_masks(model, config, context, plans, recalls, crossed=len(parts) > 1)
    summary = summary_of_masking(recalls)
    if config.tasks:
        with stage("tasks"):
            asked, said = task_tables(model, config, context, grid, plans)
        tables, summary = tables | asked, summary | said
    return tables, summary


def _trial_table(grid: NeedleGrid, measured: MeasuredTrials, judged: Judged) -> pl.DataFrame:
    trials = grid.trials
    return pl.DataFrame(
        {
            "trial": range(len(trials)),
            "needle": [t.needle for t in trials],
            "length": [t.length for t in trials],
            "depth": [float(t.depth) for t in trials],
            "recall": judged.recalls.tolist(),
            "recall_closed": judged.closed.tolist(),
            "known": judged.known.tolist(),
            "kept": judged.kept.tolist(),
            "response": measured.responses,
            "answer": [grid.needles[t.needle].answer for t in trials],
            "prompt_tokens": [len(t.ids) for t in trials],
            "needle_position": [t.shared for t in trials],
            "thinking": [span.state for span in measured.thinking],
            "thinking_tokens": [span.end for span in measured.thinking],
        }
    )


def _input_table(trials: Sequence, generated: Sequence[Sequence[int]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row": range(len(trials)),
            "ids": [list(t.ids) for t in trials],
            "span_start": [t.span[0] for t in trials],
            "span_end": [t.span[1] for t in trials],
            "generated_ids": generated,
        }
    )
