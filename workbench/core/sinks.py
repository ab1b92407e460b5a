"""Tokens that carry a massive activation and say nothing of the text: left out of a measurement, or kept, and counted.

Which tokens these are is found in `workbench/models/sinks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.core.context import Context
from workbench.core.registry import option

if TYPE_CHECKING:
    import numpy as np

SINKS = ("leave_out", "keep")
COUNTERS = ("sinks_left_out", "texts_with_sinks", "sinks_read")


def sinks_option(what: str, *, as_before: Callable[[Any], bool]) -> Any:
    """The config key `sinks`. ``what``: what sinks are left out of. ``as_before(config)``: whether a run with that
    config has the numbers that it had before the key was there, and so the id."""
    return option(
        "leave_out",
        f"tokens that carry a massive activation (the first of a text, and any beyond 10 times the median norm): "
        f"leave_out of {what}, or keep them; how many is in the summary",
        choices=SINKS,
        later=as_before,
    )


def count_sinks(context: Context, *, left_out: int = 0, texts: int = 0, read: int = 0) -> None:
    """Add to the counters of run.json: tokens that were left out, texts that have such tokens, and tokens that were
    read though they are sinks."""
    for name, more in zip(COUNTERS, (left_out, texts, read)):
        if more:
            context.counters[name] = context.counters.get(name, 0) + int(more)


def counted_sinks(context: Context) -> dict[str, int]:
    """How many sinks were left out or read, for a summary; nothing where none was."""
    return {name: context.counters[name] for name in COUNTERS if name in context.counters}


def note_watched(context: Context, sinks: Sequence[np.ndarray], *, token: int | str, what: str) -> None:
    """Count the sinks of texts at one or several sites (an array [texts] of each: how many were left out of a mean, or
    whether the token that was read is one), and warn where one was read. ``what``: which texts, as in "texts of
    cities"."""
    if not len(sinks):
        return
    import numpy as np

    each = [np.asarray(found) for found in sinks]
    total, texts = int(sum(found.sum() for found in each)), int(np.any(each, axis=0).sum())
    if token == "mean":
        count_sinks(context, left_out=total, texts=texts)
    elif total:
        count_sinks(context, read=total, texts=texts)
        layers = sum(bool(found.any()) for found in each)
        context.warn(
            f"token={token} is a sink in {texts} of {len(each[0])} {what} (at {layers} of {len(each)} layers): its "
            f"massive activation says little of the text; read token=last or token=mean, or another position."
        )


def warn_of_lone_tokens(context: Context, lone: int, total: int, *, what: str) -> None:
    """Warn where some of several samples (``what``: which, as in "texts of cities") are one token, the first of its
    text: beside others it would be a sink, alone it is all there is, and its massive activation decides a spectrum, a
    mean over samples or a similarity. Where all of them are, they are alike."""
    if 0 < lone < total:
        context.warn(
            f"{lone} of {total} {what} are a single token, which is the first of its text and is measured as there is "
            f"no other: where first tokens carry a massive activation it outweighs all other samples; leave such "
            f"samples out."
        )
