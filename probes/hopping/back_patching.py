"""Would the model answer if an earlier layer already had what a later one finds? The state after a later block takes
the place of that after an earlier one, at the same position of the same prompt; beside it states of other questions
do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from probes.hopping.answers import as_text, says
from probes.hopping.asking import FedQuestion
from probes.hopping.config import POSITIONS, Config
from probes.hopping.labels import others, run_of
from probes.hopping.streams import positions_of, streams
from workbench.core.context import Context
from workbench.engine.patched_streams import StreamPatches, patched_texts
from workbench.models.model import Model

AT_ONCE = 8  # questions of one resumable part


def pairs(layers: int) -> list[tuple[int, int]]:
    """Every (source, target) that goes back, by target."""
    return [(s, t) for t in range(layers) for s in range(t + 1, layers)]


def back_patch(
    model: Model, config: Config, context: Context, chosen: Sequence[FedQuestion], asked: Sequence[FedQuestion]
) -> np.ndarray:
    """Whether the answer is named, [n, 1 + controls, 2 positions, L sources, L targets] int8: with the question's own
    states, then with those of each donor; −1 where nothing was patched."""
    found = []
    for first in range(0, len(chosen), AT_ONCE):
        some = chosen[first : first + AT_ONCE]
        key = f"back-patching {some[0].question.row}-{some[-1].question.row}"
        found.append(context.part(key, partial(_part, model, config, context, some, asked))["solved"])
        context.progress(min(first + AT_ONCE, len(chosen)), len(chosen), "questions back-patched")
    shape = (0, 1 + config.controls, len(POSITIONS), model.n_layers, model.n_layers)
    return np.concatenate(found) if found else np.zeros(shape, np.int8)


def _part(
    model: Model, config: Config, context: Context, some: Sequence[FedQuestion], asked: Sequence[FedQuestion]
) -> dict:
    layers, back = model.n_layers, pairs(model.n_layers)
    donors = [[one, *_donors(config, context, asked, one)] for one in some]
    places = {one.question.row: k for k, one in enumerate({o.question.row: o for own in donors for o in own}.values())}
    from_ = list({o.question.row: o for own in donors for o in own}.values())
    states = streams(model, from_, run_of(context))  # [donors, positions, layers, width]
    cells = [
        (i, d, POSITIONS.index(name), s, t)
        for i, one in enumerate(some)
        for name in positions_of(one, config.positions)
        for d in range(len(donors[i]))
        for s, t in back
    ]
    state = [(places[donors[i][d].question.row] * len(POSITIONS) + p) * layers + s for i, d, p, s, _ in cells]
    position = [some[i].position(POSITIONS[p]) for i, _, p, _, _ in cells]
    found = _texts(model, config, context, some, states, cells, position, state)
    solved = np.full((len(some), 1 + config.controls, len(POSITIONS), layers, layers), -1, np.int8)
    for (i, d, p, s, t), text in zip(cells, found):
        solved[i, d, p, s, t] = says(text, some[i].question.answer, config.match)
    return {"solved": solved}


def _donors(config: Config, context: Context, asked: Sequence[FedQuestion], one: FedQuestion) -> Sequence[FedQuestion]:
    """The questions whose states take the place of those of one; with a place of their first hop where its own is
    patched."""
    placed = "t1" in positions_of(one, config.positions)
    return others(context, "donors", asked, one, config.controls, placed=placed)


def _texts(
    model: Model,
    config: Config,
    context: Context,
    some: Sequence[FedQuestion],
    states: torch.Tensor,
    cells: Sequence[tuple[int, int, int, int, int]],
    position: Sequence[int | None],
    state: Sequence[int],
) -> list[str]:
    """What the model says after each patched prompt."""
    if not cells:
        return []
    patches = StreamPatches(
        states.flatten(0, 2), [i for i, *_ in cells], [t for *_, t in cells], [p or 0 for p in position], state
    )
    found = patched_texts(
        model,
        [one.prompt for one in some],
        patches,
        max_new_tokens=config.max_new_tokens,
        run=run_of(context),
    )
    fed = sum(len(one.prompt) for one in some) + sum(len(new) for (new,) in found)
    context.count(prompts=len(some) + len(cells), tokens=fed, forwards=1)
    return [as_text(model, new) for (new,) in found]
