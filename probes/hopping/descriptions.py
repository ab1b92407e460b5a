"""Which states name the bridge, or the answer: each is put into a prompt that describes things, in the place of its
last word, after one block after another, and what the model goes on to write is read (Patchscopes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from probes.hopping.answers import as_text, described
from probes.hopping.asking import FedQuestion
from probes.hopping.config import POSITIONS, Config
from probes.hopping.labels import others, run_of
from probes.hopping.streams import streams
from workbench.core.context import Context
from workbench.engine.patched_streams import StreamPatches, TextDrawing, patched_texts
from workbench.engine.rule import Rule
from workbench.models.model import Model

AT_ONCE = 8  # questions of one resumable part
NAMED = ("bridge", "answer")
DEEPEST = 10_000  # more layers than any model has
TABLE = {
    "row": pl.Int64,
    "position": pl.String,
    "source_layer": pl.Int64,
    "target_layer": pl.Int64,
    "named": pl.String,
    "text": pl.String,
}


@dataclass(frozen=True, eq=False)
class DescribedStates:
    """`found` [n, 2 named, 2 positions, L] int8: whether a description of the state of that layer names it, whatever
    block it is put after; −1 where there is no such position. `null` [n, shuffles, 2, 2, L]: the same of other
    questions' names in the same texts. `texts`: those that name either."""

    found: np.ndarray
    null: np.ndarray
    texts: pl.DataFrame


def target_layers(model: Model, config: Config) -> list[int] | None:
    """The blocks after which states are put into the describing prompt; None for the one that each comes from. Raises
    InputError for a block that the model does not have."""
    from workbench.core.errors import InputError

    if config.describe_layers == "same":
        return None
    if config.describe_layers == "all":
        return list(range(model.n_layers))
    wanted = sorted({int(layer) for layer in config.describe_layers})
    if wanted[-1] >= model.n_layers:
        raise InputError(
            f"describe_layers names layer {wanted[-1]}, and {model.name} has layers 0–{model.n_layers - 1}."
        )
    return wanted


def describe(
    model: Model,
    config: Config,
    context: Context,
    prompt: Sequence[int],
    chosen: Sequence[FedQuestion],
    asked: Sequence[FedQuestion],
) -> DescribedStates:
    """Describe the states of the chosen questions by the prompt; `asked`: all questions, whose names are the null."""
    found, null, texts = [], [], [pl.DataFrame(schema=TABLE)]
    for first in range(0, len(chosen), AT_ONCE):
        some = chosen[first : first + AT_ONCE]
        key = f"descriptions {some[0].question.row}-{some[-1].question.row}"
        part = context.part(key, partial(_part, model, config, context, prompt, some, asked))
        found.append(part["found"])
        null.append(part["null"])
        texts.append(part["texts"])
        context.progress(min(first + AT_ONCE, len(chosen)), len(chosen), "questions described")
    shape = (0, len(NAMED), len(POSITIONS), model.n_layers)
    return DescribedStates(
        np.concatenate(found) if found else np.zeros(shape, np.int8),
        np.concatenate(null) if null else np.zeros((0, config.shuffles, *shape[1:]), np.int8),
        pl.concat(texts),
    )


def _part(
    model: Model,
    config: Config,
    context: Context,
    prompt: Sequence[int],
    some: Sequence[FedQuestion],
    asked: Sequence[FedQuestion],
) -> dict:
    """Of some questions what `DescribedStates` holds, as a resumable part."""
    targets = target_layers(model, config)
    there = [(i, p) for i, one in enumerate(some) for p, name in enumerate(POSITIONS) if one.position(name) is not None]
    cells = [
        (i, p, s, t) for i, p in there for s in range(model.n_layers) for t in ([s] if targets is None else targets)
    ]
    states = streams(model, some, run_of(context))
    patches = StreamPatches(
        states.flatten(0, 2),
        [0] * len(cells),
        [t for *_, t in cells],
        [len(prompt) - 1] * len(cells),
        [(i * len(POSITIONS) + p) * model.n_layers + s for i, p, s, _ in cells],
    )
    found = patched_texts(
        model,
        [prompt],
        patches,
        max_new_tokens=config.max_new_tokens,
        drawing=drawing(config, context, [(some[i].question.row, *cell) for i, *cell in cells]),
        run=run_of(context),
    )
    fed = sum(len(one.prompt) for one in some) + sum(len(text) for texts in found for text in texts)
    context.count(prompts=len(some) + len(cells), tokens=fed, forwards=1)
    return _named(model, config, context, some, asked, cells, found)


def drawing(config: Config, context: Context, cells: Sequence[tuple[int, int, int, int]]) -> TextDrawing | None:
    """How the descriptions of cells (row of the file, position, source, target) are drawn, whatever others there are;
    None for the likeliest."""
    if config.describe != "sampled":
        return None
    seed = int(context.rng("descriptions").integers(1 << 31))
    keys = tuple(((row * len(POSITIONS) + p) * DEEPEST + s) * DEEPEST + t for row, p, s, t in cells)
    return TextDrawing(Rule.parse(config.decoding), config.samples, seed, keys)


def _named(
    model: Model,
    config: Config,
    context: Context,
    some: Sequence[FedQuestion],
    asked: Sequence[FedQuestion],
    cells: Sequence[tuple[int, int, int, int]],
    written: Sequence[Sequence[Sequence[int]]],
) -> dict:
    """What the texts of the cells (question, position, source, target) name."""
    shape = (len(some), len(NAMED), len(POSITIONS), model.n_layers)
    found = np.full(shape, -1, np.int8)
    null = np.full((shape[0], config.shuffles, *shape[1:]), -1, np.int8)
    own = [(one.question.bridge, one.question.answer) for one in some]
    wrong = [
        [(o.question.bridge, o.question.answer) for o in others(context, "shuffles", asked, one, config.shuffles)]
        for one in some
    ]
    together: dict[tuple[int, int, int], list[str]] = {}
    rows = []
    for (i, p, s, t), texts in zip(cells, written):
        for text in (as_text(model, new) for new in texts):
            together.setdefault((i, p, s), []).append(text.casefold())
            for n, named in enumerate(NAMED):
                if any(pattern in text.casefold() for pattern in described(own[i][n])):
                    rows.append((some[i].question.row, POSITIONS[p], s, t, named, text))
    for (i, p, s), texts in together.items():
        whole = "\n".join(texts)
        for n in range(len(NAMED)):
            found[i, n, p, s] = any(pattern in whole for pattern in described(own[i][n]))
            for k, names in enumerate(wrong[i]):
                null[i, k, n, p, s] = any(pattern in whole for pattern in described(names[n]))
    return {"found": found, "null": null, "texts": pl.DataFrame(rows, schema=TABLE, orient="row")}
