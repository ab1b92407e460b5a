"""How much modules turn the residual stream: cosines between what goes into a module and what comes out, of every
token, from one pass in which nothing is kept but the stream that a module still has to be compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from probes.layer_redundancy.halves import HalfTexts
from workbench.core.context import Context
from workbench.core.errors import RunFailed
from workbench.engine.edits import apply
from workbench.engine.passes import READ, Pass, check_prompts
from workbench.models.batching import Batch, pad
from workbench.models.host_copies import arrivals, arriving
from workbench.models.model import Model
from workbench.models.recording import reading
from workbench.models.sinks import find_sinks
from workbench.models.sites import Site

# Sums over the tokens of a text: of 1 − cosine and how many tokens, of three choices of tokens; of the other numbers,
# over all tokens; change and scale over those at which there is a stream, which are counted.
SUMS = (
    "importance",
    "tokens",
    "importance_without_first",
    "tokens_without_first",
    "importance_without_sinks",
    "tokens_without_sinks",
    "norm_change",
    "scale",
    "null",
    "tokens_with_stream",
)
HELD = 8  # residual streams of a batch that are there at once, about


@dataclass(frozen=True)
class StreamPair:
    """The stream before a module and after it: `start` a state, `end` a state or, with `added`, what is added to the
    first."""

    component: str
    layer: int
    start: Site
    end: Site
    added: bool = False


@dataclass(frozen=True)
class TurnedTokens:
    """Of every token [B, T] float32: 1 − cosine of x and y, |y − x| / |x|, the c of the c·x nearest to y, and the
    cosine if y − x had its length and stood at a right angle to x; |x|."""

    importance: torch.Tensor
    norm_change: torch.Tensor
    scale: torch.Tensor
    null: torch.Tensor
    norms: torch.Tensor


def pair_of(model: Model, component: str, layer: int) -> StreamPair:
    """What a module is measured between. In blocks whose attention and MLP read the same stream, each is held against
    that stream. Raises InputError for a sub-layer that does more than add to the stream."""
    before, after = Site("resid_pre", layer), Site("resid_post", layer)
    if component == "block":
        return StreamPair(component, layer, before, after)
    model.require("stream_adds_up", for_what=f"the similarity of {component} {layer}", layers=[layer])
    if model.anatomy.blocks[layer].mid_reader is None:
        return StreamPair(
            component, layer, before, Site("attn_out" if component == "attention" else "mlp_out", layer), True
        )
    middle = Site("resid_mid", layer)
    return (
        StreamPair(component, layer, before, middle)
        if component == "attention"
        else StreamPair(component, layer, middle, after)
    )


def stretch_of(layer: int, size: int) -> StreamPair:
    """What `size` blocks from `layer` on are measured between."""
    return StreamPair("block", layer, Site("resid_pre", layer), Site("resid_post", layer + size - 1))


def turned(x: torch.Tensor, y: torch.Tensor, *, added: bool = False) -> TurnedTokens:
    """How y [B, T, d] lies to x (`added`: x + y does), in float32 whatever their dtype.

    1 − cosine is taken from the part of y − x that stands at a right angle to x, so that it is exact where y is x, and
    as exact where they are nearly alike. Of a zero vector the cosine is 0, as PyTorch has it, and 1 if both are."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y = x.to(wide), y.to(x.device, wide)
    change = y if added else y - x
    own = (x * x).sum(-1)
    length = own.clamp(min=torch.finfo(wide).tiny)
    along = (x * change).sum(-1) / length
    across = change - along[..., None] * x
    beside, scale = (across * across).sum(-1) / length, 1 + along  # sin² and cos, both times |y|² / |x|² and |y| / |x|
    size = scale * scale + beside  # |y|² / |x|²
    cosine = scale / size.clamp(min=torch.finfo(wide).tiny).sqrt()
    near = beside / size.clamp(min=torch.finfo(wide).tiny) / (1 + cosine.clamp(min=0))
    moved = (change * change).sum(-1)
    importance = torch.where(scale > 0, near, 1 - cosine)
    importance = torch.where((own == 0) | (size == 0), (moved > 0).to(wide), importance).clamp(0, 2)
    ratio = moved / length
    return TurnedTokens(importance, ratio.sqrt(), scale, (1 + ratio).rsqrt(), own.sqrt())


def measure(
    model: Model, texts: HalfTexts, pairs: Sequence[StreamPair], *, run: Pass, context: Context, label: str
) -> np.ndarray:
    """Sums over the tokens of every text, [pairs, texts, len(SUMS)] float64. Raises RunFailed where one is not
    finite."""
    found = np.empty((len(pairs), texts.n, len(SUMS)))
    done = 0
    for indices, sums in arrivals((indices, {"sums": sums}) for indices, sums in _streamed(model, texts, pairs, run)):
        found[:, indices] = sums["sums"].double().numpy()
        done += len(indices)
        context.count(prompts=len(indices), tokens=sum(len(texts.ids[i]) for i in indices), forwards=1)
        context.progress(done, texts.n, label)
    if not np.isfinite(found).all():
        bad, row = (int(i) for i in np.argwhere(~np.isfinite(found))[0][:2])
        raise RunFailed(
            f"The residual stream of {model.name} at {pairs[bad].start} is NaN or infinite on text {row + 1}; use "
            f"another dtype (bfloat16 or float32) or check its weights."
        )
    return found


def _streamed(
    model: Model, texts: HalfTexts, pairs: Sequence[StreamPair], run: Pass
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(texts of a batch, sums [pairs, B, len(SUMS)] where the model is)."""
    check_prompts(model, texts.ids, run)
    wanted = list(dict.fromkeys(site for pair in pairs for site in (pair.start, pair.end)))
    latest: list[torch.Tensor] = []

    def step(indices: list[int]) -> None:
        latest.clear()
        batch = pad([texts.ids[i] for i in indices], pad_id=model.pad_id, device=model.device)
        counted = _counted(batch, [texts.own[i] for i in indices])
        held: dict[Site, torch.Tensor] = {}
        sums: dict[int, torch.Tensor] = {}

        def note(site: Site, x: torch.Tensor) -> None:
            for number, pair in enumerate(pairs):
                if pair.end == site:
                    sums[number] = _sums(turned(held[pair.start], x, added=pair.added), batch, counted)
            for start in [s for s in held if not any(p.start == s and n not in sums for n, p in enumerate(pairs))]:
                del held[start]
            if any(pair.start == site for pair in pairs):
                held[site] = x.clone()

        with torch.no_grad(), apply(model, run.for_prompts(indices).edits), reading(model, wanted, batch, note):
            model.forward(batch)
        latest.append(torch.stack([sums[number].to(model.device) for number in range(len(pairs))]))

    lengths = [len(ids) for ids in texts.ids]
    held = HELD + max(pair.end.layer - pair.start.layer for pair in pairs)  # stretches that begin before one ends
    tokens = model.planned_tokens(READ, longest=max(lengths), captured=max(lengths) * held * model.width)
    rows = model.rows_at_once(lengths, run.max_rows or 256)
    for indices in run.batches(lengths, step, tokens=tokens, rows=rows):
        yield indices, latest[0]


def _counted(batch: Batch, own: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Which tokens [B, T] are the texts' own."""
    starts, ends = arriving(torch.tensor(own, dtype=torch.long), batch.ids.device).T
    at = batch.position_ids
    return batch.mask & (at >= starts[:, None]) & (at < ends[:, None])


def _sums(found: TurnedTokens, batch: Batch, counted: torch.Tensor) -> torch.Tensor:
    """[B, len(SUMS)] of one pair."""
    device = found.importance.device
    all_of, first = counted.to(device), (batch.position_ids == 0).to(device)
    sinks = find_sinks(found.norms, batch.mask, counted)
    columns = []
    for chosen in (all_of, all_of & ~first, all_of & ~sinks):
        columns += [_total(found.importance, chosen), chosen.sum(1).to(found.importance.dtype)]
    there = all_of & (found.norms > 0)  # beside nothing, no change has a size
    columns += [_total(found.norm_change, there), _total(found.scale, there), _total(found.null, all_of)]
    columns += [there.sum(1).to(found.importance.dtype)]
    return torch.stack(columns, 1)


def _total(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return torch.where(chosen, x, torch.zeros_like(x)).sum(1)


def pass_of(model: Model, max_tokens: int, context: Context, *edits: object) -> Pass:
    """How the texts of this probe are run, with what is dropped."""
    run = Pass(edits=context.edits, max_tokens=model.tokens_at_once(max_tokens), check=context.check)
    return replace(run, edits=(*run.edits, *edits))
