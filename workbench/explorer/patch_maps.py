"""Patching maps: which activations of one prompt, put into another, carry the difference between their answers.

The prompt that is run is the one patched; the donor is the one that activations are taken from (denoising: run the
corrupted prompt, take from the clean one; noising: the other way round; Heimersheim & Nanda 2024).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.engine import head_paths, patching
from workbench.engine.hf import stream
from workbench.explorer.opened_model import Head, Opened
from workbench.explorer.targets import Target
from workbench.models.sites import Site

KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # layer × position
MOST_FED = 1 << 25  # tokens that a map by position feeds: one pass for each layer and token
HEADS = "heads"  # layer × head, at all positions at once


@dataclass(frozen=True, eq=False)
class PatchMap:
    """`cells`: layer, position or head, value (the target's under the patch), change (from the prompt's own) and
    recovered (change as a share of the donor's value less the prompt's; null where these are the same). `own`, `donor`:
    the target's value on the two prompts."""

    cells: pl.DataFrame
    own: float
    donor: float


def align(ids: Sequence[int], donor: Sequence[int]) -> tuple[int, ...]:
    """For each token of a prompt the donor's position to take from: position by position where both are equally long;
    otherwise equal stretches are put on each other, and what lies between is spread evenly, ends on ends."""
    if len(ids) == len(donor):
        return tuple(range(len(ids)))
    blocks = difflib.SequenceMatcher(None, list(ids), list(donor), autojunk=False).get_matching_blocks()
    out, a, b = [0] * len(ids), 0, 0
    for block in blocks:
        gap, theirs = block.a - a, block.b - b
        for i in range(gap):  # nothing of the donor in between: the token before it
            out[a + i] = b + _spread(i, gap, theirs) if theirs else max(0, b - 1)
        for i in range(block.size):
            out[block.a + i] = block.b + i
        a, b = block.a + block.size, block.b + block.size
    return tuple(out)


def _spread(i: int, mine: int, theirs: int) -> int:
    """Which of `theirs` tokens the i-th of `mine` stands for: the first for the first, the last for the last. One alone
    stands for the last, which has read the others."""
    return theirs - 1 if mine == 1 else round(i * (theirs - 1) / (mine - 1))


def patch_map(
    opened: Opened,
    ids: Sequence[int],
    donor: Sequence[int],
    target: Target,
    *,
    kind: str = "resid_pre",
    alignment: Sequence[int] | None = None,
    check: Callable[[], None] | None = None,
) -> PatchMap:
    """The target's value with one activation at a time taken from the donor: one of KINDS by layer and position, or
    "heads" by layer and head.

    `alignment`: `align` unless given by hand. Raises InputError for an unknown kind and an alignment that does not
    fit."""
    model = opened.model
    if kind not in (*KINDS, HEADS):
        raise InputError(f"'{kind}' is nothing to patch here; choose {', '.join((*KINDS, HEADS))}.")
    if kind != HEADS and model.n_layers * len(ids) ** 2 > MOST_FED:
        most = int((MOST_FED / model.n_layers) ** 0.5)
        raise InputError(
            f"A patching map of {model.n_layers} layers × {len(ids):,} tokens is a pass for each cell, which takes too "
            f"long; shorten the prompt to {most:,} tokens, or patch heads."
        )
    where = tuple(alignment) if alignment is not None else align(ids, donor)
    pairs: dict = {"align": [where], "check": check}
    with opened.lock:
        if kind == HEADS:
            found = patching.head_patching(model, [list(ids)], [list(donor)], [target.ids], **pairs)
            names, columns = ("layer", "head"), model.n_heads
        else:
            found = patching.activation_patching(model, [list(ids)], [list(donor)], [target.ids], kind, **pairs)
            names, columns = ("layer", "position"), len(ids)
        theirs = _value(opened, donor, target)
    own = float(target.value_of(found.logits[0], found.normaliser[0]))
    values = target.value_of(found.patched_logits[0], found.patched_normaliser[0]).double()
    gap = theirs - own
    cells = pl.DataFrame(
        {
            names[0]: [i // columns for i in range(len(values))],
            names[1]: [i % columns for i in range(len(values))],
            "value": values.tolist(),
            "change": (values - own).tolist(),
            "recovered": ((values - own) / gap).tolist() if abs(gap) > 1e-6 else [None] * len(values),
        },
        schema_overrides={"recovered": pl.Float64},
    )
    return PatchMap(cells, own, theirs)


def paths_into(
    opened: Opened,
    ids: Sequence[int],
    donor: Sequence[int],
    receiver: Head,
    target: Target,
    *,
    then: str = "total",
    check: Callable[[], None] | None = None,
) -> pl.DataFrame:
    """What each earlier head says to the query, the key or the value of a later one, at the last token: layer, head,
    through (q, k, v), change of the target's value when that path alone carries the donor's. The two prompts have one
    length.

    Raises InputError for a receiver in the first layer and prompts of different lengths."""
    model = opened.model
    if len(ids) != len(donor):
        raise InputError(
            f"Paths between heads need prompts of one length; these have {len(ids)} and {len(donor)} tokens."
        )
    rows = []
    senders = [pair for pair in model.heads() if pair[0] < receiver[0]]
    with opened.lock:
        for through in head_paths.THROUGH:
            found = head_paths.head_to_head(
                model,
                [list(ids)],
                [list(donor)],
                [target.ids],
                receiver=receiver,
                through=through,
                senders=senders,
                then=then,
                check=check,
            )
            own = target.value_of(found.logits[0], found.normaliser[0])
            change = target.value_of(found.patched_logits[0], found.patched_normaliser[0]) - own
            rows += [
                {"layer": layer, "head": head, "through": through, "change": float(value)}
                for (layer, head), value in zip(senders, change)
            ]
    return pl.DataFrame(rows)


def _value(opened: Opened, ids: Sequence[int], target: Target) -> float:
    passes = stream(opened.model, [list(ids)], [Site("logits")], dtype=torch.float32)
    _, found, _ = next(iter(passes))
    return float(target.value(found[Site("logits")][0]))
