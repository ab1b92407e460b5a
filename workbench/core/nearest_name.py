"""What an unknown name may have been meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word that looks most like ``word``, or nothing."""
    lowered = {item.lower().replace("-", "_"): item for item in known}
    close = difflib.get_close_matches(str(word).lower().replace("-", "_"), list(lowered), n=1, cutoff=0.55)
    return f" (did you mean '{lowered[close[0]]}'?)" if close else ""
