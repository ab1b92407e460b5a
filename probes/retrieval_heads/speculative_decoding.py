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
from workbench.engine.one_by_one import DecodedRows, steps_between_looks
from workbench.engine.sampling import check_steps, likeliest_unchecked
from workbench.models.attention import observe_stacked, of_layers
from workbench.models.batching import sent
from workbench.models.model import Model
from workbench.models.query_rows import Queries
from workbench.models.running_pass import positions

FAR = 2.0**23  # beyond every token position, which float32 holds exactly up to here


@dataclass
class Step:
    """One emitted token; `reading` [layers, H, 3] float32 as of `reader`, None when nothing was observed."""

    token: int
    reading: torch.Tensor | None


def reader(spans: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Reduction of attention rows [n, B, H, R, S] of n layers to [n, B, H, R, 3]: the position that each head attends
    to most, its mass on the span, whether the maximum is tied; ties go to the lowest position.

    `spans` [B, K]: the token positions whose mass is summed, -1 for none."""

    def places(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Position of each key [B, S]; key column of each span position [B, K], 0 where there is none; whether there is
        one [B, K]."""
        keys = positions().columns_of_keys(size).to(device)
        wanted = spans.to(device)
        match = (keys[:, None] == wanted[:, :, None]) & (wanted >= 0)[:, :, None]  # [B, K, S]
        return keys, match.to(torch.uint8).argmax(-1), match.any(-1)

    def reduce(weights: torch.Tensor) -> torch.Tensor:
        size, device = weights.shape[-1], weights.device
        keys, columns, there = positions().once((id(spans), size, device), lambda: places(size, device))
        on_span = weights.gather(-1, columns[:, None, None].expand(*weights.shape[:4], -1))
        mass = (on_span * there[:, None, None]).sum(-1)
        # arithmetic instead of `max` and `==`, which are many times slower on a CPU; exact, as positions are small
        # whole numbers
        below = weights.sub_(weights.amax(-1, keepdim=True)).sign_()  # 0 at a maximum, else −1; padding weighs nothing
        tied = below.sum(-1) > 1 - size
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

    # the rows read are those of the prompt's last token and of every guessed one, which are the last columns; where a
    # guess is shorter, more of the prompt or of the padding before it
    with _observed(model, spans, slice(-1 - widest, None)) as seen:
        past, logits = feed(model, [list(r) + g for r, g in zip(rows, guesses)], past, last_logits=widest + 1)
    (lengths,) = sent([torch.tensor([len(g) + 1 for g in guesses])], logits.device)
    chosen, readings = _said(
        model, _marked(*likeliest_unchecked(logits, last=lengths)), of_layers(seen, 1) if seen else None
    )
    steps, done, wrong = _as_far_as_guessed(chosen, guesses, readings, max_new_tokens=max_new_tokens, stops=stops)
    going = [b for b in range(B) if not done[b]]
    if not going:
        return Begun(None, steps, done, spans)
    real = past.past.real.clone()
    for row, many in zip(real, wrong):
        row[len(row) - many :] = False
    (there,) = sent([real.long()], model.device)
    past = Cached(past.cache, replace(past.past, mask=there.bool(), real=real))
    return Begun(past if len(going) == B and not use_up else past.pick(going), steps, done, spans)


def _as_far_as_guessed(
    chosen: list[list[int]],
    guesses: list[list[int]],
    readings: torch.Tensor | None,
    *,
    max_new_tokens: int,
    stops: Callable[[Sequence[int]], bool],
) -> tuple[list[list[Step]], list[bool], list[int]]:
    """Of every row: the steps up to the first choice that was not guessed, whether it is complete, and how many of its
    guessed tokens the model did not choose. `chosen` and `readings` [B, layers, H, R, 3] are of the last columns."""
    steps, done, wrong = [], [], []
    for b, guess in enumerate(guesses):
        row, complete, matched = [], False, 0
        first = len(chosen[b]) - len(guess) - 1
        for k, token in enumerate(chosen[b][first:]):
            row.append(Step(token, readings[b, :, :, first + k] if readings is not None else None))
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

    Rows that are done leave, so that none grows beyond its answer. On an accelerator the host looks at what was chosen
    every few steps only, and drops what a row was made to write beyond its end. Where attention slides over a window,
    one `begun` at a time."""
    steps, done = [row for b in begun for row in b.steps], [row for b in begun for row in b.done]
    emitted = [[step.token for step in row] for row in steps]
    going = [k for k, complete in enumerate(done) if not complete]
    if not going:
        return steps
    past, spans = merge([b.past for b in begun if b.past is not None]), None
    for b in begun:
        b.past = None  # or they would be held twice while this goes on
    if begun[0].spans is not None:
        width = max(b.spans.shape[1] for b in begun)
        widened = [torch.nn.functional.pad(b.spans, (0, width - b.spans.shape[1]), value=-1) for b in begun]
        (index,) = sent([torch.tensor(going)], widened[0].device)
        spans = torch.cat(widened)[index]
    rows = _going_on(model, past, max_new_tokens - min(len(steps[b]) for b in going))
    del past
    while True:
        # no row comes to positions beyond its answer, which the model may not have
        room = max_new_tokens - max(len(steps[b]) for b in going)
        count = min(room, steps_between_looks(model.device))
        chosen, readings = _steps(rows, [emitted[b][-1] for b in going], spans, count, check)
        for k, b in enumerate(going):
            for t in range(count):
                steps[b].append(Step(chosen[k][t], readings[t, k, :, :, 0] if readings is not None else None))
                emitted[b].append(chosen[k][t])
                done[b] = stops(emitted[b]) or len(steps[b]) >= max_new_tokens
                if done[b]:
                    break
        staying = [k for k, b in enumerate(going) if not done[b]]
        if not staying:
            return steps
        if len(staying) < len(going):
            index, going = rows.select(staying), [going[k] for k in staying]
            spans = spans[index.to(spans.device)] if spans is not None else None


def _going_on(model: Model, past: Cached, room: int) -> DecodedRows:
    """The rows of a past, to be continued by up to `room` tokens. The past is used up."""
    rows = DecodedRows(model, past.past, room)
    rows.cache, rows.columns = past.cache, rows.width
    return rows


def _steps(
    rows: DecodedRows,
    last: Sequence[int],
    spans: torch.Tensor | None,
    count: int,
    check: Callable[[], None] | None,
) -> tuple[list[list[int]], torch.Tensor | None]:
    """`count` tokens after the `last` token of every row, chosen and fed back on the device: the tokens [B][count], and
    their readings [count, B, layers, H, 1, 3]."""
    model = rows.model
    (tokens,) = sent([torch.tensor(last)], model.device)
    chosen, found = [], []
    for _ in range(count):
        if check is not None:
            check()
        with torch.no_grad(), _observed(model, spans, "last") as seen:
            scores = rows.feed(tokens)
        tokens, fault = (x.to(model.device) for x in likeliest_unchecked(scores))
        chosen.append(_marked(tokens, fault))
        found.append(of_layers(seen, 1) if seen else None)
    readings = None if found[0] is None else torch.stack(found)
    return _said(model, torch.stack(chosen, 1), readings)


def _observed(model: Model, spans: torch.Tensor | None, rows: Queries):
    """Passes whose attention rows are read where there are spans: what was seen, by layer."""
    return nullcontext({}) if spans is None else observe_stacked(model, reader(spans), rows=rows)


def _marked(tokens: torch.Tensor, faults: torch.Tensor) -> torch.Tensor:
    """Tokens, -1 where the scores they were chosen by are no numbers."""
    return torch.where(faults.isnan(), -1, tokens)


def _said(
    model: Model, tokens: torch.Tensor, readings: torch.Tensor | None
) -> tuple[list[list[int]], torch.Tensor | None]:
    """Marked tokens and readings on the host, for one wait: what is sent first is there when the tokens are. Raises
    RunFailed for a token that is marked."""
    if readings is not None:
        readings = readings.to(tokens.device).to("cpu", non_blocking=True)
    chosen = tokens.tolist()
    if any(token < 0 for row in chosen for token in row):
        check_steps(torch.tensor(torch.nan), model.name)
    return chosen, readings
