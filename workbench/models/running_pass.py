"""The forward pass in progress in this thread: where its tokens are, and hooks that no other thread's pass runs.

Hooks hang on the modules of the model, which threads may share. What a pass needs to know of itself is kept per thread
of execution, and a hook made with `own` acts in the passes of the thread that hung it up and in no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from workbench.core.errors import InputError, RunFailed
from workbench.models.batching import Batch
from workbench.models.devices import is_cpu

Found = TypeVar("Found")


@dataclass(eq=False)
class PassPositions:
    """Where the tokens of a forward pass are: what edits and attention readers use to find positions.

    position_ids [B, Q] of the queries; mask [B, Q] of real queries; key_position [B, S] of every key column, -1 on
    padding; `whole`: all that has been read with this pass, whose last columns are this pass's (None where blocks run
    alone)."""

    position_ids: torch.Tensor
    mask: torch.Tensor
    key_position: torch.Tensor
    whole: Batch | None = None
    _found: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """What `find` finds of this pass, looked for the first time that `key` is asked for: layers ask for the
        same."""
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]

    def last_columns(self) -> torch.Tensor:
        """Query column of each sequence's last token, [B]."""
        width = self.mask.shape[1]
        return width - 1 - self.mask.flip(1).to(torch.uint8).argmax(1)

    def absolute(self, positions: torch.Tensor) -> torch.Tensor:
        """Token positions [R] or [B, R] as [B, R], negative ones counted from each sequence's last token."""
        positions = positions.to(self.position_ids.device).expand(len(self.position_ids), -1)
        last = self.position_ids.gather(1, self.last_columns()[:, None])
        return torch.where(positions < 0, last + 1 + positions, positions)

    def columns(self, positions: torch.Tensor) -> torch.Tensor:
        """Query columns [B, R] of token positions [R] or [B, R]; negative positions count from each sequence's end.

        Raises InputError when a sequence of this pass does not hold the position. Positions of the host are looked for
        there: nothing waits."""
        absolute = self.absolute(positions)
        match = self._match(absolute)
        if self._known_on_host(positions):
            assert self.whole is not None
            end = torch.tensor(self.whole.sizes)[:, None]
            first = end - self.whole.real[:, -self.mask.shape[1] :].sum(1, keepdim=True)
            asked = torch.where(positions < 0, end + positions, positions)
            self._refuse((asked < first) | (asked >= end), positions)
        else:
            self._refuse(~match.any(-1), positions)
        return match.to(torch.uint8).argmax(-1)

    def columns_here(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query columns [B, R] of token positions, and whether this pass reads them [B, R]: what an earlier pass has
        read and a cache holds, or a later one will read, is not here. Raises InputError for a negative position before
        the first token; positions of the host are looked at there."""
        wanted = self.absolute(positions)
        if self._known_on_host(positions):
            assert self.whole is not None
            self._refuse(positions < -torch.tensor(self.whole.sizes)[:, None], positions)
        else:
            self._refuse(wanted < 0, positions)
        match = self._match(wanted)
        return match.to(torch.uint8).argmax(-1), match.any(-1)

    def _match(self, wanted: torch.Tensor) -> torch.Tensor:
        """Where the tokens at positions [B, R] stand, [B, R, Q]."""
        return (self.position_ids[:, None, :] == wanted[:, :, None]) & self.mask[:, None, :]

    def _known_on_host(self, positions: torch.Tensor) -> bool:
        """Whether the host knows both the positions asked for and how long the sequences are."""
        return is_cpu(positions.device) and self.whole is not None

    def _refuse(self, missing: torch.Tensor, positions: torch.Tensor) -> None:
        """Raise InputError for the first position that is missing [B, R]."""
        if missing.any():
            row, k = missing.nonzero()[0].tolist()
            wanted = int(positions.expand(len(missing), -1)[row, k])
            raise InputError(f"Position {wanted} is not among the tokens of sequence {row} in this pass.")

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """Mask [B, Q]: the queries of this pass at token positions [B, R] (-1 = none); positions outside it are
        ignored."""
        match = (self.position_ids[:, None, :] == positions[:, :, None]) & (positions >= 0)[:, :, None]
        return match.any(1) & self.mask

    def columns_of_keys(self, size: int) -> torch.Tensor:
        """Position of each of a layer's `size` keys, [B, size]: the last columns, as a layer with a window may keep
        only those."""
        return self.key_position[:, self.key_position.shape[1] - size :]

    def key_columns(self, positions: torch.Tensor, size: int) -> torch.Tensor:
        """Mask [B, S] of the key columns at token positions [B, K] (-1 = none)."""
        match = (self.columns_of_keys(size)[:, None] == positions[:, :, None]) & (positions >= 0)[:, :, None]
        return match.any(1)


def positions_after(batch: Batch, past: Batch | None = None) -> PassPositions:
    """Where the tokens of a batch are that goes on after `past` (what is cached already)."""
    mask, position = batch.mask, batch.position_ids
    if past is not None:
        mask, position = torch.cat([past.mask, mask], dim=1), torch.cat([past.position_ids, position], dim=1)
    whole = batch if past is None else past.followed_by(batch)
    return PassPositions(batch.position_ids, batch.mask, torch.where(mask, position, -1), whole)


_THREAD = "thread"  # the attribute of a hook that says whose passes run it
_in_progress: ContextVar[PassPositions | None] = ContextVar("the forward pass in progress", default=None)


@contextmanager
def running(positions: PassPositions) -> Iterator[None]:
    """While open, edits and attention readers of this thread find token positions through `positions`."""
    token = _in_progress.set(positions)
    try:
        yield
    finally:
        _in_progress.reset(token)


def in_progress() -> bool:
    """Whether a forward pass of this thread is in progress."""
    return _in_progress.get() is not None


def positions() -> PassPositions:
    """Where the tokens of this thread's forward pass are. Raises RuntimeError where none is in progress."""
    found = _in_progress.get()
    if found is None:
        raise RuntimeError("no forward pass of this thread is in progress")
    return found


def own(hook: Callable) -> Callable:
    """`hook` for the passes of the thread that calls `own`: in any other it does nothing and returns None."""
    thread = threading.get_ident()

    @wraps(hook)
    def guarded(*args, **kwargs):
        return hook(*args, **kwargs) if threading.get_ident() == thread else None

    setattr(guarded, _THREAD, thread)
    return guarded


class Call(NamedTuple):
    """One call of a module that runs several times in a pass: number `number`, from 0, of `of`."""

    number: int
    of: int


def _of_call(hook: Callable, call: Call | None) -> Callable:
    """`hook` for one of the calls that a pass makes of a module. Raises RunFailed where a pass makes more than the
    model did when it was loaded: the one that is meant is not known then."""
    if call is None:
        return hook
    here: PassPositions | None = None
    calls = 0

    @wraps(hook)
    def counted(module, *args):
        nonlocal here, calls
        if here is not positions():
            here, calls = positions(), 0
        calls += 1
        if calls > call.of:
            raise RunFailed(
                f"A {type(module).__name__} ran {calls} times in a pass, and {call.of} times when the model was "
                f"loaded; what it carries cannot be told apart."
            )
        return hook(module, *args) if calls == call.number + 1 else None

    return counted


def before(module: nn.Module, hook: Callable, *, call: Call | None = None) -> RemovableHandle:
    """Hang `hook(module, args, kwargs)` on the calls of a module (or one of them); what it returns, (args, kwargs),
    goes in instead."""
    return module.register_forward_pre_hook(own(_of_call(hook, call)), with_kwargs=True)


def after(module: nn.Module, hook: Callable, *, call: Call | None = None) -> RemovableHandle:
    """Hang `hook(module, args, output)` on the results of a module (or one of them); what it returns, if anything,
    comes out instead."""
    return module.register_forward_hook(own(_of_call(hook, call)))


def hooked(module: nn.Module) -> bool:
    """Whether this thread's passes run a forward hook of `module` (one of nobody's in particular counts)."""
    mine = threading.get_ident()
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(hook, _THREAD, mine) == mine for hook in hooks)
