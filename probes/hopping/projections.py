"""What attention and MLPs add at the last token, read off as if it were the whole stream: is the token of the bridge,
of the answer, or the one that the model goes on with, the likeliest?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from probes.hopping.asking import FedQuestion
from probes.hopping.config import Config
from probes.hopping.labels import others, run_of
from workbench.core.context import Context
from workbench.engine.hf import stream
from workbench.engine.patching import READ_OFF
from workbench.models.model import Model
from workbench.models.sites import Site, sites
from workbench.models.text_positions import word_ids

AT_ONCE = 32  # questions of one resumable part
WRITERS = ("attn_out", "mlp_out")
READ = ("bridge", "answer", "prediction")


def why_not(model: Model) -> str | None:
    """Why what a layer's parts add cannot be read off; None where it can."""
    return model.lacks("stream_adds_up", *READ_OFF)


def first_tokens(model: Model, prompt: str, names: Sequence[str]) -> list[int]:
    """The tokens that the names of an entity begin with: as they are, in lower case, and as they go on after the
    prompt; without those that are nothing but white space."""
    found = set()
    for name in {*names, *(name.lower() for name in names)}:
        for ids in (word_ids(model, prompt, name), model.encode(name, bos=False)):
            found |= {ids[0]} if ids and model.decode(ids[:1]).strip() else set()
    return sorted(found)


def project(
    model: Model, config: Config, context: Context, chosen: Sequence[FedQuestion], asked: Sequence[FedQuestion]
) -> tuple[np.ndarray, np.ndarray]:
    """StageEvents [n, 2 writers, 3 read, L] int8, and of other questions' names [n, shuffles, 2, 3, L] (−1 for the
    prediction, which has no names)."""
    found, null = [], []
    for first in range(0, len(chosen), AT_ONCE):
        some = chosen[first : first + AT_ONCE]
        key = f"projections {some[0].question.row}-{some[-1].question.row}"
        part = context.part(key, partial(_part, model, config, context, some, asked))
        found.append(part["found"])
        null.append(part["null"])
        context.progress(min(first + AT_ONCE, len(chosen)), len(chosen), "questions read off")
    shape = (0, len(WRITERS), len(READ), model.n_layers)
    if not found:
        return np.zeros(shape, np.int8), np.zeros((0, config.shuffles, *shape[1:]), np.int8)
    return np.concatenate(found), np.concatenate(null)


def _part(
    model: Model, config: Config, context: Context, some: Sequence[FedQuestion], asked: Sequence[FedQuestion]
) -> dict:
    n, layers = len(some), range(model.n_layers)
    own = [
        [first_tokens(model, o.question.prompt, names) for names in (o.question.bridge, o.question.answer)]
        for o in some
    ]
    wrong = [
        [
            [first_tokens(model, one.question.prompt, names) for names in (o.question.bridge, o.question.answer)]
            for o in others(context, "shuffles", asked, one, config.shuffles)
        ]
        for one in some
    ]
    found = np.full((n, len(WRITERS), len(READ), model.n_layers), -1, np.int8)
    null = np.full((n, config.shuffles, len(WRITERS), len(READ), model.n_layers), -1, np.int8)
    wanted = [*(site for kind in WRITERS for site in sites(kind, layers)), Site("logits")]
    ids = [one.prompt for one in some]
    for rows, states, batch in stream(model, ids, wanted, run=run_of(context)):
        context.count(prompts=len(rows), tokens=batch.tokens, forwards=1)
        predicted = states[Site("logits")].argmax(-1).tolist()
        for w, kind in enumerate(WRITERS):
            for layer in layers:
                top = LikeliestToken.of(model.logits_from(states[Site(kind, layer)]))
                for k, i in enumerate(rows):
                    tokens = [*own[i], [predicted[k]]]
                    found[i, w, :, layer] = [top.is_one_of(k, few) for few in tokens]
                    for j, names in enumerate(wrong[i]):
                        null[i, j, w, : len(names), layer] = [top.is_one_of(k, few) for few in names]
    return {"found": found, "null": null}


class LikeliestToken:
    """The likeliest token of each row of scores, and whether another is as likely: then none of them is first."""

    def __init__(self, token: list[int], alone: list[bool]):
        self.token, self.alone = token, alone

    @classmethod
    def of(cls, scores: torch.Tensor) -> LikeliestToken:
        """Of scores [R, V]."""
        best = scores.topk(min(2, scores.shape[-1]), -1)
        alone = best.values[:, 0] > best.values[:, -1]
        return cls(best.indices[:, 0].tolist(), alone.tolist())

    def is_one_of(self, row: int, tokens: Sequence[int]) -> bool:
        """Whether the likeliest token of a row is one of these."""
        return self.alone[row] and self.token[row] in tokens
