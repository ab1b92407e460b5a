"""How far a run is: one share of all of its stages, that only grows, and the time that is left of it.

A probe says which stages its work has, and what each is likely to take beside the others (`Context.stages`,
`Context.each`); stages hold stages. What is reported inside of one (`Context.progress`) fills its part of the whole. A
series of reports that begins anew inside one stage, such as a pass over other texts, goes on in what is left of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

COUNTS = re.compile(r": [0-9,]+ of [0-9,]+$")
SCALE = 1000  # what whoever is told counts to
SERIES = 0.9  # of what is left of a stage, what one series of reports fills: another may follow
LAST = 0.995  # of the whole, until it is complete
SKIPPED = 0.02, 0.25  # so large a step within so few seconds was not computed, but read from an earlier run
TRUSTED = 0.15  # share from which the pace of this run alone says how long it takes


@dataclass
class Stretch:
    """A part of the whole, from `start` to `end`, that a stage fills; the present series of reports in it began at
    `begun`, and has said so much of itself (`said`)."""

    start: float
    end: float
    begun: float
    said: float = 0.0
    title: str = ""


@dataclass
class OverallProgress:
    """The stages that are open, the innermost last, and the share that was reached."""

    open: list[Stretch] = field(default_factory=lambda: [Stretch(0.0, 1.0, 0.0)])
    reached: float = 0.0

    def told(self, done: int, total: int) -> float:
        """The share of the whole once `done` of `total` is done of what the innermost stage is at."""
        if total > 0:
            here, share = self.open[-1], min(1.0, max(0.0, done / total))
            if share < here.said:  # it begins anew
                here.begun = min(max(here.begun, self.reached), here.end)
            here.said = share
            self._reach(here.begun + (here.end - here.begun) * SERIES * share)
        return min(self.reached, LAST)

    @property
    def title(self) -> str:
        """What the innermost stages that have titles are called, at most two of them."""
        return ", ".join([stage.title for stage in self.open if stage.title][-2:])

    def _reach(self, share: float) -> None:
        self.reached = max(self.reached, share)

    @contextmanager
    def within(self, depth: int, start: float, end: float, title: str = "") -> Iterator[None]:
        """A stage from `start` to `end` of the stage that was innermost at this depth; shares of it."""
        del self.open[depth:]  # of stages that ended with an error
        around = self.open[-1]
        size = around.end - around.start
        begun = around.start + size * start
        here = Stretch(begun, around.start + size * end, begun, title=title)
        self._reach(here.start)
        self.open.append(here)
        yield
        del self.open[depth:]
        self._reach(here.end)


def stage_of(words: str) -> str:
    """What is said of a stage without how far it is: the same for as long as it lasts."""
    return COUNTS.sub("", words)


def shares(weights: Sequence[float]) -> list[tuple[float, float]]:
    """Where each of these weights begins and ends on a whole of 1; all alike where none weighs anything."""
    if not weights:
        return []
    whole = float(sum(weights))
    sizes = [weight / whole for weight in weights] if whole > 0 else [1 / len(weights)] * len(weights)
    ends = [min(1.0, sum(sizes[: n + 1])) for n in range(len(sizes))]
    return list(zip([0.0, *ends], ends))


@dataclass
class TimeLeft:
    """The time that is left of a run, from how its share grows. `expected`: seconds that it is likely to take, where a
    run like it was timed; it counts for less as this run shows its own pace."""

    expected: float | None = None
    started: float | None = None
    last: tuple[float, float] = (0.0, 0.0)  # moment, share
    skipped: float = 0.0

    def after(self, share: float, moment: float | None = None) -> float | None:
        """Seconds that are left at this share of the whole; None where nothing is known yet."""
        now = time.monotonic() if moment is None else moment
        if self.started is None:
            self.started, self.last, self.skipped = now, (now, share), share
        step, passed = share - self.last[1], now - self.last[0]
        if step > SKIPPED[0] and passed < SKIPPED[1]:
            self.skipped += step
        self.last = now, share
        elapsed, worked = now - self.started, share - self.skipped
        own = elapsed / worked * (1 - share) if worked > 0.003 and elapsed > 0.5 else None
        prior = None if self.expected is None else self.expected * (1 - share)
        if own is None or prior is None:
            return prior if own is None else own
        weight = min(1.0, worked / TRUSTED)
        return weight * own + (1 - weight) * prior
