"""Batched decoding of the plain model with a key/value cache: greedy, and sampling with the statistics of every step.

Prompts of one batch are padded on the left, the samples of a prompt share one pass over it, and rows that have finished
leave the batch. Generated ids end with the token that stopped them (EOS, a stop id, or the token that completed a stop
string), as Hugging Face `generate` returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.engine.draws import row_keys, step_keys
from workbench.engine.edits import apply
from workbench.engine.passes import DECODE, SAMPLE, Pass, check_prompts, with_pass
from workbench.engine.sampling import FIELDS, Rule, check_steps, likeliest, step
from workbench.models.batching import Batch, pad
from workbench.models.model import Model
from workbench.models.sites import Site

PHASES = ("all", "prefill", "decode")
FINISH = ("length", "eos", "stop", "context")  # why a row ended; `Samples.finish` holds indices into it


@dataclass(eq=False)
class _Rows:
    """Rows being continued: the key/value cache and what its columns hold (left-padded)."""

    model: Model
    cache: DynamicCache
    past: Batch | None = None

    @property
    def _fed(self) -> Batch:
        """What the columns hold, once a batch was fed."""
        assert self.past is not None
        return self.past

    def feed(self, batch: Batch) -> torch.Tensor:
        """Run `batch` after what is cached → scores of its last column [B, V], in the model's dtype."""
        # A cache turns the mask-free path off, so an all-real mask is only passed where the model needs one.
        scores = self.model.forward(batch, cache=self.cache, past=self.past, last_logits=True).logits[:, -1]
        self.past = batch if self.past is None else self.past.followed_by(batch)
        return scores

    def feed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Run one more token [B] per row → scores [B, V]."""
        return self.feed(_column(ids, self._fed.lengths))

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only (or repeat them): [k] indices into the batch."""
        past = self._fed
        layers: list[Any] = self.cache.layers  # of whatever kinds the architecture has
        for layer in layers:  # a model spread over several devices has its cache there too
            layer.batch_select_indices(rows.to(getattr(layer, "device", rows.device)))
        mask, position, ids = past.mask[rows], past.position_ids[rows], past.ids[rows]
        self.past = Batch(ids, mask, position, past.lengths[rows], "left")


def _column(ids: torch.Tensor, positions: torch.Tensor) -> Batch:
    """One token per row at the given positions, as a batch."""
    one = torch.ones_like(ids)
    return Batch(ids[:, None], one[:, None].bool(), positions[:, None], one, "left")


def _split_last(batch: Batch) -> tuple[Batch, Batch]:
    """A left-padded batch as everything but its last column, and the last column."""
    front = Batch(batch.ids[:, :-1], batch.mask[:, :-1], batch.position_ids[:, :-1], batch.lengths - 1, "left")
    return front, _column(batch.ids[:, -1], batch.lengths - 1)


@with_pass
def greedy(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    eos: bool = True,
    edit_phase: str = "all",
    run: Pass,
) -> list[list[int]]:
    """The most likely continuation of every prompt (token ids), in the order of the prompts.

    A row ends at EOS (unless `eos` is false), at one of `stop_ids`, once its text holds one of `stop_strings`, at
    `max_new_tokens` or at the end of the model's context; the token that ended it is its last. Edits are applied in
    `edit_phase`: "all" passes, "prefill" (the pass over the prompt) or "decode" (the steps that feed the last prompt
    token and then each generated one; the rest of the prompt is read unedited). Raises InputError for prompts and edits
    that do not fit."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; generate at least one token.")
    if edit_phase not in PHASES:
        raise InputError(f"'{edit_phase}' is no phase of generation; choose {', '.join(PHASES)}.")
    room = [_room(model, len(prompt), max_new_tokens) for prompt in prompts]
    check_prompts(model, prompts, run, room=None if edit_phase == "prefill" else room)
    if edit_phase == "decode":
        _check_decoded(run, prompts)
    ends = _Ends.of(model, stop_ids, stop_strings, eos)
    out: list[list[int]] = [[] for _ in prompts]
    # A prompt of one token has nothing to read before the first decoding step, so it cannot share a batch with longer
    # ones then.
    single = [i for i, prompt in enumerate(prompts) if edit_phase == "decode" and len(prompt) == 1]
    rest = sorted(set(range(len(prompts))) - set(single))
    for group in (single, rest):

        def compute(local: list[int], group: list[int] = group) -> None:
            rows = [group[k] for k in local]
            mine, reach = [prompts[i] for i in rows], [room[i] for i in rows]
            for i, ids in zip(rows, _greedy_batch(model, mine, reach, ends, edit_phase, run.for_prompts(rows))):
                out[i] = ids

        lengths = [len(prompts[i]) + room[i] for i in group]
        tokens = model.planned_tokens(DECODE, longest=max(lengths, default=1), caches=True)
        for _ in run.batches(lengths, compute, tokens=tokens):
            pass
    return out


def _check_decoded(run: Pass, prompts: Sequence[Sequence[int]]) -> None:
    """Raise InputError for an edit at a position that is read before decoding begins: it would change nothing."""
    for edit in run.edits:
        for position in getattr(edit, "positions", None) or ():
            for row, prompt in enumerate(prompts):
                if 0 <= position < len(prompt) - 1:
                    raise InputError(
                        f"Position {position} of prompt {row + 1} is read before decoding begins, so an edit there "
                        f"does nothing in edit_phase=decode; use all or prefill."
                    )


@torch.no_grad()
def _greedy_batch(model: Model, prompts: list, room: list[int], ends: _Ends, phase: str, run: Pass) -> list[list[int]]:
    rows = _Rows(model, DynamicCache(config=model.hf.config))
    batch = pad(prompts, pad_id=model.pad_id, side="left", device=model.device)
    alive = list(range(len(prompts)))
    written: list[list[int]] = [[] for _ in prompts]
    if phase == "decode":
        front, batch = _split_last(batch)
        if front.ids.shape[1]:
            rows.feed(front)
        else:
            rows.past = front
    with apply(model, run.edits):  # every phase edits this pass: in "decode" it is the first step
        scores = rows.feed(batch)
    while True:
        chosen = likeliest(scores, model.name)
        keep = []
        for k, (i, token) in enumerate(zip(alive, chosen.tolist())):
            written[i].append(token)
            if len(written[i]) < room[i] and not ends.reached(written[i]):
                keep.append(k)
        if not keep:
            return written
        if len(keep) < len(alive):
            alive = [alive[k] for k in keep]
            index = torch.tensor(keep, device=chosen.device)
            rows.select(index)
            chosen = chosen[index]
        run.asked()
        with apply(model, () if phase == "prefill" else run.for_prompts(alive).edits):
            scores = rows.feed_tokens(chosen)


@dataclass(frozen=True)
class _Ends:
    """What ends a row besides its length."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: Any  # of transformers; None where the model has none

    @classmethod
    def of(cls, model: Model, stop_ids: Sequence[int], stop_strings: Sequence[str], eos: bool) -> _Ends:
        if isinstance(stop_strings, str):
            stop_strings = (stop_strings,)
        if any(not s for s in stop_strings):
            raise InputError("A stop string is empty; it would end every text at once.")
        if stop_strings and model.tokenizer is None:
            raise InputError(f"Stop strings need a tokenizer, and the model {model.name} has none.")
        return cls(frozenset(stop_ids) | frozenset(model.eos_ids if eos else ()), tuple(stop_strings), model.tokenizer)

    def reached(self, ids: list[int]) -> bool:
        return ids[-1] in self.ids or (bool(self.strings) and self.string_reached(ids))

    def string_reached(self, ids: list[int]) -> bool:
        # One character can take up to four byte tokens, so this many tokens hold the longest stop string that ends
        # here.
        tail = ids[-(4 * max(map(len, self.strings)) + 8) :]
        text = self.tokenizer.decode(tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return any(s in text for s in self.strings)


def _room(model: Model, length: int, wanted: int) -> int:
    """How many tokens may follow a prompt of this length: the last one is never fed back, so it may lie just past the
    context."""
    return wanted if model.context_length is None else min(wanted, model.context_length - length + 1)


@dataclass(eq=False)
class Samples:
    """M continuations of each of P prompts, on the CPU; N is the length of the longest.

    ids [P, M, N] int64, -1 after the end; lengths [P, M] int64 (the token that ended a row counts); finish [P, M]
    int64, indices into FINISH; steps [P, M, N, len(FIELDS)] float32, NaN after the end."""

    ids: torch.Tensor
    lengths: torch.Tensor
    finish: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def empty(cls, prompts: int, samples: int, longest: int) -> Samples:
        """Room for samples of at most `longest` tokens."""
        shape = prompts, samples
        return cls(
            torch.full((*shape, longest), -1),
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape, dtype=torch.long),
            torch.full((*shape, longest, len(FIELDS)), torch.nan),
        )

    def put(self, prompt, sample, ids, steps, lengths, finish) -> None:
        """Write decoded rows: ids [R, N], steps [R, N, F], lengths and finish [R] of samples [R] of prompts [R]."""
        size = ids.shape[-1]
        self.ids[prompt, sample, :size], self.steps[prompt, sample, :size] = ids, steps
        self.lengths[prompt, sample], self.finish[prompt, sample] = lengths, finish

    def shortened(self) -> Samples:
        """Without the columns that no sample reaches."""
        longest = int(self.lengths.max())
        return Samples(self.ids[..., :longest], self.lengths, self.finish, self.steps[..., :longest, :])

    def statistic(self, name: str) -> torch.Tensor:
        """One of FIELDS, [P, M, N]."""
        return self.steps[..., FIELDS.index(name)]

    def tokens(self, prompt: int, sample: int) -> list[int]:
        """The generated ids of one sample."""
        return self.ids[prompt, sample, : self.lengths[prompt, sample]].tolist()


@with_pass
def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    rule: Rule | None = None,
    seed: int = 0,
    first: int = 0,
    prompt_keys: Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    eos: bool = True,
    run: Pass,
) -> Samples:
    """`samples` continuations of every prompt (token ids), with the statistics of every step under `rule`; those from
    number `first` on, so that more can be drawn later.

    Rows end as in `greedy`. What sample m of prompt p says depends on `seed`, its prompt's key (by default its place in
    `prompts`) and m, not on the batch it is computed in. At temperature 0 they are all the same, and one is decoded.
    Edits act on every pass. Raises InputError for prompts and edits that do not fit."""
    if samples < 1 or max_new_tokens < 1:
        raise InputError(f"samples is {samples} and max_new_tokens is {max_new_tokens}; both must be at least 1.")
    room = [_room(model, len(prompt), max_new_tokens) for prompt in prompts]
    check_prompts(model, prompts, run, room=room)
    keys = range(len(prompts)) if prompt_keys is None else prompt_keys
    ends = _Ends.of(model, stop_ids, stop_strings, eos)
    alike = rule is not None and rule.temperature == 0  # every sample is the likeliest text: decode it once
    rows = [(p, m) for p in range(len(prompts)) for m in range(1 if alike else samples)]
    out = Samples.empty(len(prompts), samples, max(room))
    copies, done = samples if alike else 1, 0

    def tick(share: float, here: int) -> None:
        """Called every step: this much of a batch of `here` rows is decoded."""
        run.asked()
        run.told((done + int(share * here)) * copies, len(rows) * copies, "sample")

    def compute(indices: list[int]) -> None:
        chosen = [rows[i] for i in indices]
        key = row_keys(seed, [keys[p] for p, _ in chosen], [first + m for _, m in chosen], device=model.device)
        decoding = _Decoding(rule or Rule(), ends, room, max_new_tokens, run, tick)
        found = _sample_batch(model, prompts, [p for p, _ in chosen], key, decoding)
        p, m = torch.tensor(chosen).T
        if alike:
            p, m, found = p[:, None], torch.arange(samples), tuple(x[:, None] for x in found)
        out.put(p, m, *found)

    reach = [len(prompts[p]) + room[p] for p, _ in rows]
    tokens = model.planned_tokens(SAMPLE, longest=max(reach), caches=True)
    for indices in run.batches(reach, compute, tokens=tokens):
        done += len(indices)
        tick(0, 0)
    check_steps(out.steps[out.ids >= 0], model.name)
    return out.shortened()


@dataclass(frozen=True, eq=False)
class _Decoding:
    """How rows are decoded: by which rule, what ends them, and who is told."""

    rule: Rule
    ends: _Ends
    room: list[int]  # tokens that may follow each prompt
    max_new_tokens: int
    run: Pass
    tick: Callable[[float, int], None]


@torch.no_grad()
def _sample_batch(
    model: Model, prompts: Sequence[Sequence[int]], prompt_of: list[int], keys: torch.Tensor, how: _Decoding
) -> tuple[torch.Tensor, ...]:
    """Decode one batch of rows; → ids [R, N], steps [R, N, F], lengths [R], finish [R] on the CPU."""
    device, ends, edits = model.device, how.ends, how.run.edits
    distinct = list(dict.fromkeys(prompt_of))
    share = torch.tensor([distinct.index(p) for p in prompt_of], device=device)
    limit = torch.tensor([how.room[p] for p in prompt_of], device=device)
    stop = torch.tensor(sorted(ends.ids), dtype=torch.long, device=device)
    eos = torch.tensor(model.eos_ids, dtype=torch.long, device=device)
    R, N = len(prompt_of), int(limit.max())
    ids = torch.full((R, N), -1, device=device)
    steps = torch.full((R, N, len(FIELDS)), torch.nan, device=device)
    finish = torch.zeros(R, dtype=torch.long, device=device)
    alive = torch.arange(R, device=device)
    rows = _Rows(model, DynamicCache(config=model.hf.config))
    with apply(model, how.run.for_prompts(distinct).edits):
        scores = rows.feed(pad([prompts[p] for p in distinct], pad_id=model.pad_id, side="left", device=device))
    rows.select(share)
    scores = scores[share.to(scores.device)]
    for t in range(N):
        token, found = step(scores, how.rule, keys=step_keys(keys[alive], t).to(scores.device))
        token = token.to(device)
        ids[alive, t], steps[alive, t] = token, found.to(device)
        ended = torch.isin(token, stop)
        if ends.strings:
            reached = [ends.string_reached(row) for row in ids[alive, : t + 1].tolist()]
            ended |= torch.tensor(reached, device=device)
        over = limit[alive] <= t + 1
        reason = torch.where(torch.isin(token, eos), 1, 2)
        reason = torch.where(ended, reason, torch.where(limit[alive] < how.max_new_tokens, 3, 0))
        finish[alive] = reason
        go_on = ~(ended | over)
        left = int(go_on.sum())  # the one moment per step when the device is waited for
        if left == 0:
            break
        if left < len(alive):
            keep = go_on.nonzero()[:, 0]
            rows.select(keep)
            alive, token = alive[keep], token[keep]
        how.tick((t + 1) / N, R)
        mine = how.run.for_prompts([prompt_of[i] for i in alive.tolist()]).edits if edits else ()
        with apply(model, mine):
            scores = rows.feed_tokens(token)
    longest = t + 1
    return ids[:, :longest].cpu(), steps[:, :longest].cpu(), (ids >= 0).sum(1).cpu(), finish.cpu()


@with_pass
def capture_generation(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    max_new_tokens: int,
    dtype: torch.dtype | str = torch.float32,
    run: Pass,
    **generation,
) -> tuple[list[list[int]], list[dict[Site, torch.Tensor]]]:
    """Greedy continuations, and the activations of the steps that chose their tokens.

    Returns (generated ids per prompt, {site: [steps, …]} per prompt): row t is what the model computed when it chose
    token t. A causal model computes the same whether it reads its own text at once or token by token, so one batched
    pass over prompt and continuation gives them all. Edits act on every pass; further options (`stop_ids`,
    `stop_strings`, …) go to `greedy`."""
    generated = greedy(model, prompts, max_new_tokens=max_new_tokens, run=run, **generation)
    whole = [[*prompt, *new[:-1]] for prompt, new in zip(prompts, generated)]
    acts = capture(model, whole, sites, positions="all", dtype=dtype, run=run)
    return generated, [{s: acts.rows(s, i)[len(prompts[i]) - 1 :] for s in acts} for i in range(len(prompts))]
