"""How straight the states of a text run from token to token (Hosseini and Fedorenko 2023, arXiv 2311.04930; after
Hénaff et al. 2019): the angle in degrees between one step, state to next state, and the step after it.

0 is a straight line, 90 steps that have nothing to do with each other, 120 states in random order (two steps share a
state). Two controls: the same states in another order, and the same tokens in another order through the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from probes.representation_geometry.features import Checkpoint
from workbench.core.errors import InputError
from workbench.engine.capture import shards
from workbench.engine.passes import Pass
from workbench.models.sinks import norms_of, ordinary_tokens

MOST_TOKENS = 4096  # in a batch: states of every layer are there at once


def bends(x: torch.Tensor, text: np.ndarray, follows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(text, angle in degrees) at every state [m, d] that has both neighbours. `text` [m]: which text a row is of;
    `follows` [m]: whether it follows the row before. An angle at a step of length 0 is NaN."""
    x = x.double()
    steps = x[1:] - x[:-1]
    lengths = torch.linalg.vector_norm(steps, dim=1)
    cosine = (steps[1:] * steps[:-1]).sum(1) / (lengths[1:] * lengths[:-1])
    there = follows[1:-1] & follows[2:]
    angles = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).cpu().numpy()
    return text[1:-1][there], angles[there]


def curvatures(
    checkpoint: Checkpoint, ids: Sequence[list[int]], own: Sequence[tuple[int, int]], *, seed: int
) -> dict[int, np.ndarray]:
    """layer → [texts, 3]: of every text the mean angle, the mean angle of its states in another order, and how many
    angles there are. NaN where a text has none. `own` [texts]: [start, end) of the tokens that count; sinks do not
    where they are left out, and no angle spans one."""
    model, context, sites = checkpoint.model, checkpoint.context, checkpoint.layers()
    most = min(model.tokens_at_once(checkpoint.config.max_tokens), MOST_TOKENS)
    run = Pass(edits=context.edits, max_tokens=most, check=context.check)
    out = {layer: np.full((len(ids), 3), np.nan) for layer in sites}
    for texts, found in shards(
        model, ids, list(sites.values()), positions="all", context=context, engine=context.engine, run=run
    ):
        lengths = [len(ids[text]) for text in texts]
        masks = [_inside(length, own[text]) for text, length in zip(texts, lengths)]
        starts = np.cumsum([0, *lengths])
        for layer, site in sites.items():
            x = found[site]
            if not bool(x.isfinite().all()):
                raise InputError(
                    f"The activations at {site} are NaN or infinite; load the model in float32 or bfloat16."
                )
            kept = ordinary_tokens(norms_of(x, 1), masks) if checkpoint.config.sinks == "leave_out" else masks
            tokens = [np.flatnonzero(mask) for mask in kept]
            shuffled = [np.random.default_rng([seed, text]).permutation(at) for text, at in zip(texts, tokens)]
            number = np.repeat(np.arange(len(texts)), [len(at) for at in tokens])
            for column, order in ((0, tokens), (1, shuffled)):
                rows = np.concatenate([at + start for at, start in zip(order, starts)])
                same = np.concatenate([[False], number[1:] == number[:-1]])
                follows = same if column else same & np.concatenate([[False], np.diff(rows) == 1])
                at, angles = bends(x[torch.from_numpy(rows)], number, follows)
                out[layer][texts, column] = _means(at, angles, len(texts))
                if column == 0:
                    out[layer][texts, 2] = np.bincount(at[~np.isnan(angles)], minlength=len(texts))
        context.check()
    return out


def shuffled_tokens(ids: Sequence[list[int]], own: Sequence[tuple[int, int]], *, seed: int) -> list[list[int]]:
    """The texts with their own tokens, [start, end) of each, in another order; what stands around them stays."""
    out = []
    for number, (row, (start, end)) in enumerate(zip(ids, own)):
        order = np.random.default_rng([seed, number]).permutation(np.arange(start, end))
        out.append([*row[:start], *(row[i] for i in order), *row[end:]])
    return out


def own_tokens(checkpoint: Checkpoint, chosen: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of the text's own tokens in each of the chosen texts: not a template around them, nor BOS."""
    texts, model = checkpoint.texts, checkpoint.model
    spans = []
    for text in chosen:
        ids = texts.ids[text]
        start, end = (0, len(ids)) if texts.own is None else texts.own[text]
        spans.append((start + (start == 0 and model.prepends_bos and ids[0] == model.bos_id), end))
    return spans


def _inside(length: int, span: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(length, bool)
    mask[span[0] : span[1]] = True
    return mask


def _means(at: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The mean of the values of each text that are there; NaN where none is."""
    there = ~np.isnan(values)
    size = np.bincount(at[there], minlength=count)
    with np.errstate(invalid="ignore"):
        return np.bincount(at[there], values[there], minlength=count) / np.where(size, size, np.nan)
