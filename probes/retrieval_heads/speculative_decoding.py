"""Greedy continuations read step by step: shared prefixes, guessed answers checked in one block, attention reduced on
the device.

Decoding token by token spends most of its time on tokens that could have been foreseen. Here the caller guesses the
continuation (for a needle: the needle). One pass over prompt and guess gives the model's own choice at every position;
as far as the guess is what the model chooses, all those steps are done, with the attention rows that step-by-step
decoding would have seen. From the first difference on, decoding goes token by token. The emitted tokens are those of
plain greedy decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from workbench.core.errors import InputError
from workbench.engine.kv_cache import Cached, feed, merge, prefill
from workbench.engine.sampling import likeliest
from workbench.models.attention import observe
from workbench.models.model import Model
from workbench.models.running_pass import positions

FAR = 2.0**23  # beyond every token position, which float32 holds exactly up to here


@dataclass
class Step:
    """One emitted token; `reading` [layers, H, 3] float32 as of `reader`, None when nothing was observed."""

    token: int
    reading: torch.Tensor | None


def reader(model: Model, spans: torch.Tensor) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Reduction of attention rows [B, H, R, S] to [B, H, R, 3]: the position that each head attends to most, its mass
    on the span, whether the maximum is tied; ties go to the lowest position.

    `spans` [B, K]: the token positions whose mass is summed, -1 for none."""

    # where the pass in progress has its tokens, and where its keys and spans are: the same for every layer
    known: list = [None, None]

    def places(S: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Position of each key [B, S]; key column of each span position [B, K], 0 where there is none; whether there is
        one [B, K]."""
        here = positions()
        if known[0] is not here or known[1][0].shape[1] != S:
            keys = here.columns_of_keys(S)
            wanted = spans.to(keys.device)
            match = (keys[:, None] == wanted[:, :, None]) & (wanted >= 0)[:, :, None]  # [B, K, S]
            known[:] = here, (keys, match.to(torch.uint8).argmax(-1), match.any(-1))
        return known[1]

    def reduce(_layer: int, weights: torch.Tensor) -> torch.Tensor:
        keys, columns, there = (t.to(weights.device) for t in places(weights.shape[-1]))
        on_span = weights.gather(-1, columns[:, None, None].expand(*weights.shape[:3], -1))
        mass = (on_span * there[:, None, None]).sum(-1)
        # arithmetic instead of `max` and `==`, which are many times slower on a CPU; exact, as positions are small
        # whole numbers
        below = weights.sub_(weights.amax(-1, keepdim=True)).sign_()  # 0 at a maximum, else −1; padding weighs nothing
        tied = below.sum(-1) > 1 - weights.shape[-1]
        place = -below.mul_(FAR).sub_(keys[:, None, None]).amax(-1)  # the lowest position of equal ones
        return torch.stack([place, mass, tied.float()], -1)

    return reduce


@dataclass(eq=False)
class Begun:
    """Continuations after their first pass: what every row emitted so far, whether it is complete, and the past of
    those that are not."""

    past: Cached | None
    steps: list[list[Step]]
    done: list[bool]
    spans: torch.Tensor | None  # [B, K]

    @property
    def columns(self) -> int:
        """Tokens that are held for the rows that go on, padding included."""
        return 0 if self.past is None else self.past.past.mask.numel()


def greedy_steps(
    model: Model,
    before: Cached | None,
    rows: Sequence[Sequence[int]],
    guesses: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Callable[[Sequence[int]], bool],
    spans: torch.Tensor | None = None,
    check: Callable[[], None] | None = None,
) -> list[list[Step]]:
    """Greedy continuation of every row: `rows` are fed after `before` (not changed; None: nothing was fed yet), each
    ends with the prompt's last token.

    `guesses` are what each row may continue with; wrong or empty guesses cost time, never change a token. With `spans`
    [B, K] every step carries its attention reading. A row ends where `stops` is true of what it emitted so far, or
    after `max_new_tokens`. Where attention slides over a window, guesses are not used: a window counts columns, and
    wrong guesses would stand inside it. Raises InputError for rows of different lengths after a prefix on such a
    model."""
    begun = begin(model, before, rows, guesses, max_new_tokens=max_new_tokens, stops=stops, spans=spans)
    return go_on(model, [begun], max_new_tokens=max_new_tokens, stops=stops, check=check)


def begin(
    model: Model,
    before: Cached | None,
    rows: Sequence[Sequence[int]],
    guesses: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Callable[[Sequence[int]], bool],
    spans: torch.Tensor | None = None,
    use_up: bool = False,
) -> Begun:
    """The first pass of `greedy_steps`: prompts and guesses in one block, as far as the guesses are what the model
    chooses.

    With `use_up`, `before` grows where it is, and what is kept of it is a copy: its memory is free for what comes
    next."""
    B = len(rows)
    if model.sliding:
        guesses = [()] * B
        if before is not None and len({len(row) for row in rows}) > 1:
            raise InputError(
                f"{model.name} attends over a window of columns: rows that continue a prefix must have the same length."
            )
    past = before if use_up or before is None else before.fork()
    guesses = [list(g)[: max_new_tokens - 1] for g in guesses]
    widest = max(len(g) for g in guesses)
    if spans is not None and not model.attention_interface and min(len(row) for row in rows) > 1:
        # rows are read from full maps there, queries × keys: only the queries that are wanted go through one
        past = prefill(model, [row[:-1] for row in rows], past)
        rows = [row[-1:] for row in rows]

    # the rows read are those of the prompt's last token and of every guessed one
    ends = torch.tensor([len(r) for r in rows], device=model.device) - 1  # position of each prompt's last token
    if past is not None:
        ends = ends + torch.where(past.past.mask, past.past.position_ids + 1, 0).amax(1)
    offsets = torch.arange(widest + 1, device=model.device)
    lengths = torch.tensor([len(g) for g in guesses], device=model.device)
    # [B, R], the last repeated where a guess is shorter
    wanted = ends[:, None] + torch.minimum(offsets[None], lengths[:, None])
    with observe(model, reader(model, spans), rows=wanted) if spans is not None else nullcontext({}) as seen:
        past, logits = feed(model, [list(r) + g for r, g in zip(rows, guesses)], past, last_logits=widest + 1)
    # column -1 is the last guessed token of every row
    chosen = likeliest(logits, model.name, last=[len(g) + 1 for g in guesses]).tolist()
    readings = _stacked(model, seen)  # [B, layers, H, R, 3]
    steps, done, wrong = _as_far_as_guessed(chosen, guesses, readings, max_new_tokens=max_new_tokens, stops=stops)
    size = past.past.mask.shape[1]
    real = past.past.real & (torch.arange(size) < size - torch.tensor(wrong)[:, None])
    past = Cached(past.cache, replace(past.past, mask=real.to(model.device), real=real))
    going = [b for b in range(B) if not done[b]]
    return Begun(past if len(going) == B and not use_up else past.pick(going) if going else None, steps, done, spans)


def _as_far_as_guessed(
    chosen: list[list[int]],
    guesses: list[list[int]],
    readings: torch.Tensor | None,
    *,
    max_new_tokens: int,
    stops: Callable[[Sequence[int]], bool],
) -> tuple[list[list[Step]], list[bool], list[int]]:
    """Of every row: the steps up to the first choice that was not guessed, whether it is complete, and how many of its
    guessed tokens the model did not choose."""
    steps, done, wrong = [], [], []
    for b, guess in enumerate(guesses):
        row, complete, matched = [], False, 0
        for k, token in enumerate(chosen[b][-len(guess) - 1 :]):
            row.append(Step(token, readings[b, :, :, k] if readings is not None else None))
            if stops([*guess[:k], token]) or len(row) >= max_new_tokens:
                complete = True
                break
            if k == len(guess) or token != guess[k]:
                break
            matched += 1
        steps.append(row)
        done.append(complete)
        wrong.append(len(guess) - matched)
    return steps, done, wrong


def go_on(
    model: Model,
    begun: Sequence[Begun],
    *,
    max_new_tokens: int,
    stops: Callable[[Sequence[int]], bool],
    check: Callable[[], None] | None = None,
) -> list[list[Step]]:
    """The rest of `greedy_steps`, token by token, all rows of all `begun` together: their steps, in order. The pasts
    are used up.

    Rows that are done leave, so that none grows beyond its answer. Where attention slides over a window, one `begun` at
    a time."""
    steps, done = [row for b in begun for row in b.steps], [row for b in begun for row in b.done]
    emitted = [[step.token for step in row] for row in steps]
    rows_left = [k for k, complete in enumerate(done) if not complete]
    if not rows_left:
        return steps
    past, spans = merge([b.past for b in begun if b.past is not None]), None
    for b in begun:
        b.past = None  # or they would be held twice while this goes on
    if begun[0].spans is not None:
        width = max(b.spans.shape[1] for b in begun)
        widened = [torch.nn.functional.pad(b.spans, (0, width - b.spans.shape[1]), value=-1) for b in begun]
        spans = torch.cat(widened)[rows_left]
    while not all(done):
        if check is not None:
            check()
        if any(done[b] for b in rows_left):
            staying = [k for k, b in enumerate(rows_left) if not done[b]]
            rows_left = [rows_left[k] for k in staying]
            past = past.pick(staying)
            spans = spans[staying] if spans is not None else None
        with observe(model, reader(model, spans), rows="last") if spans is not None else nullcontext({}) as seen:
            past, logits = feed(model, [[steps[b][-1].token] for b in rows_left], past)
        tokens = likeliest(logits[:, -1], model.name).tolist()
        readings = _stacked(model, seen)
        for k, b in enumerate(rows_left):
            steps[b].append(Step(tokens[k], readings[k, :, :, 0] if readings is not None else None))
            emitted[b].append(tokens[k])
            done[b] = stops(emitted[b]) or len(steps[b]) >= max_new_tokens
    return steps


def _stacked(model: Model, seen: dict[int, torch.Tensor]) -> torch.Tensor | None:
    """Readings of all layers on the CPU, [B, layers, H, R, 3], in one transfer."""
    if not seen:
        return None
    device = seen[0].device
    return torch.stack([seen[layer].to(device) for layer in range(model.n_layers)], 1).cpu()
