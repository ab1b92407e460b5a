"""Next-token loss and multiple choice, with directions of the final states removed or kept: one forward pass serves
every variant."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.errors import InputError, RunFailed
from workbench.core.tables import read_table
from workbench.models.sites import Site

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

Variant = tuple[
    str, "torch.Tensor | None"
]  # ("keep…" or "remove…", orthonormal rows [k, width]); None: the model as it is
Question = tuple[
    list[list[int]], int, int
]  # token ids of prompt + choice for every choice, length of the prompt, right choice


def final_state_losses(
    model: Model,
    rows: Sequence[Sequence[int]],
    variants: Sequence[Variant],
    *,
    edits=(),
    max_tokens: int = 4096,
    check: Callable | None = None,
) -> list[np.ndarray]:
    """-ln p of every token but the first of each row, [variants, length - 1] float64 per row. Raises RunFailed where
    one is not finite.

    A variant replaces the states h behind the final norm by their projection onto the rows of V, VᵀVh ("keep"), or by
    the rest ("remove")."""
    import torch

    from workbench.engine.capture import stream

    found: list = [None] * len(rows)
    for indices, acts, _ in stream(
        model, rows, ["final_norm"], positions="all", edits=edits, max_tokens=max_tokens, check=check
    ):
        states, kept = acts[Site("final_norm")], []
        target = torch.tensor([token for i in indices for token in (*rows[i][1:], 0)], device=states.device)
        for how, directions in variants:
            changed = states
            if directions is not None:
                v = directions.to(states.device, torch.float32)
                along = ((states.float() @ v.T) @ v).to(states.dtype)
                changed = along if how.startswith("keep") else states - along
            scores = model.logits_from(changed, normed=True)
            kept.append(
                torch.nn.functional.cross_entropy(scores, target.to(scores.device), reduction="none").double().cpu()
            )
        losses, start = torch.stack(kept).numpy(), 0
        for i in indices:
            found[i] = losses[:, start : start + len(rows[i]) - 1]
            if not np.isfinite(found[i]).all():
                raise RunFailed(
                    f"The loss of {model.name} on text {i} is NaN or infinite; use another dtype (bfloat16 or "
                    f"float32) or check its weights."
                )
            start += len(rows[i])
    return found


def read_choices(path: str | Path) -> list[tuple[str, list[str], int]]:
    """(prompt, choices, number of the right one from 0) of every row of a multiple-choice file. Raises InputError
    naming file and row."""
    frame = read_table(path, required=("prompt", "answer"), what="multiple-choice")
    if "choices" not in frame.columns:
        raise InputError(f"{path} has no column 'choices'; it has {', '.join(frame.columns)}.")
    out = []
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        options = row["choices"]
        try:
            options = json.loads(options) if isinstance(options, str) else list(options)
            answer = int(row["answer"])
            valid = (
                len(options) >= 2
                and 0 <= answer < len(options)
                and all(isinstance(o, str) and o.strip() for o in options)
            )
            valid = valid and len({o.strip() for o in options}) == len(options)
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise InputError(
                f"{path}, row {number}: `choices` must be a list of at least two different texts and `answer` "
                f"the number of the right one, from 0."
            )
        out.append((row["prompt"], options, answer))
    return out


def word_ids(model: Model, text: str, word: str) -> list[int]:
    """Tokens of `word` as it continues `text` after a space, whatever the tokenizer makes of a leading space."""
    for before in (text, "a"):
        front, whole = model.encode(before), model.encode(f"{before} {word}")
        if len(whole) > len(front) and whole[: len(front)] == front:
            return whole[len(front) :]
    return model.encode(f" {word}", bos=False)


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


def right_choices(model: Model, questions: Sequence[Question], variants: Sequence[Variant], **options) -> np.ndarray:
    """Whether the likeliest choice (summed log-probability of its tokens) is the right one, [variants, questions] of 0
    and 1."""
    rows = [row for choices, _, _ in questions for row in choices]
    losses = iter(final_state_losses(model, rows, variants, **options))
    right = np.empty((len(variants), len(questions)))
    for q, (choices, front, answer) in enumerate(questions):
        total = np.stack([next(losses)[:, front - 1 :].sum(1) for _ in choices], axis=1)
        right[:, q] = total.argmin(1) == answer
    return right
