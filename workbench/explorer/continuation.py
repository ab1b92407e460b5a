"""What a model writes after a prompt, token by token, with heads and MLPs switched or not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from workbench.core.errors import InputError, WorkbenchError
from workbench.engine.sampling import Rule
from workbench.engine.token_by_token import token_by_token
from workbench.explorer.opened_model import ENDS, Opened
from workbench.explorer.switches import Switches, edits_of

MOST = 64  # tokens of a continuation


@dataclass(eq=False)
class Continuation:
    """A continuation that grows when it is told to: the likeliest tokens, or at a `temperature` above 0 those that
    `seed` draws. Head and MLP switches act on every token, a patch on the prompt's own.

    `written`: the ids so far; `ended`: whether nothing follows them (EOS, MOST tokens, or the model's context)."""

    opened: Opened
    ids: tuple[int, ...]
    switches: Switches = Switches()
    temperature: float = 0.0
    seed: int = 0
    written: list[int] = field(default_factory=list)
    ended: bool = False
    _tokens: Iterator[int] | None = None
    _problem: WorkbenchError | None = None

    def grow(self, most: int, *, seconds: float | None = None) -> None:
        """Write until there are `most` tokens, or `seconds` have gone, one token at least. The model's lock is held for
        one token at a time. Raises what the model's passes raise, also when it is asked again."""
        begun = time.monotonic()
        while len(self.written) < most and not self.ended:
            with self.opened.lock:
                self._write_one()
            if seconds is not None and time.monotonic() - begun >= seconds:
                return

    def finished(self, most: int) -> bool:
        """Whether there are `most` tokens, or as many as there will be."""
        return self.ended or len(self.written) >= most

    def text(self, most: int) -> str:
        """The first `most` tokens as text, with `ENDS` where the last of them is EOS."""
        shown, model = self.written[:most], self.opened.model
        text = model.decode(shown)
        return f"{text} {ENDS}" if shown and shown[-1] in model.eos_ids else text

    def _write_one(self) -> None:
        if self._problem is not None:
            raise self._problem
        try:
            if self._tokens is None:
                edits = edits_of(self.opened, self.switches, self.ids)
                rule = Rule(temperature=self.temperature)
                self._tokens = token_by_token(
                    self.opened.model, self.ids, max_new_tokens=MOST, rule=rule, seed=self.seed, edits=edits
                )
            self.written.append(next(self._tokens))
        except StopIteration:
            self.ended = True
        except WorkbenchError as error:
            self._problem = error
            raise
        if self.ended or len(self.written) == MOST or self.written[-1] in self.opened.model.eos_ids:
            self.ended, self._tokens = True, None  # what it kept of the prompt is given back


def write_on(opened: Opened, ids: Sequence[int], switches: Switches = Switches(), *, most: int = 24) -> str:
    """The greedy continuation under the switches, as text. Raises InputError for more than MOST tokens."""
    if not 1 <= most <= MOST:
        raise InputError(f"A continuation has 1 to {MOST} tokens, not {most}.")
    found = Continuation(opened, tuple(ids), switches)
    found.grow(most)
    return found.text(most)
