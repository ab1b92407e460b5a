"""The last token of many prompts under one edit after another: what comes before it is read once.

An edit of the last token alone leaves everything before it as it is, so that its keys and values are shared by all
edits, and a pass under an edit is one of single tokens. A model that cannot go on from a cache exactly is recognised by
a comparison with a whole pass, and whole passes take over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.engine.edits import Edit, apply, check_edits
from workbench.engine.hf import stream
from workbench.engine.kv_cache import Cached, prefill
from workbench.engine.layer_scores import NEEDS, distribution
from workbench.engine.passes import Pass, check_ids, with_pass
from workbench.models.batching import pad
from workbench.models.model import Model
from workbench.models.recording import converted, recording, select_positions
from workbench.models.running_pass import positions_after
from workbench.models.sites import Site

CLOSE = 1e-4  # of the largest number, for float32; 5e-2 for fewer bits


@with_pass
def last_token_scores(
    model: Model,
    ids: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    edits: Sequence[Sequence[Edit]],
    *,
    run: Pass,
) -> list[list[np.ndarray]]:
    """Log-probabilities of the tokens `wanted[i]` after prompt i under each of `edits` (of the last token alone, the
    same for every prompt): a list for each set of edits, of an array [tokens] for each prompt, float32.

    The edits of `run` act on whole prompts, before these. Raises InputError for a model whose scores are not read off
    its stream, and for edits that do not fit."""
    model.require(*NEEDS, for_what="scores after an edit")
    if len(ids) != len(wanted):
        raise InputError(f"There are {len(ids)} prompts and {len(wanted)} lists of tokens; give one each.")
    check_ids(model, ids)
    for some in edits:
        check_edits(model, (*run.edits, *some), [range(-len(row), len(row)) for row in ids])
    union = sorted({token for tokens in wanted for token in tokens})
    column = {token: k for k, token in enumerate(union)}
    found: list[list[np.ndarray]] = [[np.empty(0)] * len(ids) for _ in edits]
    site = Site("resid_post", model.n_layers - 1)
    for rows, sets in _streamed(model, ids, edits, site, run):
        for number, states in sets:
            log_p = distribution(model, states, union)[0].float().cpu().numpy()
            for k, i in enumerate(rows):
                found[number][i] = log_p[k, [column[token] for token in wanted[i]]]
            run.asked()
    return found


def _streamed(
    model: Model, ids: Sequence[Sequence[int]], edits: Sequence[Sequence[Edit]], site: Site, run: Pass
) -> Iterator[tuple[list[int], list[tuple[int, torch.Tensor]] | Iterator[tuple[int, torch.Tensor]]]]:
    """(rows of a batch, (number of a set of edits, last states [rows, width]) one after another)."""
    in_pieces, checked = _may_go_on(model, ids), False
    for rows in run.batches([len(row) for row in ids], lambda _: None):
        own, part = [ids[i] for i in rows], run.for_prompts(rows)
        begun = _begun(model, own, part) if in_pieces else None
        if begun is not None and not checked:
            here, plain = _after(model, begun, own, part.edits, site), _whole(model, own, part, (), site)
            checked = _close(here, plain, model)
            in_pieces, begun = checked, begun if checked else None
        yield rows, _under(model, begun, own, edits, site, part)


def _under(
    model: Model,
    begun: Cached | None,
    ids: Sequence[Sequence[int]],
    edits: Sequence[Sequence[Edit]],
    site: Site,
    run: Pass,
) -> Iterator[tuple[int, torch.Tensor]]:
    for number, some in enumerate(edits):
        if begun is None:
            yield number, _whole(model, ids, run, some, site)
        else:
            yield number, _after(model, begun, ids, (*run.edits, *some), site)


def _may_go_on(model: Model, ids: Sequence[Sequence[int]]) -> bool:
    """Whether a prompt may be read in two pieces, as far as the model says."""
    stateful = getattr(model.hf, "_is_stateful", False)
    once = model.facts.why_not("blocks_run_once") is None
    return min(map(len, ids)) > 1 and once and not stateful


def _begun(model: Model, ids: Sequence[Sequence[int]], run: Pass) -> Cached:
    """What stands before the last tokens."""
    with torch.no_grad(), apply(model, run.edits):
        return prefill(model, [row[:-1] for row in ids], None)


@torch.no_grad()
def _after(
    model: Model, begun: Cached, ids: Sequence[Sequence[int]], edits: Sequence[Edit], site: Site
) -> torch.Tensor:
    """The states [n, width] of the last tokens, which are read after what stands before them."""
    past = begun.fork()
    last = [row[-1:] for row in ids]
    batch = pad(last, pad_id=model.pad_id, side="left", device=model.device, first=past.past.sizes)
    here = positions_after(batch, past.past)
    keep, select = converted(None, copy=True), select_positions(batch, "last")
    with apply(model, edits), recording(model, [site], batch, select, keep) as seen:
        model.forward(batch, cache=past.cache, here=here, last_logits=1)
    return seen[site]


def _whole(model: Model, ids: Sequence[Sequence[int]], run: Pass, more: Sequence[Edit], site: Site) -> torch.Tensor:
    """The same of whole passes."""
    states: list[torch.Tensor | None] = [None] * len(ids)
    for rows, seen, _ in stream(model, ids, [site], positions="last", run=replace(run, edits=(*run.edits, *more))):
        for k, i in enumerate(rows):
            states[i] = seen[site][k]
    return torch.stack([state for state in states if state is not None])


def _close(found: torch.Tensor, plain: torch.Tensor, model: Model) -> bool:
    tolerance = 5e-2 if model.low_precision else CLOSE
    return bool((found.float() - plain.float()).abs().max() <= tolerance * plain.float().abs().max().clamp(min=1e-6))
