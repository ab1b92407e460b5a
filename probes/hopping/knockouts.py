"""Where the model needs what stands at the end of the first hop: attention to it cut, layer by layer, while the answer
is written; beside it the same cut of another token of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from probes.hopping.answers import as_text, says
from probes.hopping.asking import FedQuestion
from probes.hopping.config import Config
from probes.hopping.labels import QuestionSet
from workbench.core.context import Context
from workbench.engine.edits import KnockOut
from workbench.engine.generate import greedy
from workbench.engine.passes import Pass
from workbench.models.model import Model

AT_ONCE = 64  # questions of one resumable part
CUT = ("t1", "control")


def why_not(model: Model) -> str | None:
    """Why attention cannot be cut; None where it can."""
    if not model.attention_interface:
        return f"{model.architecture} computes attention outside the interface of transformers"
    return model.lacks("attention_edits", "attention_rows")


def knock_out(model: Model, config: Config, context: Context, chosen: QuestionSet) -> np.ndarray:
    """StageEvents [n, 2 cut, L] int8: 1 where what the model says is no longer what it said and was, if it was right,
    not right again; −1 where there is no such token."""
    found = []
    for first in range(0, len(chosen), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        rows = [one.question.row for one in chosen.asked[some]]
        compute = partial(_part, model, config, context, chosen.asked[some], chosen.said[some])
        found.append(context.part(f"knock-out {rows[0]}-{rows[-1]}", compute)["found"])
        context.progress(min(first + AT_ONCE, len(chosen)), len(chosen), "questions with attention cut")
    return np.concatenate(found) if found else np.zeros((0, len(CUT), model.n_layers), np.int8)


def _part(model: Model, config: Config, context: Context, some: Sequence[FedQuestion], said: Sequence[str]) -> dict:
    found = np.full((len(some), len(CUT), model.n_layers), -1, np.int8)
    for c in range(len(CUT)):
        places = [one.t1 if c == 0 else elsewhere(context, one) for one in some]
        rows = [i for i, place in enumerate(places) if place is not None and some[i].t1 is not None]
        if not rows:
            continue
        cut = tuple((place,) for i in rows if (place := places[i]) is not None)
        for layer in range(model.n_layers):
            texts = _under(model, config, context, [some[i] for i in rows], layer, cut)
            for i, text in zip(rows, texts):
                found[i, c, layer] = changed(text, said[i], some[i], config)
    return {"found": found}


def _under(
    model: Model,
    config: Config,
    context: Context,
    some: Sequence[FedQuestion],
    layer: int,
    cut: tuple[tuple[int, ...], ...],
) -> list[str]:
    """What the model says while attention to these positions is cut in a window of layers."""
    near = range(max(0, layer - config.knockout_width), min(model.n_layers, layer + config.knockout_width + 1))
    edit = KnockOut(tuple(near), cut, queries=config.knockout)
    ids = [one.prompt for one in some]
    last = config.knockout == "last"
    found = greedy(
        model,
        ids,
        max_new_tokens=config.max_new_tokens,
        while_reading=(edit,) if last else (),
        run=Pass(context.edits if last else (*context.edits, edit), check=context.check),
    )
    context.count(prompts=len(ids), tokens=sum(map(len, ids)) + sum(map(len, found)), forwards=1)
    return [as_text(model, new) for new in found]


def elsewhere(context: Context, one: FedQuestion) -> int | None:
    """Another token of the prompt than the first (which may be a sink), t1 and t2, drawn for the question; None where
    there is none."""
    able = [place for place in range(1, len(one.prompt) - 1) if place != one.t1]
    return None if not able else able[int(context.rng(f"cut {one.question.row}").integers(len(able)))]


def changed(text: str, before: str, one: FedQuestion, config: Config) -> bool:
    """Whether a text differs from the one before, and is not as right as that was."""
    answer = one.question.answer
    both = says(text, answer, config.match) and says(before, answer, config.match)
    return text != before and not both
