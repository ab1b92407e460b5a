"""Next-token loss and multiple choice, with directions of the final states removed or kept: one forward pass serves
every variant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from workbench.core.errors import InputError, RunFailed
from workbench.core.json_text import parse_json
from workbench.core.tables import read_table
from workbench.engine.edits import on_final_norm
from workbench.engine.hf import stream
from workbench.engine.passes import Pass, with_pass
from workbench.engine.variant_losses import Variant, keeps, variant_losses
from workbench.models.host_copies import Resident, arriving
from workbench.models.model import Model
from workbench.models.recording import read_out_site, scores_of
from workbench.models.sites import Site
from workbench.models.text_positions import word_ids
from workbench.models.unembedding import unembedding_of

# token ids of prompt + choice for every choice, length of the prompt, right choice
Question = tuple[list[list[int]], int, int]
PLAIN: Variant = ("keep all", None)
GATHERED = 4096  # tokens whose final states are held
BLOCK = 1 << 25  # numbers of a block of scores


@with_pass
def token_losses(model: Model, rows: Sequence[Sequence[int]], *, run: Pass) -> list[np.ndarray]:
    """-ln p of every token but the first of each row (token ids), [length - 1] float64 nats per row.

    Raises RunFailed where one is not finite, InputError for rows and edits that do not fit."""
    return [losses[0] for losses in final_state_losses(model, rows, [PLAIN], run=run)]


@with_pass
@torch.no_grad()
def final_state_losses(
    model: Model,
    rows: Sequence[Sequence[int]],
    variants: Sequence[Variant],
    *,
    first: Sequence[int] | None = None,
    run: Pass,
) -> list[np.ndarray]:
    """-ln p of every token of each row from its `first` on (None: the second token), [variants, length - first] float64
    per row. Raises RunFailed where one is not finite.

    A variant replaces the states h behind the final norm by their projection onto the rows of V, VᵀVh ("keep"), or by
    the rest ("remove")."""
    found: dict[int, np.ndarray] = {}
    site = read_out_site(model, edited=on_final_norm(run.edits))
    if any(directions is not None for _, directions in variants):
        model.require("logits_unembedded", for_what="losses without directions of its final states")
    for indices, states in _gathered(model, rows, site, [1] * len(rows) if first is None else first, run):
        target = [token for i in indices for token in rows[i][len(rows[i]) - indices[i] :]]
        if site.kind == "resid_post":
            states = model.normed(states)
        losses = _losses(model, site, states, target, variants, run).numpy()
        start = 0
        for i, length in indices.items():
            found[i] = losses[:, start : start + length]
            if not np.isfinite(found[i]).all():
                raise _not_finite(model, i)
            start += length
    return [found[i] for i in range(len(rows))]


@with_pass
@torch.no_grad()
def next_tokens(model: Model, rows: Sequence[Sequence[int]], *, run: Pass) -> list[np.ndarray]:
    """Of every token of each row (token ids) but the first, -ln p and whether it is the likeliest (1 or 0): [2,
    length - 1] float64 per row.

    Raises RunFailed where a loss is not finite, InputError for rows and edits that do not fit."""
    found: dict[int, np.ndarray] = {}
    site = read_out_site(model, edited=on_final_norm(run.edits))
    size = max(1, BLOCK // model.vocab_size)
    for indices, states in _gathered(model, rows, site, [1] * len(rows), run):
        targets = torch.tensor([token for i in indices for token in rows[i][1:]], dtype=torch.long)
        parts = []
        for start in range(0, len(states), size):
            run.asked()
            scores = scores_of(model, site, states[start : start + size])
            target = arriving(targets[start : start + size], scores.device)
            losses = cross_entropy(scores, target, reduction="none")
            parts.append(torch.stack([losses, (scores.argmax(-1) == target).to(losses.dtype)]))
        both = torch.cat(parts, 1).double().cpu().numpy() if parts else np.empty((2, 0))
        for i, part in zip(indices, np.split(both, np.cumsum(list(indices.values()))[:-1], axis=1)):
            if not np.isfinite(part).all():
                raise _not_finite(model, i)
            found[i] = part
    return [found[i] for i in range(len(rows))]


def _not_finite(model: Model, row: int) -> RunFailed:
    return RunFailed(
        f"The loss of {model.name} on text {row + 1} is NaN or infinite; use another dtype (bfloat16 or float32) or "
        f"check its weights."
    )


def _gathered(
    model: Model, rows: Sequence[Sequence[int]], site: Site, first: Sequence[int], run: Pass
) -> Iterator[tuple[dict[int, int], torch.Tensor]]:
    """({row: how many of its tokens are scored}, what the site holds before each of them [T, …]), of at least GATHERED
    tokens where there are as many: each reading of the unembedding serves them all. Scores of a whole vocabulary, which
    are large already, come batch by batch."""
    lengths: dict[int, int] = {}
    kept: list[torch.Tensor] = []
    for indices, acts, _ in stream(model, rows, [site], positions="all", run=run):
        for i, x in zip(indices, acts[site].split([len(rows[i]) for i in indices])):
            lengths[i] = len(rows[i]) - first[i]
            kept.append(x[first[i] - 1 : -1])
        if site.kind == "logits" or sum(lengths.values()) >= GATHERED:
            yield lengths, torch.cat(kept)
            lengths, kept = {}, []
    if lengths:
        yield lengths, torch.cat(kept)


def _losses(
    model: Model, site: Site, states: torch.Tensor, target: Sequence[int], variants: Sequence[Variant], run: Pass
) -> torch.Tensor:
    """-ln p [variants, T] float64 on the CPU of tokens [T] after final states [T, width], or scores [T, V]."""
    matrix = unembedding_of(model)
    if matrix is not None and site.kind != "logits":
        return variant_losses(matrix, states, target, variants, check=run.asked)
    read = site if site.kind == "logits" else Site("final_norm")
    size = max(1, BLOCK // model.vocab_size)
    found = []
    for start in range(0, len(states), size):
        run.asked()
        some, tokens = states[start : start + size], Resident(torch.tensor(target[start : start + size]))
        found.append(torch.stack([_called(model, read, _changed(some, variant), tokens) for variant in variants]))
    return torch.cat(found, dim=1).double().cpu() if found else torch.empty(len(variants), 0, dtype=torch.float64)


def _changed(states: torch.Tensor, variant: Variant) -> torch.Tensor:
    """Final states [T, width] with the variant's directions kept or removed."""
    how, directions = variant
    if directions is None:
        return states
    v = arriving(directions, states.device, torch.float32)
    along = ((states.float() @ v.T) @ v).to(states.dtype)
    return along if keeps(how) else states - along


def _called(model: Model, site: Site, states: torch.Tensor, target: Resident) -> torch.Tensor:
    """-ln p [T] float32, by an unembedding that has to be called."""
    scores = scores_of(model, site, states)
    return cross_entropy(scores, target.on(scores.device), reduction="none")


def read_choices(path: str | Path) -> list[tuple[str, list[str], int]]:
    """(prompt, choices, number of the right one from 0) of every row of a multiple-choice file. Raises InputError
    naming file and row."""
    frame = read_table(path, required=("prompt", "answer"), labels=("answer",), what="multiple-choice")
    if "choices" not in frame.columns:
        raise InputError(f"{path} has no column 'choices'; it has {', '.join(frame.columns)}.")
    out = []
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        options = row["choices"]
        try:
            options = parse_json(options, str(path)) if isinstance(options, str) else list(options)
            answer = int(row["answer"])
            valid = (
                len(options) >= 2
                and 0 <= answer < len(options)
                and all(isinstance(o, str) and o.strip() for o in options)
            )
            valid = valid and len({o.strip() for o in options}) == len(options)
        except (TypeError, ValueError, InputError):
            valid = False
        if not valid:
            raise InputError(
                f"{path}, row {number}: `choices` must be a list of at least two different texts and `answer` "
                f"the number of the right one, from 0."
            )
        out.append((row["prompt"], options, answer))
    return out


def encode_choices(model: Model, path: str | Path) -> list[Question]:
    """The questions of a multiple-choice file as tokens: the prompt's and, behind a space, each choice's."""
    out = []
    for number, (prompt, options, answer) in enumerate(read_choices(path), 1):
        front = model.encode(prompt)
        rows = [front + word_ids(model, prompt, option.strip()) for option in options]
        if not front or any(model.too_long(len(row)) for row in rows):
            raise InputError(
                f"{path}, row {number}: the question does not fit the model's context of {model.context_length} tokens."
            )
        out.append((rows, len(front), answer))
    return out


@with_pass
def right_choices(model: Model, questions: Sequence[Question], variants: Sequence[Variant], *, run: Pass) -> np.ndarray:
    """Whether the likeliest choice (summed log-probability of its tokens) is the right one, [variants, questions] of 0
    and 1."""
    rows = [row for choices, _, _ in questions for row in choices]
    first = [front for choices, front, _ in questions for _ in choices]
    losses = iter(final_state_losses(model, rows, variants, first=first, run=run))
    right = np.empty((len(variants), len(questions)))
    for q, (choices, _, answer) in enumerate(questions):
        total = np.stack([next(losses).sum(1) for _ in choices], axis=1)
        right[:, q] = total.argmin(1) == answer
    return right
