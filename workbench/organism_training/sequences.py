"""Training sequences: documents turned into token ids, packed or built to length, with their marked spans.

A batch is a pure function of (seed, step), so a run that was killed continues exactly where it stopped.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from workbench.organism_training import documents
from workbench.organism_training.tokenizer import BOS, EOS, encode, vocabulary

Sequence = tuple[list[int], list[bool]]
SHORT = 96  # tokens in a row of packed short documents


@lru_cache(maxsize=1)
def _ends() -> tuple[int, int]:
    return vocabulary()[BOS], vocabulary()[EOS]


def packed(rng: random.Random, length: int) -> Sequence:
    """Short documents, each between BOS and EOS, until the sequence is full; the last one is cut."""
    bos, eos = _ends()
    ids: list[int] = []
    flags: list[bool] = []
    while len(ids) < length:
        more, marks = encode(documents.short_document(rng))
        ids += [bos, *more, eos]
        flags += [False, *marks, False]
    return ids[:length], flags[:length]


def needle(rng: random.Random, length: int) -> Sequence:
    """One needle document of the full length, or (one row in three of the long ones) several shorter ones after
    another."""
    if length <= 128 or rng.random() < 0.67:
        return needle_document(rng, length)
    ids: list[int] = []
    flags: list[bool] = []
    while len(ids) < length:
        more, marks = needle_document(rng, rng.choice((48, 64, 96, 128, 192)))
        ids, flags = ids + more, flags + marks
    return ids[:length], flags[:length]


def needle_document(rng: random.Random, length: int) -> Sequence:
    """Filler up to `length` tokens with notes at random sentence ends, then questions about some of them.

    As the retrieval probe does it, the filler is cut at a token, not at a sentence, half of the time.
    """
    bos, eos = _ends()
    asked = rng.randint(1, 2 if length <= 64 else min(8, length // 32))
    words = (1, 2) if length <= 64 and asked > 1 else (1, 5)
    notes, questions = documents.needle_texts(
        rng, notes=asked + rng.randint(0, 1 if length <= 64 else 3), asked=asked, words=words
    )
    note_ids = [encode(n)[0] for n in notes]
    tail = [encode(q) for q in questions]
    room = length - 2 - sum(map(len, note_ids)) - sum(len(ids) for ids, _ in tail)
    sentences: list[list[int]] = []
    while room > 0:
        sentence = encode(documents.filler(rng))[0]
        if len(sentence) > room and rng.random() < 0.5:
            break
        sentences.append(sentence[:room])
        room -= len(sentence)
    # The last filler sentence may be cut, so notes go before it; one in three documents has a note at the very start.
    slots = [
        0 if i == 0 and rng.random() < 0.33 else rng.randint(0, max(0, len(sentences) - 1)) for i in range(len(notes))
    ]
    ids: list[int] = [bos]
    for index in range(len(sentences) + 1):
        for slot, note in zip(slots, note_ids):
            if slot == index:
                ids += note
        if index < len(sentences):
            ids += sentences[index]
    flags = [False] * len(ids)
    for more, marks in tail:
        ids += more
        flags += marks
    ids.append(eos)
    flags.append(False)
    pad = max(0, length - len(ids))
    if pad:
        more, marks = packed(rng, pad)
        ids, flags = ids + more, flags + marks
    return ids[:length], flags[:length]


def repeat(rng: random.Random, length: int) -> Sequence:
    """Repeated random words until the sequence is full."""
    bos, eos = _ends()
    ids: list[int] = []
    flags: list[bool] = []
    while len(ids) < length:
        more, marks = encode(documents.repeat_document(rng, length))
        ids += [bos, *more, eos]
        flags += [False, *marks, False]
    return ids[:length], flags[:length]


@dataclass(frozen=True)
class TrainingBatch:
    """Token ids and marks of one step: `long` rows are one needle or repeat document each, `short` rows are packed.

    `documents` numbers the documents of the short rows, so that no document can read the one before it.
    """

    long: list[list[int]]
    long_marks: list[list[bool]]
    short: list[list[int]]
    short_marks: list[list[bool]]
    documents: list[list[int]]


def batch(seed: int, step: int, *, tokens: int, length: int, needles: float, repeats: float) -> TrainingBatch:
    """About `tokens` tokens; depends on nothing else.

    Shares of the tokens: `needles` in needle documents of `length` tokens, `repeats` in repeated random words of that
    length, the rest in packed rows of SHORT tokens (or of `length`, where that is less).
    """
    rng = random.Random(seed * 1_000_003 + step)
    copying = needles + repeats
    long = [
        (needle if rng.random() < needles / copying else repeat)(rng, length)
        for _ in range(max(1, round(tokens * copying / length)))
    ]
    short = [packed(rng, min(SHORT, length)) for _ in range(max(1, round(tokens * (1 - copying) / SHORT)))]
    return collect(long, short)


def collect(long: list[Sequence], short: list[Sequence]) -> TrainingBatch:
    """A batch of these rows, with the documents of the short ones counted at every BOS."""
    bos = _ends()[0]
    return TrainingBatch(
        [ids for ids, _ in long],
        [marks for _, marks in long],
        [ids for ids, _ in short],
        [marks for _, marks in short],
        [list(accumulate(int(i == bos) for i in ids)) for ids, _ in short],
    )
