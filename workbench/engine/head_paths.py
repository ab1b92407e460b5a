"""Path patching from head to head: what a later head would do had one earlier head spoken to its query, key or value
alone.

The sender's output on the donor replaces its own at every position, and reaches the receiver through the residual
stream only (all other heads and all MLPs between them are frozen). The receiver's query at the last position, its keys
or its values are computed from that stream, its output z at the last position follows, and everything after the
receiver is computed again (or nothing: `then="direct"`). Keys and values are patched as this one query head reads them:
with grouped queries the other heads of the group keep theirs. (Wang et al. 2022, section 3; Jin et al. 2024.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from workbench.core.errors import InputError
from workbench.engine.edits import apply
from workbench.engine.hf import stream
from workbench.engine.last_token_replay import REPLAYED, Injection, grid
from workbench.engine.passes import Pass, with_pass
from workbench.engine.patching import (
    ADDITIVE,
    READ_OFF,
    Effects,
    Head,
    check_pairs,
    direct_scores,
    gather,
    injected,
    writes,
)
from workbench.models.attention_edits import edit as attention_edit
from workbench.models.call_tape import first_tensor, hidden_argument
from workbench.models.model import Model
from workbench.models.running_pass import PassPositions, before, running
from workbench.models.sites import Site

THROUGH = ("q", "k", "v")


@with_pass
@torch.no_grad()
def head_to_head(
    model: Model,
    ids,
    donors,
    tokens,
    *,
    receiver: Head,
    through: str,
    senders: Sequence[Head] | None = None,
    then: str = "total",
    run: Pass,
) -> Effects:
    """Effects on k tokens of each sender's path into one side ("q", "k" or "v") of the receiver; m = senders.

    Senders are all heads of earlier layers unless given. Raises InputError for a receiver in layer 0, a sender that is
    not before the receiver, and for architectures whose attention does not go through the interface of transformers."""
    model.require(*ADDITIVE, *REPLAYED, *READ_OFF, "attention_edits", "attention_rows", for_what="paths between heads")
    tokens = check_pairs(model, ids, donors, tokens, run)
    layer, head = receiver
    if through not in THROUGH or then not in ("total", "direct"):
        raise InputError(f"A path goes through q, k or v and ends in total or direct, not '{through}' and '{then}'.")
    if not (0 < layer < model.n_layers and 0 <= head < model.n_heads):
        raise InputError(f"The receiver {layer}.{head} has no earlier head, or does not exist in {model.name}.")
    chosen = [pair for pair in model.heads() if pair[0] < layer] if senders is None else list(senders)
    if not chosen or any(not (0 <= at < layer and 0 <= h < model.n_heads) for at, h in chosen):
        raise InputError(f"Senders must be heads of layers 0 to {layer - 1}, before the receiver {layer}.{head}.")

    def compute(rows: list[int], _first: bool) -> tuple[torch.Tensor, ...]:
        (row,) = rows
        mine = run.for_prompts(rows)
        z = _receiver_outputs(model, ids[row], donors[row], receiver, through, chosen, mine)
        if then == "direct":
            return direct_scores(model, [ids[row]], layer, head, z[None], tokens[[row]], mine)
        jobs = [Injection(layer, head, one[None]) for one in z]
        return injected(model, [ids[row]], jobs, tokens[[row]], mine)

    return gather(len(ids), [[i] for i in range(len(ids))], compute, run)


def _receiver_outputs(
    model, row, donor, receiver: Head, through: str, senders: Sequence[Head], run: Pass
) -> torch.Tensor:
    """z of the receiver at the last position under each sender's path, [senders, d_head]."""
    layer, head = receiver
    earlier = sorted({at for at, _ in senders})
    wanted = [Site("head_out", at) for at in earlier]
    base, other = (
        next(stream(model, [source], wanted, positions="all", edits=run.edits))[1] for source in (row, donor)
    )
    call: list[tuple[tuple, dict]] = []
    block = model.anatomy.blocks[layer].block
    handle = before(block, lambda _m, args, kwargs: call.append((args, kwargs)))
    try:
        with apply(model, run.edits):
            model.forward(grid(model, [row]), last_logits=True)
    finally:
        handle.remove()
    args, kwargs = call[-1]
    entering = hidden_argument(args, kwargs)  # [1, T, width]
    added = []
    for at, site in zip(earlier, wanted):
        wide = torch.promote_types(base[site].dtype, torch.float32)
        delta = writes(model, at, base[site], other[site].to(wide) - base[site].to(wide))  # [T, H, width]
        added += [((at, h), delta[:, h].to(entering.device)) for s, h in senders if s == at]
    lookup = dict(added)
    # row 0 is the unpatched stream; the others hold one sender's path each
    streams = torch.cat(
        [entering, torch.stack([(entering[0].to(lookup[s].dtype) + lookup[s]).to(entering.dtype) for s in senders])]
    )

    seen: dict[str, torch.Tensor] = {}

    def mix(weights: torch.Tensor, start: int, weigh) -> torch.Tensor:
        """Rows of attention from the right query and keys; v: everybody looks as the unpatched head does."""
        rows = torch.arange(start, start + weights.shape[2], device=weights.device)
        kept = weigh.query, weigh.key
        if through == "q":
            weigh.key = kept[1][:1].expand_as(kept[1])
        elif through == "k":
            weigh.query = kept[0][:1].expand_as(kept[0])
        else:
            weigh.query, weigh.key = (t[:1].expand_as(t) for t in kept)
        new = weigh.rows(rows)
        weigh.query, weigh.key = kept
        seen["weights"] = torch.cat([seen["weights"], new], 2) if start else new
        return new

    def z_of(hidden: torch.Tensor, change) -> torch.Tensor:
        """z of the receiver at the last position for every row of `hidden`, attending with `change`."""
        position = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
        many = run.for_prompts([0] * len(hidden))
        out: list[torch.Tensor] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(apply(model, many.edits))
            stack.enter_context(attention_edit(model, layer, change))
            take = before(model.o_proj(layer), lambda _m, a, k: out.append(hidden_argument(a, k)))
            stack.callback(take.remove)
            here = PassPositions(position, torch.ones_like(position, dtype=torch.bool), position)
            stack.enter_context(running(here))
            old = hidden_argument(args, kwargs)
            first_tensor(
                block(
                    *(hidden if a is old else a for a in args),
                    **{k: hidden if v is old else v for k, v in kwargs.items()},
                )
            )
        return out[-1].reshape(*hidden.shape[:2], model.n_heads, model.d_head)[:, -1, head]

    z = z_of(streams, mix)
    if through == "v":
        return z[1:]
    # the patched rows of attention, over the unpatched values
    weights = seen["weights"]
    return z_of(entering.expand_as(streams), lambda w, start, _: weights[:, :, start : start + w.shape[2]])[1:]
