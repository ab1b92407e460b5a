"""What a device was asked to do, counted by kind and by the line of this repository that asked.

The kinds:

    launch           an operation that a device would start a kernel for
    wait             the host needs what the device has not finished: a number, the length of a result, synchronize()
    to_device        a copy to the device that the host waits for: pageable memory, or `non_blocking` not asked for
    to_host          a copy to the host that it waits for
    to_device_async  from pinned memory with `non_blocking`: the host goes on
    to_host_async    into pinned memory with `non_blocking`: the host goes on
    between_devices  a copy from one device to another
    event_wait       the host waits for one event, not for all that the device was given
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = (
    "launch",
    "wait",
    "to_device",
    "to_host",
    "to_device_async",
    "to_host_async",
    "between_devices",
    "event_wait",
)
_ROOT = str(Path(__file__).resolve().parents[2]) + "/"
_OWN = ("tests/virtual_accelerator.py", "tests/support/device_", "tests/support/virtual_device.py", ".venv/")
_open: list[Counts] = []
_ours: dict[str, str | None] = {}  # file names, as the repository has them, None where they are not its own


class Counts:
    """The counts of one block: `counts.launch`, `counts.wait`, … are numbers; `lines` says who asked for what."""

    def __init__(self) -> None:
        self.lines: Counter[tuple[str, str, str]] = Counter()  # (kind, operation, file:line)

    def __getattr__(self, kind: str) -> int:
        if kind not in KINDS:
            raise AttributeError(kind)
        return sum(n for (counted, _, _), n in self.lines.items() if counted == kind)

    @property
    def waits(self) -> int:
        """How often the host stood still until the device had caught up: waits, and copies that block."""
        return self.wait + self.to_device + self.to_host

    def of(self, *kinds: str) -> Counter[str]:
        """{"operation file:line": count} of these kinds, the most frequent first when printed."""
        found: Counter[str] = Counter()
        for (kind, operation, line), n in self.lines.items():
            if kind in kinds:
                found[f"{operation} {line}"] += n
        return found

    def __repr__(self) -> str:
        return "Counts(" + ", ".join(f"{kind}={n}" for kind in KINDS if (n := getattr(self, kind))) + ")"


@contextmanager
def counting() -> Iterator[Counts]:
    """The counts of what is done in the block; blocks may be nested, and each counts everything inside it."""
    counts = Counts()
    _open.append(counts)
    try:
        yield counts
    finally:
        _open.remove(counts)


def count(kind: str, operation: str) -> None:
    """One more of `kind`, in every block that is open."""
    if not _open:
        return
    key = (kind, operation, source_line())
    for counts in _open:
        counts.lines[key] += 1


def source_line() -> str:
    """The innermost line of this repository that is being run, "workbench/engine/generate.py:31"; "?" for none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in _ours:
            inside = name.removeprefix(_ROOT)
            _ours[name] = None if inside == name or inside.startswith(_OWN) else inside
        if (ours := _ours[name]) is not None:
            return f"{ours}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
