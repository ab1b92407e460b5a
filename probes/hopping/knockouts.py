"""Where the model needs what stands at the end of the first hop: attention to it cut, layer by layer, while the answer
is written; beside it the same cut of another token of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from probes.hopping.answers import as_text, says
from probes.hopping.asking import FedQuestion
from probes.hopping.config import CUT_TO, Config
from probes.hopping.labels import QuestionSet
from workbench.core.context import Context
from workbench.engine.edits import KnockOut
from workbench.engine.generate import greedy
from workbench.engine.passes import Pass
from workbench.models.model import Model

AT_ONCE = 64  # questions of one resumable part
CUT = (*CUT_TO, "control")


def why_not(model: Model) -> str | None:
    """Why attention cannot be cut; None where it can."""
    if not model.attention_interface:
        return f"{model.architecture} computes attention outside the interface of transformers"
    return model.lacks("attention_edits", "attention_rows")


def knock_out(model: Model, config: Config, context: Context, chosen: QuestionSet) -> np.ndarray:
    """Events [n, 4 cut, L] int8: 1 where what the model says is no longer what it said and was, if it was right, not
    right again; −1 where there is no such token, or none that could attend to it."""
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
    for c, target in enumerate(CUT):
        if target != "control" and target not in config.knockout_to:
            continue
        cut = []
        for i, one in enumerate(some):
            ask = asks(one, config)
            place = elsewhere(context, one, ask) if target == "control" else one.position(target)
            if place is not None and ask is not None and place < ask and one.t1 is not None:
                cut.append((i, place, ask))
        for layer in range(model.n_layers):
            for i, text in _under(model, config, context, some, layer, cut).items():
                found[i, c, layer] = changed(text, said[i], some[i], config)
    return {"found": found}


def asks(one: FedQuestion, config: Config) -> int | None:
    """The position of the token that can no longer attend: with knockout=all the last one, among others."""
    return one.position(config.knockout) if config.knockout in ("t1", "r1") else one.t2


def _under(
    model: Model,
    config: Config,
    context: Context,
    some: Sequence[FedQuestion],
    layer: int,
    cut: Sequence[tuple[int, int, int]],
) -> dict[int, str]:
    """What the model says to question i while attention from one position to another is cut in a window of layers; cut:
    (i, to, from)."""
    near = range(max(0, layer - config.knockout_width), min(model.n_layers, layer + config.knockout_width + 1))
    texts: dict[int, str] = {}
    groups: dict[str | tuple[int, ...], list[tuple[int, int]]] = {}
    for i, place, ask in cut:  # one call for all that is cut from the last token, else one for each position
        queries = config.knockout if config.knockout in ("last", "all") else (ask,)
        groups.setdefault(queries, []).append((i, place))
    for queries, rows in groups.items():
        edit = KnockOut(tuple(near), tuple((place,) for _, place in rows), queries=queries)
        ids = [some[i].prompt for i, _ in rows]
        decoding = queries == "all"
        found = greedy(
            model,
            ids,
            max_new_tokens=config.max_new_tokens,
            while_reading=() if decoding else (edit,),
            run=Pass((*context.edits, edit) if decoding else context.edits, check=context.check),
        )
        context.count(prompts=len(ids), tokens=sum(map(len, ids)) + sum(map(len, found)), forwards=1)
        texts |= {i: as_text(model, new) for (i, _), new in zip(rows, found)}
    return texts


def elsewhere(context: Context, one: FedQuestion, ask: int | None) -> int | None:
    """Another token before the one that asks than the first (which may be a sink), t1, r1 and r2, drawn for the
    question; None where there is none."""
    able = [place for place in range(1, ask or 0) if place not in (one.t1, one.r1, one.r2)]
    return None if not able else able[int(context.rng(f"cut {one.question.row}").integers(len(able)))]


def changed(text: str, before: str, one: FedQuestion, config: Config) -> bool:
    """Whether a text differs from the one before, and is not as right as that was."""
    answer = one.question.answer
    both = says(text, answer, config.match) and says(before, answer, config.match)
    return text != before and not both
