"""What a probe says of two of its runs before their tables are held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.core import registry
from workbench.core.errors import WorkbenchError
from workbench.stats.intervals import Estimate

if TYPE_CHECKING:
    from workbench.runs.folder import Run


@dataclass(frozen=True)
class Comparable:
    """``names``: key columns that are a name of the model where a table has one of it only, and do not keep rows
    apart. ``apart``: table -> columns whose numbers are not of one measure in the two runs, so that they have no
    difference and no correlation; ``reason``: why, in one sentence. ``headline``: what can be said of both instead, in
    a few words -> its value, second over (or less) first, with its interval."""

    names: tuple[str, ...] = ()
    apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reason: str = ""
    headline: Mapping[str, Estimate] = field(default_factory=dict)


def comparable(first: Run, second: Run) -> Comparable:
    """What the probe of both says, by the function that it names (``comparable``); nothing for one that names none, or
    is not installed here."""
    try:
        place = registry.get(first.probe).comparable
    except WorkbenchError:  # a run of a probe that is not installed here can still be compared
        return Comparable()
    return registry.load_function(place)(first, second) if place else Comparable()
