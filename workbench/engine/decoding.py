"""The loop of decoding: rows that are continued a token at a time, and looked at every few steps.

The device is not waited for at every step. What it chose is fed back where it is, and every few steps the host looks at
the tokens of all steps since it looked last: rows that have come to an end leave the batch then, and what they were
made to write beyond their end is dropped, so that the texts do not depend on how often anybody looks. On a CPU, where
looking costs nothing, that is every step.
"""

from __future__ import annotations

from typing import Protocol

import torch

from workbench.engine.endings import GrowingTexts
from workbench.engine.one_by_one import DecodedRows, Decoding, OneByOne
from workbench.engine.recorded_steps import pays, recorded
from workbench.engine.sampling import check_steps


class Stepping(Protocol):
    """What makes steps: each chooses one token more for every row."""

    @property
    def pending(self) -> int:
        """Steps since the host looked last."""
        ...

    @property
    def most(self) -> int:
        """Steps that can be made before it looks."""
        ...

    def step(self, alive: list[int]) -> None:
        """Make a step; `alive`: which texts the rows write."""
        ...

    def look(self) -> tuple[list[list[int]], torch.Tensor]:
        """Wait for the pending steps: their tokens, a list for each step, and what was found [steps, rows, …]."""
        ...

    def keep(self, places: list[int]) -> None:
        """Go on with these of the rows looked at."""
        ...


@torch.no_grad()
def decode(rows: DecodedRows, scores: torch.Tensor, texts: GrowingTexts, how: Decoding) -> None:
    """Write `texts` after rows whose prompts were read, with these scores [rows, V] of their last tokens.

    Raises RunFailed for scores that are NaN or infinite."""
    steps, plain = 1, OneByOne(rows, how, scores)
    stepping: Stepping = plain
    tried = False
    # beyond its room a row would come to positions that the model does not have
    look = min(stepping.most, texts.shortest)
    while True:
        if stepping.pending == look:
            before = len(texts.alive)
            keep = texts.take(*stepping.look())
            check_steps(texts.counted(), rows.model.name)
            if not keep:
                return
            if len(keep) < before:
                stepping.keep(keep)
            look = min(stepping.most, texts.shortest)
        how.told(steps)
        if stepping.pending == 0 and not tried and pays(plain, texts.longest, texts.alive):
            stepping, tried = recorded(plain, texts.longest, texts.alive), True
            look = min(stepping.most, texts.shortest)
        else:
            stepping.step(texts.alive)
        steps += 1
