"""Batched decoding of the plain model with a key/value cache: greedy, and sampling with the statistics of every step.

Prompts of one batch are padded on the left, the samples of a prompt share one pass over it, and rows that have finished
leave the batch. Generated ids end with the token that stopped them (EOS, a stop id, or the token that completed a stop
string), as Hugging Face `generate` returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import InputError
from workbench.engine.capture import capture
from workbench.engine.decoding import decode
from workbench.engine.draws import keys_of_steps, row_keys
from workbench.engine.edits import Edit, apply, check_edits, for_prompts
from workbench.engine.endings import FINISH, Ends, GrowingTexts, room_after
from workbench.engine.one_by_one import DecodedRows, Decoding
from workbench.engine.passes import DECODE, SAMPLE, Pass, check_prompts, with_pass
from workbench.engine.sampling import FIELDS, Rule, likeliest_unchecked, rows_at_once, step
from workbench.models.batching import pad, sent
from workbench.models.model import Model
from workbench.models.sites import Site

__all__ = ["FINISH", "PHASES", "Samples", "capture_generation", "greedy", "sample"]
PHASES = ("all", "prefill", "decode")


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
    while_reading: Sequence[Edit] = (),
    run: Pass,
) -> list[list[int]]:
    """The most likely continuation of every prompt (token ids), in the order of the prompts.

    A row ends at EOS (unless `eos` is false), at one of `stop_ids`, once its text holds one of `stop_strings`, at
    `max_new_tokens` or at the end of the model's context; the token that ended it is its last. Edits are applied in
    `edit_phase`: "all" passes, "prefill" (the pass over the prompt) or "decode" (the steps that feed the last prompt
    token and then each generated one; the rest of the prompt is read unedited). Edits `while_reading` act on the pass
    over the prompt alone, after the others, whatever the phase. Raises InputError for prompts and edits that do not
    fit."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; generate at least one token.")
    if edit_phase not in PHASES:
        raise InputError(f"'{edit_phase}' is no phase of generation; choose {', '.join(PHASES)}.")
    room = [room_after(model, len(prompt), max_new_tokens) for prompt in prompts]
    check_prompts(model, prompts, run, room=None if edit_phase == "prefill" else room)
    check_edits(model, while_reading, [range(-len(row), len(row)) for row in prompts])
    if edit_phase == "decode":
        _check_decoded(run, prompts)
    ends = Ends.of(model, stop_ids, stop_strings, eos)
    out: list[list[int]] = [[] for _ in prompts]
    # A prompt of one token has nothing to read before the first decoding step, so it cannot share a batch with longer
    # ones then.
    single = [i for i, prompt in enumerate(prompts) if edit_phase == "decode" and len(prompt) == 1]
    rest = sorted(set(range(len(prompts))) - set(single))
    for group in (single, rest):

        def compute(local: list[int], group: list[int] = group) -> None:
            rows = [group[k] for k in local]
            mine, reach = [prompts[i] for i in rows], [room[i] for i in rows]
            texts = GrowingTexts(reach, max_new_tokens, ends)
            reading = for_prompts(while_reading, rows)
            for i, ids in zip(rows, _greedy_batch(model, mine, texts, edit_phase, run.for_prompts(rows), reading)):
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
def _greedy_batch(
    model: Model, prompts: list, texts: GrowingTexts, phase: str, run: Pass, reading: Sequence[Edit]
) -> list[list[int]]:
    rows = DecodedRows(model, pad(prompts, pad_id=model.pad_id, side="left", device=model.device), max(texts.room))
    if phase == "decode" and rows.width > 1:
        with apply(model, reading):
            rows.read(rows.width - 1)
    with apply(model, [*run.edits, *reading]):  # every phase edits this pass: in "decode" it is the first step
        scores = rows.read(rows.width)
    edits = (lambda _: ()) if phase == "prefill" else lambda alive: run.for_prompts(alive).edits
    decode(rows, scores, texts, Decoding(lambda scores, _: likeliest_unchecked(scores), edits, lambda _: run.asked()))
    return texts.written


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
    room = [room_after(model, len(prompt), max_new_tokens) for prompt in prompts]
    check_prompts(model, prompts, run, room=room)
    keys = range(len(prompts)) if prompt_keys is None else prompt_keys
    ends = Ends.of(model, stop_ids, stop_strings, eos)
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
        key = row_keys(seed, [keys[p] for p, _ in chosen], [first + m for _, m in chosen])
        texts = GrowingTexts([room[p] for p, _ in chosen], max_new_tokens, ends)
        _sample_batch(model, prompts, [p for p, _ in chosen], key, texts, rule or Rule(), run, tick)
        found = texts.ids(), texts.table(torch.nan), texts.lengths(), torch.tensor(texts.finish)
        p, m = torch.tensor(chosen).T
        if alike:
            p, m, found = p[:, None], torch.arange(samples), tuple(x[:, None] for x in found)
        out.put(p, m, *found)

    reach = [len(prompts[p]) + room[p] for p, _ in rows]
    tokens = model.planned_tokens(SAMPLE, longest=max(reach), caches=True)
    for indices in run.batches(reach, compute, tokens=tokens):
        done += len(indices)
        tick(0, 0)
    return out.shortened()


@torch.no_grad()
def _sample_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    prompt_of: list[int],
    keys: torch.Tensor,
    texts: GrowingTexts,
    rule: Rule,
    run: Pass,
    tick: Callable[[float, int], None],
) -> None:
    """Decode one batch of rows, one for each of `prompt_of` and `keys` [R] int64, both on the host."""
    distinct = list(dict.fromkeys(prompt_of))
    longest = max(texts.room)
    batch = pad([prompts[p] for p in distinct], pad_id=model.pad_id, side="left", device=model.device)
    rows = DecodedRows(model, batch, longest)
    with apply(model, run.for_prompts(distinct).edits):
        scores = rows.read(rows.width)
    index = rows.select([distinct.index(p) for p in prompt_of])
    scores = scores[index.to(scores.device)]
    (rows.keys,) = sent([keys_of_steps(keys, longest)], scores.device)

    def edits(alive: list[int]) -> Sequence[Edit]:
        return run.for_prompts([prompt_of[i] for i in alive]).edits

    most = rows_at_once(scores.device, scores.shape[1])

    def choose(scores: torch.Tensor, keys: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return step(scores, rule, keys=keys, rows=most)

    decode(rows, scores, texts, Decoding(choose, edits, lambda steps: tick(steps / longest, len(prompt_of))))


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
