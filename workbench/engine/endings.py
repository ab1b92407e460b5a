"""What ends a text that is being written, and what each row of a batch has written so far: all of it on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.models.model import Model

FINISH = ("length", "eos", "stop", "context")  # why a row ended; `Samples.finish` holds indices into it


@dataclass(frozen=True)
class Ends:
    """What ends a row besides its length."""

    ids: frozenset[int]
    eos: frozenset[int]  # those that count as the model's own end
    strings: tuple[str, ...]
    tokenizer: Any  # of transformers; None where the model has none

    @classmethod
    def of(cls, model: Model, stop_ids: Sequence[int], stop_strings: Sequence[str], eos: bool) -> Ends:
        """Those of a call. Raises InputError for an empty stop string, and for one that no tokenizer can find."""
        if isinstance(stop_strings, str):
            stop_strings = (stop_strings,)
        if any(not s for s in stop_strings):
            raise InputError("A stop string is empty; it would end every text at once.")
        if stop_strings and model.tokenizer is None:
            raise InputError(f"Stop strings need a tokenizer, and the model {model.name} has none.")
        own = frozenset(model.eos_ids)
        return cls(frozenset(stop_ids) | (own if eos else frozenset()), own, tuple(stop_strings), model.tokenizer)

    def reached(self, ids: list[int]) -> bool:
        """Whether a text ends with the last of its ids."""
        return ids[-1] in self.ids or (bool(self.strings) and self._string_reached(ids))

    def _string_reached(self, ids: list[int]) -> bool:
        # One character can take up to four byte tokens, so this many tokens hold the longest stop string that ends
        # here.
        tail = ids[-(4 * max(map(len, self.strings)) + 8) :]
        text = self.tokenizer.decode(tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return any(s in text for s in self.strings)


def room_after(model: Model, length: int, wanted: int) -> int:
    """How many tokens may follow a prompt of this length: the last one is never fed back, so it may lie just past the
    context."""
    return wanted if model.context_length is None else min(wanted, model.context_length - length + 1)


@dataclass(eq=False)
class GrowingTexts:
    """What rows write, and what the device found on the way.

    room: tokens that each row may write; wanted: those that were asked for; found: of each look at the device the rows
    that were going on, how many of its steps count in each of them, and the numbers of its steps [K, rows, …]."""

    room: list[int]
    wanted: int
    ends: Ends
    written: list[list[int]] = field(init=False)
    finish: list[int] = field(init=False)  # indices into FINISH
    alive: list[int] = field(init=False)  # rows that go on
    found: list[tuple[list[int], list[int], torch.Tensor]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.written, self.finish = [[] for _ in self.room], [0] * len(self.room)
        self.alive = list(range(len(self.room)))

    @property
    def shortest(self) -> int:
        """Tokens that every row that goes on may still write."""
        return min(self.room[i] - len(self.written[i]) for i in self.alive)

    @property
    def longest(self) -> int:
        """Tokens that some row that goes on may still write."""
        return max(self.room[i] - len(self.written[i]) for i in self.alive)

    def take(self, ids: list[list[int]], found: torch.Tensor) -> list[int]:
        """The tokens of K steps, K lists of one for each row that was going on, and what was found in them [K, rows,
        …]; → the places among these rows of those that go on. What a row was made to write after its end is dropped."""
        counts, going = [], []
        for place, i in enumerate(self.alive):
            counts.append(self._write(i, [step[place] for step in ids]))
            if self.finish[i] < 0:
                going.append(place)
        self.found.append((self.alive, counts, found))
        self.alive = [self.alive[place] for place in going]
        return going

    def _write(self, i: int, ids: list[int]) -> int:
        """Write ids behind row i, up to its end; → how many."""
        text = self.written[i]
        for count, token in enumerate(ids, 1):
            text.append(token)
            if self.ends.reached(text):
                self.finish[i] = 1 if token in self.ends.eos else 2
                return count
            if len(text) >= self.room[i]:
                self.finish[i] = 3 if self.room[i] < self.wanted else 0
                return count
        self.finish[i] = -1
        return len(ids)

    def counted(self) -> torch.Tensor:
        """What the last look found, of the steps that count [n, …]."""
        _, counts, found = self.found[-1]
        return found[torch.arange(len(found))[:, None] < torch.tensor(counts)]

    def table(self, fill: float) -> torch.Tensor:
        """What was found of every row and step, [rows, steps, …], `fill` after the end of a row."""
        longest = max(map(len, self.written))
        out = torch.full((len(self.room), longest, *self.found[0][2].shape[2:]), fill)
        start = 0
        for rows, _, found in self.found:
            stop = min(longest, start + len(found))
            out[rows, start:stop] = found[: stop - start].transpose(0, 1).to(out.dtype)
            start = stop
        out[torch.arange(longest) >= self.lengths()[:, None]] = fill
        return out

    def lengths(self) -> torch.Tensor:
        """How many tokens each row has written [rows]."""
        return torch.tensor([len(text) for text in self.written])

    def ids(self) -> torch.Tensor:
        """The ids of every row [rows, steps], −1 after its end."""
        longest = max(map(len, self.written))
        return torch.tensor([text + [-1] * (longest - len(text)) for text in self.written])
