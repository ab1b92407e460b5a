"""Texts that are in a file several times: a copy on the other side of a split would be judged by what was chosen on
itself, and copies are no evidence of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from workbench.core.context import Context


def without_repeats(rows: Sequence[Sequence[int]], kept: Sequence[int], context: Context) -> list[int]:
    """Of the rows that are `kept` (numbers of `rows`, token ids) the first of those that are fed alike. A warning says
    how many others there are."""
    seen: set[bytes] = set()
    found = []
    for number in kept:
        mark = hashlib.blake2b(np.asarray(rows[number], np.int64).tobytes(), digest_size=16).digest()
        if mark not in seen:
            seen.add(mark)
            found.append(number)
    if again := len(kept) - len(found):
        context.warn(
            f"{again:,} of the {len(kept):,} texts in {context.data} are the same tokens as another one, as they are "
            f"fed: each is used once."
        )
    return found
