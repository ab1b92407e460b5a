"""Batched decoding of the plain model with a key/value cache: greedy, and sampling with the statistics of every step.

Prompts of one batch are padded on the left, the samples of a prompt share one pass over it, and rows that have finished
leave the batch. Generated ids end with the token that stopped them (EOS, a stop id, or the token that completed a stop
string), as Hugging Face `generate` returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache

from workbench.core.errors import InputError
from workbench.engine.capture import check_ids
from workbench.engine.edits import Edit, KnockOut, Patch, apply
from workbench.engine.scoring import FIELDS, Rule, check_steps, likeliest, row_keys, step, step_keys
from workbench.models.batching import Batch, in_batches, pad
from workbench.models.model import Model

Edits = Sequence[Edit] | Callable[[list[int]], Sequence[Edit]]
PHASES = ("all", "prefill", "decode")
FINISH = ("length", "eos", "stop", "context")  # why a row ended; `Samples.finish` holds indices into it


@dataclass(eq=False)
class _Rows:
    """Rows being continued: the key/value cache and what its columns hold (left-padded)."""

    model: Model
    cache: DynamicCache
    past: Batch | None = None

    def feed(self, batch: Batch) -> torch.Tensor:
        """Run `batch` after what is cached → scores of its last column [B, V], in the model's dtype."""
        # A cache turns the mask-free path off, so an all-real mask is only passed where the model needs one.
        scores = self.model.forward(batch, cache=self.cache, past=self.past, last_logits=True).logits[:, -1]
        if self.past is None:
            self.past = batch
        else:
            join = lambda name: torch.cat([getattr(self.past, name), getattr(batch, name)], dim=1)  # noqa: E731
            self.past = Batch(
                join("ids"), join("mask"), join("position_ids"), self.past.lengths + batch.lengths, "left"
            )
        return scores

    def feed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Run one more token [B] per row → scores [B, V]."""
        return self.feed(_column(ids, self.past.lengths))

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only (or repeat them): [k] indices into the batch."""
        past = self.past
        for layer in self.cache.layers:  # a model spread over several devices has its cache there too
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


def greedy(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    eos: bool = True,
    edits: Edits = (),
    edit_phase: str = "all",
    max_tokens: int = 65536,
    max_rows: int = 256,
    check: Callable[[], None] | None = None,
) -> list[list[int]]:
    """The most likely continuation of every prompt (token ids), in the order of the prompts.

    A row ends at EOS (unless `eos` is false), at one of `stop_ids`, once its text holds one of `stop_strings`, at
    `max_new_tokens` or at the end of the model's context; the token that ended it is its last. `edits` are applied in
    `edit_phase`: "all" passes, "prefill" (the pass over the prompt) or "decode" (the steps that feed the last prompt
    token and then each generated one; the rest of the prompt is read unedited). Edits with one entry per prompt (Patch
    values [n, k, d], KnockOut sources) follow their prompts into the batches; a function gets the prompt indices of a
    batch and returns its edits. `check` may raise to cancel. Raises InputError for prompts that do not fit the
    model."""
    check_ids(model, prompts)
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; generate at least one token.")
    if edit_phase not in PHASES:
        raise InputError(f"'{edit_phase}' is no phase of generation; choose {', '.join(PHASES)}.")
    ends = _Ends.of(model, stop_ids, stop_strings, eos)
    room = [_room(model, len(prompt), max_new_tokens) for prompt in prompts]
    out: list[list[int]] = [[] for _ in prompts]
    # A prompt of one token has nothing to read before the first decoding step, so it cannot share a batch with longer
    # ones then.
    single = [i for i, prompt in enumerate(prompts) if edit_phase == "decode" and len(prompt) == 1]
    rest = sorted(set(range(len(prompts))) - set(single))
    for group in (single, rest):
        sizes = [
            range(len(prompts[i]) + room[i]) for i in group
        ]  # in_batches only asks for lengths: those that will be reached

        def step(local: list[int], group=group) -> None:
            rows = [group[k] for k in local]
            for i, ids in zip(
                rows,
                _greedy_batch(
                    model,
                    [prompts[i] for i in rows],
                    [room[i] for i in rows],
                    ends,
                    _edits_for(edits, rows, len(prompts)),
                    edit_phase,
                    check,
                ),
            ):
                out[i] = ids

        for _ in in_batches(sizes, step, max_tokens=max_tokens, max_rows=max_rows, check=check):
            pass
    return out


@torch.no_grad()
def _greedy_batch(model, prompts, room, ends: _Ends, edits: Sequence[Edit], phase: str, check) -> list[list[int]]:
    rows = _Rows(model, DynamicCache(config=model.hf.config))
    batch = pad(prompts, pad_id=model.pad_id, side="left", device=model.device)
    alive = list(range(len(prompts)))
    written: list[list[int]] = [[] for _ in prompts]

    def current() -> Sequence[Edit]:
        """The edits, entries per prompt reduced to the rows still alive."""
        return edits if len(alive) == len(prompts) else _edits_for(edits, alive, len(prompts))

    if phase == "decode":
        front, batch = _split_last(batch)
        if front.ids.shape[1]:
            rows.feed(front)
        else:
            rows.past = front
    with apply(model, edits):  # every phase edits this pass: in "decode" it is the first step
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
        if check is not None:
            check()
        with apply(model, () if phase == "prefill" else current()):
            scores = rows.feed_tokens(chosen)


def _edits_for(edits: Edits, rows: list[int], total: int) -> Sequence[Edit]:
    """The edits of a batch made of these prompts: entries per prompt are picked, everything else stays."""
    if callable(edits):
        return edits(rows)
    out = []
    for edit in edits:
        if isinstance(edit, Patch) and edit.value.ndim >= 3 and len(edit.value) == total:
            edit = replace(edit, value=edit.value[rows])
        elif isinstance(edit, KnockOut) and len(edit.sources) == total:
            edit = replace(edit, sources=tuple(edit.sources[i] for i in rows))
        out.append(edit)
    return out


@dataclass(frozen=True)
class _Ends:
    """What ends a row besides its length."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: object

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

    def statistic(self, name: str) -> torch.Tensor:
        """One of FIELDS, [P, M, N]."""
        return self.steps[..., FIELDS.index(name)]

    def tokens(self, prompt: int, sample: int) -> list[int]:
        """The generated ids of one sample."""
        return self.ids[prompt, sample, : self.lengths[prompt, sample]].tolist()


def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    rule: Rule | None = None,
    seed: int = 0,
    prompt_keys: Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    eos: bool = True,
    edits: Sequence[Edit] = (),
    max_tokens: int = 262144,
    max_rows: int = 256,
    check: Callable[[], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Samples:
    """`samples` continuations of every prompt (token ids), with the statistics of every step under `rule`.

    Rows end as in `greedy`. What sample m of prompt p says depends on `seed`, its prompt's key (by default its place in
    `prompts`) and m, not on the batch it is computed in. At temperature 0 they are all the same, and one is decoded.
    `max_rows` rows and `max_tokens` cached tokens are decoded together; a batch that runs out of memory is halved.
    `check` is called every step and may raise to cancel. Raises InputError for bad prompts."""
    check_ids(model, prompts)
    if samples < 1 or max_new_tokens < 1:
        raise InputError(f"samples is {samples} and max_new_tokens is {max_new_tokens}; both must be at least 1.")
    keys = range(len(prompts)) if prompt_keys is None else prompt_keys
    ends = _Ends.of(model, stop_ids, stop_strings, eos)
    room = [_room(model, len(prompt), max_new_tokens) for prompt in prompts]
    alike = rule is not None and rule.temperature == 0  # every sample is the likeliest text: decode it once
    rows = [(p, m) for p in range(len(prompts)) for m in range(1 if alike else samples)]
    widest = max(room)
    out = Samples(
        torch.full((len(prompts), samples, widest), -1),
        torch.zeros(len(prompts), samples, dtype=torch.long),
        torch.zeros(len(prompts), samples, dtype=torch.long),
        torch.full((len(prompts), samples, widest, len(FIELDS)), torch.nan),
    )

    def run(indices: list[int]) -> None:
        chosen = [rows[i] for i in indices]
        key = row_keys(seed, [keys[p] for p, _ in chosen], [m for _, m in chosen], device=model.device)
        ids, steps, lengths, finish = _sample_batch(
            model, prompts, [p for p, _ in chosen], room, rule or Rule(), key, ends, edits, max_new_tokens, tick
        )
        p, m = torch.tensor(chosen).T
        if alike:
            p, m, ids, steps, lengths, finish = (
                p[:, None],
                torch.arange(samples),
                ids[:, None],
                steps[:, None],
                lengths[:, None],
                finish[:, None],
            )
        out.ids[p, m, : ids.shape[-1]], out.steps[p, m, : ids.shape[-1]] = ids, steps
        out.lengths[p, m], out.finish[p, m] = lengths, finish

    done = 0

    def tick(share: float, here: int) -> None:
        """Called every step: this much of a batch of `here` rows is decoded."""
        if check is not None:
            check()
        if progress is not None:
            copies = samples if alike else 1
            progress((done + int(share * here)) * copies, len(rows) * copies, "sample")

    sizes = [
        range(len(prompts[p]) + room[p]) for p, _ in rows
    ]  # in_batches only asks for lengths: those that may be reached
    for indices in in_batches(sizes, run, max_tokens=max_tokens, max_rows=max_rows, check=check):
        done += len(indices)
        tick(0, 0)
    check_steps(out.steps[out.ids >= 0], model.name)
    longest = int(out.lengths.max())
    return Samples(out.ids[..., :longest], out.lengths, out.finish, out.steps[..., :longest, :])


@torch.no_grad()
def _sample_batch(
    model, prompts, prompt_of: list[int], room, rule: Rule, keys, ends: _Ends, edits, max_new_tokens: int, tick
):
    """Decode one batch of rows; → ids [R, N], steps [R, N, F], lengths [R], finish [R] on the CPU."""
    device = model.device
    distinct = list(dict.fromkeys(prompt_of))
    share = torch.tensor([distinct.index(p) for p in prompt_of], device=device)
    limit = torch.tensor([room[p] for p in prompt_of], device=device)
    stop = torch.tensor(sorted(ends.ids), dtype=torch.long, device=device)
    eos = torch.tensor(model.eos_ids, dtype=torch.long, device=device)
    R, N = len(prompt_of), int(limit.max())
    ids = torch.full((R, N), -1, device=device)
    steps = torch.full((R, N, len(FIELDS)), torch.nan, device=device)
    finish = torch.zeros(R, dtype=torch.long, device=device)
    alive = torch.arange(R, device=device)
    rows = _Rows(model, DynamicCache(config=model.hf.config))
    with apply(model, edits):
        scores = rows.feed(pad([prompts[p] for p in distinct], pad_id=model.pad_id, side="left", device=device))
        rows.select(share)
        scores = scores[share.to(scores.device)]
        for t in range(N):
            token, found = step(scores, rule, keys=step_keys(keys[alive], t).to(scores.device))
            token = token.to(device)
            ids[alive, t], steps[alive, t] = token, found.to(device)
            ended = torch.isin(token, stop)
            if ends.strings:
                ended |= torch.tensor([ends.string_reached(row) for row in ids[alive, : t + 1].tolist()], device=device)
            over = limit[alive] <= t + 1
            reason = torch.where(torch.isin(token, eos), 1, 2)
            reason = torch.where(ended, reason, torch.where(limit[alive] < max_new_tokens, 3, 0))
            finish[alive] = reason
            go_on = ~(ended | over)
            left = int(go_on.sum())  # the one moment per step when the device is waited for
            if left == 0:
                break
            if left < len(alive):
                keep = go_on.nonzero()[:, 0]
                rows.select(keep)
                alive, token = alive[keep], token[keep]
            tick((t + 1) / N, R)
            scores = rows.feed_tokens(token)
    longest = t + 1
    return ids[:, :longest].cpu(), steps[:, :longest].cpu(), (ids >= 0).sum(1).cpu(), finish.cpu()


def template_of(model: Model, template: str = "auto") -> str:
    """How `prompt_ids` writes a prompt for this model: "chat" or "raw". Raises InputError for "chat" on a model without
    a template."""
    if template not in ("auto", "chat", "raw"):
        raise InputError(f"'{template}' is no way to write prompts; choose auto, chat or raw.")
    has_one = bool(getattr(model.tokenizer, "chat_template", None))
    if template == "chat" and not has_one:
        raise InputError(
            f"The model {model.name} has no chat template (a base model?); use template=raw to give it the bare text."
        )
    return "chat" if has_one and template != "raw" else "raw"


def prompt_ids(model: Model, text: str, *, template: str = "auto", system: str = "") -> list[int]:
    """Token ids of a prompt. "raw": the text itself (BOS where the tokenizer puts one); "chat": as the user's turn in
    the model's chat template, ready for its answer, after the message `system` if there is one; "auto": chat iff the
    model has a template.

    Raises InputError for "chat" on a model without a template, and for a system message where no template is used."""
    if model.tokenizer is None:
        raise InputError(f"The model {model.name} has no tokenizer, so it cannot read prompts.")
    if template_of(model, template) == "raw":
        if system:
            raise InputError(
                f"A system message needs a chat template, and {model.name} is given raw text here; leave out system."
            )
        ids = model.encode(text)
        if not ids and model.bos_id is not None:
            ids = [model.bos_id]
        return ids
    turns = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]
    try:
        written = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs; they raise what they like (for instance for a system message)
        raise InputError(
            f"The chat template of {model.name} refuses the prompt ({str(error).splitlines()[0][:160]})."
        ) from error
    return list(model.tokenizer(written, add_special_tokens=False)["input_ids"])
