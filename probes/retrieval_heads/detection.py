"""Detection: greedy answers to every trial, with the position that every head attends to most at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.haystack import Haystack, bodies, parts, places, stretches
from probes.retrieval_heads.needle_grid import NeedleGrid
from probes.retrieval_heads.speculative_decoding import Begun, Step, begin, go_on
from workbench.core.context import Context
from workbench.engine.edits import apply
from workbench.models.answer_ends import answer_text
from workbench.models.batching import halving, sent
from workbench.models.model import Model
from workbench.models.needle_prompts import Trial
from workbench.models.thinking import ThinkingSpan


@dataclass
class MeasuredTrials:
    """What is kept of every trial: emitted ids, which of them are thinking, and of the steps of the answer each one's
    most attended position [steps, layers, H] and the mean span mass [layers, H] (NaN without an answer); `ties`: share
    of all attention rows whose maximum is tied (the first position counts)."""

    generated: list[list[int]]
    thinking: list[ThinkingSpan]
    responses: list[str]  # the answers
    steps: list[tuple[np.ndarray, np.ndarray]]  # (emitted ids [steps], attended positions [steps, layers, H])
    mass: np.ndarray  # [trials, layers, H]
    ties: float


def measure(model: Model, config: Config, context: Context, grid: NeedleGrid, haystack: Haystack) -> MeasuredTrials:
    """Answers and attended positions of all trials of the grid, part by part."""
    # counted here, not where it is computed: a resumed run counts it once too
    context.count(tokens=len(haystack.tokens), forwards=1)
    trials = grid.trials
    found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    tied = steps_seen = 0
    for number, rows in enumerate(parts(model, trials, config.max_tokens)):
        context.progress(len(found), len(trials), "prompts")
        part = context.part(
            f"needles-{number}",
            lambda rows=rows: _measure_part(model, config, context, [trials[i] for i in rows], haystack, grid.stops),
        )
        for k, i in enumerate(rows):
            own = part["trial"] == k
            found[i] = part["token"][own], part["position"][own], part["mass"][own]
            tied += int(part["tied"][own].sum())
            steps_seen += int(part["tied"][own].size)
    context.progress(len(trials), len(trials), "prompts")
    generated = [found[i][0].tolist() for i in range(len(trials))]
    thinking = [grid.split(ids) for ids in generated]
    answered = [tuple(values[span.end :] for values in found[i]) for i, span in enumerate(thinking)]
    nothing = np.full(answered[0][2].shape[1:], np.nan, np.float32)
    return MeasuredTrials(
        generated,
        thinking,
        [answer_text(model, ids, grid.split) for ids in generated],
        [(tokens, positions) for tokens, positions, _ in answered],
        np.stack([mass.mean(0) if len(mass) else nothing for *_, mass in answered]),
        tied / max(1, steps_seen),
    )


def _measure_part(
    model: Model, config: Config, context: Context, trials: Sequence[Trial], haystack: Haystack, stops: Callable
) -> dict[str, np.ndarray]:
    """Steps of some trials, flattened: trial [n], token [n], position, mass and tied [n, layers, H]."""
    measured = halving(trials, lambda some: answers(model, config, context, some, haystack, stops))
    flat = [(k, step) for k, steps in enumerate(chain(*(found for _, found in measured))) for step in steps]
    readings = torch.stack([step.reading for _, step in flat]).numpy()
    return {
        "trial": np.array([k for k, _ in flat], np.int32),
        "token": np.array([step.token for _, step in flat], np.int64),
        "position": readings[..., 0].astype(np.int32),
        "mass": readings[..., 1],
        "tied": readings[..., 2].astype(bool),
    }


def answers(
    model: Model,
    config: Config,
    context: Context,
    trials: Sequence[Trial],
    haystack: Haystack,
    stops: Callable,
    *,
    observed: bool = True,
) -> list[list[Step]]:
    """The steps of every trial, with their attention readings where they are `observed`. What prompts share is read
    once, and all that are not answered yet go on together."""
    how = {"max_new_tokens": config.max_new_tokens, "stops": stops}
    steps: dict[int, list[Step]] = {}
    waiting: list[tuple[list[int], Begun]] = []

    def finish() -> None:
        found = go_on(model, [begun for _, begun in waiting], check=each_step(context), **how)
        steps.update(zip(chain(*(rows for rows, _ in waiting)), found))
        waiting.clear()

    with apply(model, context.edits):
        for rows, begun in _begun(model, config, context, trials, haystack, how, observed):
            waiting.append((rows, begun))
            if model.sliding or sum(begun.columns for _, begun in waiting) > config.max_tokens:
                finish()
        if waiting:
            finish()
    context.count(prompts=len(trials), tokens=sum(end - start for start, end in stretches(model, trials)))
    return [steps[i] for i in range(len(trials))]


def _begun(
    model: Model,
    config: Config,
    context: Context,
    trials: Sequence[Trial],
    haystack: Haystack,
    how: dict,
    observed: bool,
) -> Iterator[tuple[list[int], Begun]]:
    """Numbers of trials that begin alike, and what they have begun: every prompt read, and its guess as far as the
    model chooses it."""
    for place in places(model, trials, config.max_tokens):
        for group, past, ends in bodies(haystack, [trials[i] for i in place]):
            context.check()
            context.count(forwards=1)
            rows = [place[k] for k in group]
            same = [trials[i] for i in rows]
            questions = [t.ids[end:] for t, end in zip(same, ends)]
            spans = _span_rows(same, model) if observed else None
            yield (
                rows,
                begin(model, past, questions, guesses(model, same), spans=spans, use_up=not model.sliding, **how),
            )


def guesses(model: Model, trials: Sequence[Trial]) -> list[tuple[int, ...]]:
    """What the answers may be; none where attention slides over a window, as wrong ones would stand inside it."""
    return [() if model.sliding else t.guess for t in trials]


def _span_rows(trials: Sequence[Trial], model: Model) -> torch.Tensor:
    """The positions of every answer in its prompt, [n, longest], filled up with -1."""
    width = max(t.span[1] - t.span[0] for t in trials)
    rows = [[*range(*t.span), *[-1] * (width - t.span[1] + t.span[0])] for t in trials]
    return sent([torch.tensor(rows)], model.device)[0]


def each_step(context: Context) -> Callable[[], None]:
    """What is done at every decoding step: a stop is looked for, a forward pass counted."""

    def step() -> None:
        context.check()
        context.count(forwards=1)

    return step
