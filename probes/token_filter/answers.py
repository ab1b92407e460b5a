"""Answers from the kept tokens alone: the whole model, from scratch, on them as a prompt of its own, greedily, beside
all tokens, the filter without the needle, the most recent tokens and random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.token_filter.choice import FilterChoice
from probes.token_filter.config import Config
from probes.token_filter.selection import Selections
from probes.token_filter.trials import FilterTrials
from workbench.core.context import Context
from workbench.engine.generate import greedy
from workbench.engine.passes import Pass
from workbench.models.answer_ends import answer_text
from workbench.models.model import Model
from workbench.models.needle_prompts import Trial, recall

PART, BATCHES = 256, 2  # answers that are saved together at most, and of how many batches of tokens
GENERATED = 4  # how long a token takes that is generated, in tokens that are read
# what a trial is answered from; "filter" and what stands beside it with as many tokens
ALL, CLOSED, FILTER, WITHOUT = "all", "closed", "filter", "filter_without_needle"
RECENT, RANDOM, ASKED = "recent", "random", "random_with_question"
ANSWERS = {
    "trial": pl.Int64,
    "arm": pl.String,
    "draw": pl.Int64,
    "k": pl.Int64,
    "layer": pl.Int64,
    "needle_kept": pl.Float64,
    "answer_kept": pl.Boolean,
    "question_kept": pl.Float64,
    "recall": pl.Float64,
    "answered": pl.Boolean,
    "response": pl.String,
    "positions": pl.List(pl.Int64),
    "ids": pl.List(pl.Int64),
    "generated_ids": pl.List(pl.Int64),
}


@dataclass(frozen=True)
class Ask:
    """One prompt that is answered. `k` and `layer` are None where no tokens are chosen; `positions`: of its tokens in
    the trial's prompt, None for the prompt without its needle."""

    trial: int
    arm: str
    draw: int
    k: int | None
    layer: int | None
    ids: tuple[int, ...]
    positions: tuple[int, ...] | None


def asks(
    found: FilterTrials,
    selections: Selections,
    choices: Sequence[FilterChoice],
    tested: Sequence[int],
    config: Config,
    context: Context,
) -> list[Ask]:
    """Every prompt that is answered for the tested trials."""
    out = []
    without = {(t.needle, t.length): t.ids for t in found.closed}
    for i in tested:
        trial = found.trials[i]
        out.append(Ask(i, ALL, 0, None, None, trial.ids, tuple(range(len(trial.ids)))))
        out.append(Ask(i, CLOSED, 0, None, None, without[trial.needle, trial.length], None))
    for choice in choices:
        rng, short = context.rng(f"random tokens of {choice.k}"), 0
        for i in tested:
            trial, layer = found.trials[i], int(choice.layer[i])
            start, end = found.needle_span(trial)
            if layer < 0 or choice.k > len(trial.ids) - (end - start):  # no set of k tokens is without the needle
                short += layer >= 0
                continue
            sets = _sets(found, selections, i, choice.k, layer, config.random_draws, rng)
            for arm, draw, positions in sets:
                ids = tuple(trial.ids[p] for p in positions)
                chosen = layer if arm in (FILTER, WITHOUT) else None
                out.append(Ask(i, arm, draw, choice.k, chosen, ids, positions))
        if short:
            context.warn(
                f"{short} of the {len(tested)} trials that are answered have fewer than k={choice.k} tokens beside the "
                f"needle, so a filter keeps nearly all of them; they are left out for this k; give longer lengths or "
                f"fewer tokens."
            )
    return out


def _sets(
    found: FilterTrials, selections: Selections, i: int, k: int, layer: int, draws: int, rng: np.random.Generator
) -> list[tuple[str, int, tuple[int, ...]]]:
    """The positions of a trial that each arm keeps: (arm, draw, positions ascending), all of k tokens."""
    trial = found.trials[i]
    n, forced = len(trial.ids), found.always(trial)
    kept = selections.kept(i, layer, k)
    out = [(FILTER, 0, _numbers(kept))]
    out.append((WITHOUT, 0, _numbers(selections.kept(i, layer, k, without=found.needle_span(trial)))))
    free = np.setdiff1d(np.arange(n), forced)
    recent = free[len(free) - (k - len(forced)) :] if k > len(forced) else free[:0]
    out.append((RECENT, 0, _numbers(np.union1d(forced, recent))))
    asked = np.union1d(forced, np.arange(trial.body, n)).astype(int)
    for draw in range(draws):
        own = rng.choice(free, k - len(forced), replace=False)
        out.append((RANDOM, draw, _numbers(np.union1d(forced, own))))
        if len(asked) <= k and len(asked) > len(forced):
            others = rng.choice(np.setdiff1d(np.arange(n), asked), k - len(asked), replace=False)
            out.append((ASKED, draw, _numbers(np.union1d(asked, others))))
    return out


def _numbers(positions: np.ndarray) -> tuple[int, ...]:
    return tuple(int(p) for p in np.sort(positions))


def answer(model: Model, config: Config, context: Context, found: FilterTrials, wanted: Sequence[Ask]) -> pl.DataFrame:
    """The table `answers`: what was said to every prompt, and how much of the needle's words is in it."""
    said: list[list[int]] = []
    each = config.max_new_tokens * GENERATED
    done, total = 0, sum(len(ask.ids) + each for ask in wanted)
    for number, some in enumerate(answer_parts(wanted, BATCHES * config.max_tokens)):
        context.progress(done, total, "tokens")
        part = context.part(f"answers-{number}", lambda some=some: _said(model, config, context, found, some))
        said += [part["token"][part["prompt"] == k].tolist() for k in range(len(some))]
        done += sum(len(ask.ids) + each for ask in some)
    context.progress(done, total, "tokens")
    rows = [_row(model, found, ask, ids, config) for ask, ids in zip(wanted, said)]
    return pl.DataFrame(rows, schema=ANSWERS, orient="row")


def answer_parts(wanted: Sequence[Ask], tokens: int) -> list[list[Ask]]:
    """Prompts that are answered and saved together, in their order: at most PART, and of at most so many tokens (one
    prompt at least)."""
    out: list[list[Ask]] = []
    size = 0
    for ask in wanted:
        if not out or len(out[-1]) == PART or size + len(ask.ids) > tokens:
            out.append([])
            size = 0
        out[-1].append(ask)
        size += len(ask.ids)
    return out


def _said(
    model: Model, config: Config, context: Context, found: FilterTrials, some: Sequence[Ask]
) -> dict[str, np.ndarray]:
    """The answers to some prompts, flattened: prompt [n], token [n]."""
    prompts = [list(ask.ids) for ask in some]
    run = Pass(edits=context.edits, max_tokens=config.max_tokens, check=context.check)
    words = [word for word in found.words if word.strip()]  # a line break may stand before the answer
    generated = greedy(model, prompts, max_new_tokens=config.max_new_tokens, stop_strings=words, run=run)
    answers = [_ended(ids, found) for ids in generated]
    context.count(prompts=len(prompts), tokens=sum(map(len, prompts)) + sum(map(len, generated)), forwards=1)
    return {
        "prompt": np.array([k for k, ids in enumerate(answers) for _ in ids], np.int32),
        "token": np.array([token for ids in answers for token in ids], np.int64),
    }


def _ended(generated: Sequence[int], found: FilterTrials) -> list[int]:
    """What was generated up to the token that ends the answer."""
    end = next((size for size in range(1, len(generated) + 1) if found.stops(generated[:size])), len(generated))
    return list(generated[:end])


def _row(model: Model, found: FilterTrials, ask: Ask, ids: Sequence[int], config: Config) -> tuple:
    trial = found.trials[ask.trial]
    response = answer_text(model, ids, found.split)
    value = recall(found.needles[trial.needle].answer, response)
    shares = (None, None, None) if ask.positions is None else _shares(found, trial, ask.positions)
    where = None if ask.positions is None else list(ask.positions)
    return (
        *(ask.trial, ask.arm, ask.draw, ask.k, ask.layer, *shares),
        *(value, value > config.recall_threshold, response, where, list(ask.ids), list(ids)),
    )


def _shares(found: FilterTrials, trial: Trial, positions: Sequence[int]) -> tuple[float, bool, float]:
    """Of the needle, of all of the answer and of what follows the context: how much is among these positions."""
    there = set(positions)
    start, end = found.needle_span(trial)
    question = range(trial.body, len(trial.ids))
    return (
        sum(p in there for p in range(start, end)) / (end - start),
        all(p in there for p in range(*trial.span)),
        sum(p in there for p in question) / len(question),
    )
