"""Texts that say almost the same: a statement and its other answer, a claim with a word more, two orders of words.

Between the two sides of a split such rows tell a classifier of one about the other; where they come in pairs of
opposite labels, it does worse than chance. The rule knows no file, no column and no label.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

LONGEST = 12  # words that may differ
MOST = 8  # different texts of one group: what more share is a form of words ("the city of … is in Russia")
RARE = 2.0  # a shared word or pair of words stands in at most so many times the texts that share it
SHARE = 0.25  # of a text's weight (inverse document frequency) that what is shared must hold

_ALONE = "\u3040-\u30ff\u3400-\u9fff"  # Japanese and Chinese, written without blanks: one character is one word
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+(?:[-'’.][^\W{_ALONE}]+)*")


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """The group of each text, [n] int64, named by the first row that it holds; most texts are alone.

    Two texts are near-identical where they have the same words in any order, or where they differ in one run of at
    most `LONGEST` words (and no more than half of them) and what they share is their own: it holds a word, or two in a
    row, that hardly any other text has (`RARE`), and at least a quarter of the text's weight (`SHARE`). Where a text
    could go with several others it goes with the fewest; among as few, with those that it shares the longer beginning
    with; and it is grouped with those that go the same way. Case and punctuation do not count. At most `MOST` texts of
    different words are one group. Time grows with the number of words."""
    if not texts:
        return np.empty(0, dtype=np.int64)
    rows, row_of = _different(tuple(_WORD.findall(text.lower())) or (text,) for text in texts)
    bags, bag_of = _different(tuple(sorted(row)) for row in rows)
    group = _groups(list(rows), bag_of, list(bags))
    first: dict[int, int] = {}
    return np.array([first.setdefault(group[bag_of[k]], row) for row, k in enumerate(row_of)], dtype=np.int64)


def _different(items: Iterable[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], int], list[int]]:
    """Each different item with its number, in order of appearance, and the number of every item."""
    numbers: dict[tuple[str, ...], int] = {}
    return numbers, [numbers.setdefault(item, len(numbers)) for item in items]


def _groups(rows: list[tuple[str, ...]], bag_of: list[int], bags: list[tuple[str, ...]]) -> list[int]:
    """A group for every bag of words: each goes with those that chose what it chose."""
    sharing = sorted(_sharing(rows, bag_of), key=_rank)
    chosen: dict[int, frozenset[int]] = {}
    words, pairs = _frequencies(rows, bags) if sharing else (Counter(), Counter())
    weight = {word: math.log(len(bags) / count) for word, count in words.items()}
    for company, members in sharing:
        if company <= chosen.keys():
            continue
        row, start, length = members[0]
        before, after = rows[row][:start], rows[row][start + length :]
        seen = [words[word] for word in (*before, *after)]
        seen += [pairs[pair] for part in (before, after) for pair in zip(part, part[1:])]
        if min(seen) > RARE * len(company):
            continue
        own = sum(weight[word] for word in (*before, *after))
        for row, start, length in members:
            if own >= SHARE * (own + sum(weight[word] for word in rows[row][start : start + length])) and own > 0:
                chosen.setdefault(bag_of[row], company)
    group: dict[frozenset[int], int] = {}
    return [group.setdefault(chosen.get(bag, frozenset((bag,))), bag) for bag in range(len(bags))]


def _frequencies(rows: list[tuple[str, ...]], bags: list[tuple[str, ...]]) -> tuple[Counter, Counter]:
    """In how many texts each word stands, and each two in a row."""
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for bag in bags:
        words.update(set(bag))
    for row in rows:
        pairs.update(set(zip(row, row[1:])))
    return words, pairs


def _rank(found: tuple[frozenset[int], list[tuple[int, int, int]]]) -> tuple[int, int, int, list[int]]:
    """The fewest first, then the longer shared beginning, then the shorter run, then the earlier texts."""
    company, members = found
    return len(company), -members[0][1], max(length for _, _, length in members), sorted(company)


def _sharing(
    rows: list[tuple[str, ...]], bag_of: list[int]
) -> Iterator[tuple[frozenset[int], list[tuple[int, int, int]]]]:
    """Every beginning and end that two to `MOST` bags share around a run of words: the bags, and of each text its row,
    where the run starts and how long it is.

    A beginning and an end are hashed; only those that are not alone are put together."""
    lengths = np.array([len(row) for row in rows])
    start_of = np.concatenate([[0], np.cumsum(lengths)])
    begins, ends = _hashes(rows, start_of)
    shared_end = _not_alone(ends)
    place = np.flatnonzero(_not_alone(begins))
    first_place = start_of[:-1] + np.arange(len(rows))  # one more place than words in every row
    row_of = np.searchsorted(first_place, place, side="right") - 1
    at, size = place - first_place[row_of], lengths[row_of]
    found = []
    for length in range(LONGEST + 1):
        fits = (at + length <= size) & (length <= np.maximum(size // 2, 1)) & (length < size)
        fits[fits] = shared_end[place[fits] + length]
        here = place[fits]
        key = begins[here] * np.uint64(0x9E3779B97F4A7C15) + ends[here + length]
        found.append((key, row_of[fits], at[fits], np.full(len(here), length)))
    key, row, start, run = (np.concatenate(parts) for parts in zip(*found))
    order = np.argsort(key, kind="stable")
    key, row, start, run = key[order], row[order], start[order], run[order]
    bounds = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1], [True]]))
    several = np.diff(bounds) > 1
    for a, b in zip(bounds[:-1][several], bounds[1:][several]):
        members = list(zip(row[a:b].tolist(), start[a:b].tolist(), run[a:b].tolist()))
        company = frozenset(bag_of[member[0]] for member in members)
        if 2 <= len(company) <= MOST and _ends_differ([rows[k][s : s + n] for k, s, n in members]):
            yield company, members


def _ends_differ(runs: list[tuple[str, ...]]) -> bool:
    """Whether the runs agree in no first and in no last word: what they agree in is shared, and no part of a run."""
    return len({run[:1] for run in runs}) > 1 and len({run[-1:] for run in runs}) > 1


def _hashes(rows: list[tuple[str, ...]], start_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all beginnings and of all ends of every row, rows after one another, from the empty one to the whole
    (ends: from the whole to the empty one), each [words + rows] uint64."""
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for row in rows for word in row], dtype=np.int64)
    rng = np.random.default_rng(0)  # hashes only: nothing is drawn
    lengths = np.diff(start_of)
    row_of = np.repeat(np.arange(len(rows)), lengths)
    at = np.arange(len(words)) - start_of[:-1][row_of]
    out = []
    for position in (at, lengths[row_of] - 1 - at):
        code = rng.integers(1, 2**63, size=len(numbers) + 1, dtype=np.uint64)
        factor = np.multiply.accumulate(np.full(lengths.max(initial=0) + 1, 0x5851F42D4C957F2D, dtype=np.uint64))
        total = np.concatenate([[np.uint64(0)], np.cumsum(code[words] * factor[position])])
        out.append(total)
    place = np.arange(start_of[-1] + len(rows)) - np.repeat(np.arange(len(rows)), lengths + 1)
    row = np.repeat(np.arange(len(rows)), lengths + 1)
    begins = out[0][place] - out[0][start_of[:-1]][row]
    ends = out[1][start_of[1:]][row] - out[1][place]
    return begins, ends


def _not_alone(hashes: np.ndarray) -> np.ndarray:
    """Whether each value is there more than once."""
    order = np.argsort(hashes)
    same = hashes[order][1:] == hashes[order][:-1]
    alone = np.empty(len(hashes), dtype=bool)
    alone[order] = ~(np.append(same, False) | np.insert(same, 0, False))
    return ~alone
