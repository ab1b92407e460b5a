"""Needle prompts read for their keys and values: every beginning that prompts share is run once.

Prompts share their haystack up to the needle, for all needles, lengths and depths. From there a needle and the text
after it are the same for every length that puts it at the same place: the longest prompt's text is read once, and each
length goes on from its own end of it with the question. On the default grid (20 lengths, 10 depths) about a fifth of
the tokens is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from workbench.engine.kv_cache import Cached, prefill
from workbench.models.batching import batches
from workbench.models.model import Model
from workbench.models.needle_prompts import Trial

PART = 64  # trials at most in a part that is put together of several places


class Haystack:
    """Keys and values of the haystack's beginning, as far as any trial of the run shares it: computed when first
    needed, cut for each group. Never for the remaining trials only: a run that was stopped would round otherwise when
    it goes on."""

    def __init__(self, model: Model, tokens: list[int]):
        self.model, self.tokens, self.cached = model, tokens, None

    def upto(self, length: int, copies: int) -> Cached | None:
        """Keys and values of the first `length` tokens for a batch of `copies` rows; None for length 0."""
        if length == 0:
            return None
        if self.cached is None:
            self.cached = prefill(self.model, [self.tokens], None)
        return self.cached.first(length).fork(copies)


def places(model: Model, trials: Sequence[Trial], max_tokens: int) -> list[list[int]]:
    """Trials that are read together: needles at the same place, at any length, longest haystacks before them first; as
    many needles as have room in `max_tokens` at their greatest length. Where attention slides over columns, prompts
    must be equally long as well."""
    by_place = defaultdict(lambda: defaultdict(list))
    for i, trial in enumerate(trials):
        key = (-trial.shared, trial.length, len(trial.ids)) if model.sliding else (-trial.shared,)
        by_place[key][trial.needle].append(i)
    out = []
    for _, needles in sorted(by_place.items()):
        rows = list(needles.values())
        longest = [max(len(trials[i].ids) for i in row) for row in rows]
        out += [[i for k in batch for i in rows[k]] for batch in batches(longest, max_tokens=max_tokens)]
    return out


def parts(model: Model, trials: Sequence[Trial], max_tokens: int) -> list[list[int]]:
    """Trials that are measured and saved together: those of a place; small neighbours together."""
    out: list[list[int]] = []
    for place in places(model, trials, max_tokens):
        rows = [*out[-1], *place] if out else place
        fits = len(rows) <= PART and len(rows) * max(len(trials[i].ids) for i in rows) <= max_tokens
        if out and not model.sliding and fits:
            out[-1] = rows
        else:
            out.append(place)
    return out


def bodies(haystack: Haystack, trials: Sequence[Trial]) -> Iterator[tuple[list[int], Cached | None, list[int]]]:
    """The trials of one place in batches that go on alike: (their numbers, their past, how many tokens of each are in
    it).

    The pasts are cut from the same keys, the longest first, with room for what follows: each grows over what only
    longer ones need, so it is to be used up, and nothing of it kept but copies, before the next is asked for."""
    model, shared = haystack.model, trials[0].shared
    if model.sliding:
        yield list(range(len(trials))), haystack.upto(shared, len(trials)), [shared] * len(trials)
        return
    longest: dict[int, Trial] = {}
    for trial in trials:
        if trial.needle not in longest or trial.body > longest[trial.needle].body:
            longest[trial.needle] = trial
    row_of = {needle: row for row, needle in enumerate(longest)}
    past = prefill(
        model,
        [t.ids[shared : t.body] for t in longest.values()],
        haystack.upto(shared, len(longest)),
        room=max(len(t.ids) - t.body + len(t.guess) for t in trials),
    )
    # the rows end together, so a text that ends earlier by n tokens ends earlier by n columns
    by_end = defaultdict(list)
    for i, trial in enumerate(trials):
        by_end[longest[trial.needle].body - trial.body].append(i)
    width = past.past.mask.shape[1]
    for less, same in sorted(by_end.items()):
        yield same, past.first(width - less, [row_of[trials[i].needle] for i in same]), [trials[i].body for i in same]


def stretches(model: Model, trials: Sequence[Trial]) -> list[tuple[int, int]]:
    """The positions [start, end) of every stretch of tokens that is run for these trials, the haystack before the
    needles aside."""
    if model.sliding:
        return [(t.shared, len(t.ids)) for t in trials]
    ends: dict[tuple[int, int], int] = defaultdict(int)
    for trial in trials:
        ends[trial.needle, trial.shared] = max(ends[trial.needle, trial.shared], trial.body)
    return [(shared, end) for (_, shared), end in ends.items()] + [(t.body, len(t.ids)) for t in trials]
