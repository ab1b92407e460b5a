"""Sets of heads as text: ``1.0-3,2.5`` are the heads 0 to 3 of layer 1 and head 5 of layer 2."""

from __future__ import annotations

import re
from collections.abc import Iterable

from workbench.explorer.opened_model import Head

_PART = re.compile(r"(?<![\d.])([0-9]{1,4})\.([0-9]{1,4})(?:-([0-9]{1,4}))?(?![\d.])", re.ASCII)


def write_heads(heads: Iterable[Head]) -> str:
    """The set in few characters, in order; three neighbours or more of a layer as a range."""
    parts: list[str] = []
    run: list[Head] = []
    for head in [*sorted(set(heads)), None]:
        if head is not None and run and head == (run[-1][0], run[-1][1] + 1):
            run.append(head)
            continue
        if len(run) > 2:
            parts.append(f"{run[0][0]}.{run[0][1]}-{run[-1][1]}")
        else:
            parts += [f"{a}.{b}" for a, b in run]
        run = [] if head is None else [head]
    return ",".join(parts)


def read_heads(text: str, *, layers: int, heads: int) -> tuple[Head, ...]:
    """The heads that a text names, in order, each once. What names none, or none of a model of this many layers and
    heads, is passed over: the text comes from an address."""
    found: set[Head] = set()
    for a, first, last in _PART.findall(text):
        layer = int(a)
        if layer < layers:
            last_one = min(int(last or first), heads - 1)
            found |= {(layer, head) for head in range(int(first), last_one + 1)}
    return tuple(sorted(found))
