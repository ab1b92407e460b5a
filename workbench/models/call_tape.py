"""Every call of some modules in a forward pass: what went in, what came out, and in which order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from workbench.core.errors import InputError


def first_tensor(value) -> torch.Tensor:
    """The hidden states in a module's arguments or result, which may be a tuple."""
    return value if isinstance(value, torch.Tensor) else value[0]


def hidden_argument(args: tuple, kwargs: dict) -> torch.Tensor:
    """The hidden states that a module was called with, by position or by name."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    for name in ("hidden_states", "input", "x", "hidden_state"):
        if name in kwargs:
            return kwargs[name]
    raise InputError(
        "A block of this architecture takes its hidden states under an unknown name; it cannot be observed."
    )


@dataclass(frozen=True, eq=False)
class Seen:
    """One call of a module. `start` and `end` count the events of the pass: a call within another lies between its.
    `items`: how many things came out with the hidden states in a tuple, themselves included; 0: they came out alone."""

    start: int
    end: int
    came_in: torch.Tensor
    went_out: torch.Tensor
    items: int = 0

    def within(self, other: Seen) -> bool:
        return other.start < self.start and self.end < other.end


@contextlib.contextmanager
def tape(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Seen]]]:
    """While open, records every call of the named modules, each under its name, in the order in which they end."""
    calls: dict[str, list[Seen]] = {key: [] for key in modules}
    begun: dict[str, list[int]] = {key: [] for key in modules}
    clock = iter(range(1 << 62))

    def hung(key: str, module: nn.Module) -> list:
        def enter(_module, _args):
            begun[key].append(next(clock))

        def leave(_module, args, kwargs, output):
            came_in, went_out = hidden_argument(args, kwargs), first_tensor(output)
            items = 0 if isinstance(output, torch.Tensor) else len(output)
            seen = Seen(begun[key].pop(), next(clock), came_in.detach().clone(), went_out.detach().clone(), items)
            calls[key].append(seen)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, with_kwargs=True)]

    handles = [handle for key, module in modules.items() for handle in hung(key, module)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def counted(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, int]]:
    """While open, counts the calls of the named modules."""
    calls = dict.fromkeys(modules, 0)

    def count(key: str):
        def hook(_module, _args):
            calls[key] += 1

        return hook

    handles = [module.register_forward_pre_hook(count(key)) for key, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
