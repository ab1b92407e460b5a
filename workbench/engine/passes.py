"""How prompts are run through a model, described once: what is edited, how much goes into a batch, who is asked and
told.

Every function of the engine takes a `Pass` as `run`, and hands it on as it is. Called from outside, single fields may
stand in its place: ``greedy(model, prompts, max_new_tokens=8, edits=[…], max_rows=4)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, TypeVar

from workbench.core.errors import InputError
from workbench.engine.edits import Edit, check_edits, for_prompts
from workbench.models.architecture import weight_of
from workbench.models.batching import in_batches
from workbench.models.model import Model

Found = TypeVar("Found")
# Tokens of one batch where a pass does not say: of prompts that are read, of rows that are decoded (with everything
# that is cached for them), of rows that are sampled, and of prompts whose gradients are taken.
READ, DECODE, SAMPLE, GRADIENT = 8192, 65536, 262144, 2048
ROWS = 256  # of one batch


@dataclass(frozen=True)
class Pass:
    """One way of running prompts.

    `edits` are applied in their order; those that differ by prompt have one entry for each prompt and follow their
    prompts into the batches. `max_tokens` (padding included) and `max_rows` go into one batch, None: what suits the
    work; a batch that runs out of memory is halved. `check()` is called before every batch and every decoding step and
    may raise (cancellation). `progress(done, total, label)` is told how far it is."""

    edits: tuple[Edit, ...] = ()
    max_tokens: int | None = None
    max_rows: int | None = None
    check: Callable[[], None] | None = None
    progress: Callable[[int, int, str], None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        for name in ("max_tokens", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; a batch holds at least 1.")

    def for_prompts(self, indices: Sequence[int]) -> Pass:
        """The same for the prompts `indices` alone."""
        return replace(self, edits=for_prompts(self.edits, indices)) if self.edits else self

    def batches(
        self,
        lengths: Sequence[int],
        step: Callable[[list[int]], object],
        *,
        tokens: int = READ,
        rows: int | None = None,
    ) -> Iterator[list[int]]:
        """Call `step(indices)` for every batch of sequences of these lengths, and yield the indices done. `tokens` of a
        batch where this pass does not say; at most `rows`, however many it says."""
        wanted = self.max_rows or ROWS
        most = wanted if rows is None else min(wanted, rows)
        return in_batches(lengths, step, max_tokens=self.max_tokens or tokens, max_rows=most, check=self.check)

    def asked(self) -> None:
        """Give whoever may cancel the chance to do so."""
        if self.check is not None:
            self.check()

    def told(self, done: int, total: int, label: str) -> None:
        """Tell how far it is."""
        if self.progress is not None:
            self.progress(done, total, label)


_FIELDS = frozenset(field.name for field in fields(Pass))


def with_pass(function: Callable[..., Found]) -> Callable[..., Found]:
    """Let a function that takes `run: Pass` be called without one, and with single fields of it that differ."""

    @wraps(function)
    def call(*args: Any, run: Pass = Pass(), **options: Any) -> Found:
        given = {name: options.pop(name) for name in _FIELDS & options.keys()}
        return function(*args, run=replace(run, **given) if given else run, **options)

    shown = inspect.signature(function)
    own = [p.replace(default=Pass()) if p.name == "run" else p for p in shown.parameters.values()]
    call.__signature__ = shown.replace(parameters=own)  # pyright: ignore[reportAttributeAccessIssue]  # PEP 362
    return call


def check_ids(model: Model, ids: Sequence[Sequence[int]]) -> None:
    """Raise InputError for no prompts, an empty one, one beyond the context, or an id outside the vocabulary."""
    if len(ids) == 0:
        raise InputError("There are no prompts to run.")
    size, limit = len(weight_of(model.hf.get_input_embeddings())), model.context_length
    for row, tokens in enumerate(ids):
        if len(tokens) == 0:
            raise InputError(f"Prompt {row + 1} has no tokens.")
        if limit is not None and len(tokens) > limit:
            raise InputError(
                f"Prompt {row + 1} has {len(tokens)} tokens, more than the model's context of {limit}; shorten it."
            )
        if not 0 <= min(tokens) <= max(tokens) < size:
            raise InputError(f"Prompt {row + 1} has a token id outside the model's vocabulary of {size}.")


def check_prompts(model: Model, ids: Sequence[Sequence[int]], run: Pass, *, room: Sequence[int] | None = None) -> None:
    """`check_ids`, and InputError for edits that do not fit the model and these prompts. `room`: how many tokens may
    follow each prompt, whose positions may be edited as well."""
    check_ids(model, ids)
    after = [0] * len(ids) if room is None else room
    check_edits(model, run.edits, [range(-len(row), len(row) + more) for row, more in zip(ids, after)])
