"""What every layer selects, from one pass over every prompt: the last query and the keys of all layers.

The haystack before the needles is read once for all prompts, the rest of a prompt in blocks, its last token alone, and
no attention map is held: of every layer the product of one query with the keys is read. With the answer's tokens after
the prompt the same pass says which heads would copy them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from probes.token_filter.config import Config
from probes.token_filter.trials import FilterTrials
from workbench.core.context import Context
from workbench.engine.edits import apply
from workbench.engine.kv_cache import Cached, feed, prefill
from workbench.engine.token_selection import (
    UNSEEN,
    check_finite,
    forced_mask,
    observe_token_scores,
    pooled,
    ranked,
)
from workbench.models.attention import observe_stacked, of_layers
from workbench.models.batching import batches, halving, sent
from workbench.models.model import Model
from workbench.models.needle_prompts import Trial
from workbench.models.running_pass import positions

PART = 64  # trials that are measured and saved together, where they begin in several places


@dataclass(frozen=True, eq=False)
class Selections:
    """Of every trial: `orders`, each [layers, m] int64, the positions that a layer ranks first, best first, -1 from
    where it sees no more (m: the most that are kept, and the needle); `seen` [trials, layers], how many tokens the last
    query sees; `copying` [trials, layers, H] float64, the share of the answer's tokens that a head would copy, None
    where it was not asked for."""

    orders: list[np.ndarray]
    seen: np.ndarray
    copying: np.ndarray | None

    def kept(self, trial: int, layer: int, k: int, without: tuple[int, int] | None = None) -> np.ndarray:
        """The positions that a layer keeps of a trial, ascending; `without`: tokens [start, end) that it may not."""
        order = self.orders[trial][layer]
        order = order[order >= 0]
        if without is not None:
            order = order[(order < without[0]) | (order >= without[1])]
        return np.sort(order[:k])


class SharedHaystack:
    """Keys and values of what prompts begin with, computed when first needed and cut for each group; never for the
    remaining trials only, as a run that was stopped would round otherwise when it goes on."""

    def __init__(self, model: Model, tokens: list[int]):
        self.model, self.tokens, self.cached = model, tokens, None

    def upto(self, length: int, copies: int) -> Cached | None:
        """Of the first `length` tokens, for a batch of `copies` rows; None for length 0."""
        if length == 0:
            return None
        if self.cached is None:
            self.cached = prefill(self.model, [self.tokens], None)
        return self.cached.first(length).fork(copies)


def select(model: Model, config: Config, context: Context, found: FilterTrials) -> Selections:
    """What all layers select in all trials, part by part."""
    trials, beginning = found.trials, SharedHaystack(model, found.beginning)
    context.count(tokens=len(found.beginning), forwards=1)  # here: a resumed run counts it once too
    orders: dict[int, np.ndarray] = {}
    seen = np.zeros((len(trials), model.n_layers), np.int64)
    copying = np.zeros((len(trials), model.n_layers, model.n_heads)) if config.retrieval == "answer" else None
    for number, rows in enumerate(parts(model, trials, config.max_tokens)):
        context.progress(len(orders), len(trials), "prompts")
        part = context.part(
            f"selections-{number}", lambda rows=rows: _part(model, config, context, found, beginning, rows)
        )
        for i, order, visible in zip(rows, part["order"], part["seen"]):
            most = min(most_of(found, trials[i]), len(trials[i].ids))
            orders[i], seen[i] = order[:, :most].astype(np.int64), visible
        if copying is not None:
            copying[rows] = part["copying"]
    context.progress(len(trials), len(trials), "prompts")
    return Selections([orders[i] for i in range(len(trials))], seen, copying)


def most_of(found: FilterTrials, trial: Trial) -> int:
    """How many positions are ranked: the most that are kept, with the needle and without it."""
    start, end = found.needle_span(trial)
    return max(found.ks) + end - start


def places(model: Model, trials: Sequence[Trial], max_tokens: int) -> list[list[int]]:
    """Trials that are read together: needles at the same place, of about the same length; where attention slides over
    columns of the same length, with answers of the same length, as a window may hold no padding."""
    by_place: dict[tuple, list[int]] = defaultdict(list)
    for i, trial in enumerate(trials):
        sizes = (len(trial.ids), trial.span[1] - trial.span[0]) if model.sliding else ()
        by_place[-trial.shared, *sizes].append(i)
    out = []
    for _, rows in sorted(by_place.items()):
        for batch in batches([len(trials[i].ids) for i in rows], max_tokens=max_tokens):
            out.append([rows[k] for k in batch])
    return out


def parts(model: Model, trials: Sequence[Trial], max_tokens: int) -> list[list[int]]:
    """Trials that are saved together: those of a place, small neighbours together."""
    out: list[list[int]] = []
    for place in places(model, trials, max_tokens):
        if out and len(out[-1]) + len(place) <= PART:
            out[-1] = [*out[-1], *place]
        else:
            out.append(place)
    return out


def _part(
    model: Model, config: Config, context: Context, found: FilterTrials, beginning: SharedHaystack, rows: Sequence[int]
) -> dict[str, np.ndarray]:
    """`order` [rows, layers, m], `seen` [rows, layers] and `copying` [rows, layers, H] of some trials."""
    read: dict[int, tuple[np.ndarray, ...]] = {}
    with apply(model, context.edits):
        for place in places(model, [found.trials[i] for i in rows], config.max_tokens):
            some = [rows[k] for k in place]
            for own, arrays in halving(
                some, lambda few: _read(model, config, found, [found.trials[i] for i in few], beginning), context.check
            ):
                context.count(prompts=len(own), forwards=1)
                context.count(tokens=sum(len(found.trials[i].ids) - found.trials[i].shared for i in own))
                read.update(zip(own, zip(*arrays)))
    most = max(read[i][0].shape[-1] for i in rows)
    order = np.full((len(rows), model.n_layers, most), -1, np.int32)
    for k, i in enumerate(rows):
        order[k, :, : read[i][0].shape[-1]] = read[i][0]
    out = {"order": order, "seen": np.stack([read[i][1] for i in rows])}
    return out | ({"copying": np.stack([read[i][2] for i in rows])} if config.retrieval == "answer" else {})


def _read(
    model: Model, config: Config, found: FilterTrials, trials: Sequence[Trial], beginning: SharedHaystack
) -> tuple[np.ndarray, ...]:
    """Orders [B, layers, m], tokens seen [B, layers] and copying [B, layers, H] (of no heads where it is not asked for)
    of trials of one place, in one pass."""
    shared, width = trials[0].shared, max(len(t.ids) for t in trials)
    answers = [t.ids[slice(*t.span)] if config.retrieval == "answer" else () for t in trials]
    longest = max(map(len, answers))
    past = prefill(
        model,
        [t.ids[shared:-1] for t in trials],
        beginning.upto(shared, len(trials)),
        room=1 + longest,
    )
    rows = [[t.ids[-1], *answer[:-1]] for t, answer in zip(trials, answers)]
    last = torch.tensor([[len(t.ids) - 1] for t in trials])
    copied: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        scores = stack.enter_context(observe_token_scores(model, width, rows=last, score=config.score))
        if longest:
            asked = torch.tensor(
                [[p + min(j, len(a) - 1) for j in range(longest)] for p, a in zip(last[:, 0].tolist(), answers)]
            )
            copied = stack.enter_context(
                observe_stacked(model, _copies(trials, answers, width, longest, model.device), rows=asked)
            )
        feed(model, rows, past)
    together = of_layers(scores, 1)  # [B, layers, width]
    check_finite(model, together, range(model.n_layers))
    forced = forced_mask([found.always(t) for t in trials], width, together.device)
    order = ranked(
        pooled(together, config.kernel),
        max(most_of(found, t) for t in trials),
        forced=None if forced is None else forced[:, None].expand_as(together),
    )
    visible = (together != UNSEEN).sum(-1)
    heads = of_layers(copied, 1).double().cpu().numpy() if longest else np.zeros((len(trials), model.n_layers, 0))
    return order.cpu().numpy(), visible.cpu().numpy(), heads


def _copies(
    trials: Sequence[Trial], answers: Sequence[Sequence[int]], width: int, longest: int, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Reduction of attention rows [n, B, H, R, S] to [n, B, H]: the share of the answer's tokens for which the most
    attended token lies in the answer's span and is the token that follows; row r is the one before the answer's r-th
    token."""
    spans = torch.full((len(trials), width + 1), -1, dtype=torch.long)  # tokens of the span, by position
    wanted = torch.full((len(trials), longest), -2, dtype=torch.long)
    for b, (trial, answer) in enumerate(zip(trials, answers)):
        spans[b, trial.span[0] : trial.span[1]] = torch.tensor(answer)
        wanted[b, : len(answer)] = torch.tensor(answer)
    sizes = torch.tensor([[len(answer)] for answer in answers])
    spans, wanted, sizes = sent([spans, wanted, sizes], device)

    def reduce(weights: torch.Tensor) -> torch.Tensor:
        here = weights.device
        at = positions().columns_of_keys(weights.shape[-1]).to(here)
        at = torch.where((at < 0) | (at > width), width, at)
        tokens = spans.to(here).gather(1, at)  # [B, S], -1 outside the span
        best = weights.argmax(-1)  # [n, B, H, R]
        n, B, H, R = best.shape
        attended = tokens[None, :, None].expand(n, B, H, -1).gather(3, best)
        hits = (attended == wanted.to(here)[None, :, None]).sum(-1)
        return hits / sizes.to(here)[None]

    return reduce
