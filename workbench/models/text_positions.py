"""Words in prompts, by character and by token: where a name stands, which token an answer starts with, and prompts of
equal length in which the names are others. Prompts stay text until they are encoded whole; nothing is decoded and
encoded again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.models.text_side import TextSide


def find(text: str, word: str) -> list[tuple[int, int]]:
    """Character spans of `word` in `text`: whole words only, any case, in order."""
    if not word.strip():
        return []
    return [m.span() for m in re.finditer(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE)]


def first_mention(text: str, groups: Mapping[str, Sequence[str]], otherwise: str) -> str:
    """The group one of whose phrases comes first in `text` (the longer phrase where two begin together), or
    `otherwise`."""
    found = [
        (span[0], -len(phrase), name)
        for name, phrases in groups.items()
        for phrase in phrases
        for span in find(text, phrase)[:1]
    ]
    return min(found)[2] if found else otherwise


def tokens_of(offsets: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Token positions that hold at least one character of the spans."""
    spans = list(spans)
    return tuple(i for i, (a, b) in enumerate(offsets) if a < b and any(a < end and start < b for start, end in spans))


def first_token(model: TextSide, prompt: str, answer: str) -> int | None:
    """The token that `answer` starts with after `prompt`; None where the prompt's tokens change when the answer
    follows."""
    ids = model.encode(prompt)
    space = "" if not prompt or prompt[-1].isspace() else " "
    whole = model.encode(prompt + space + answer.strip())
    return whole[len(ids)] if len(whole) > len(ids) and whole[: len(ids)] == ids else None


def word_ids(model: TextSide, text: str, word: str) -> list[int]:
    """Tokens of `word` as it continues `text` after a space, whatever the tokenizer makes of a leading space."""
    for before in (text, "a"):
        front, whole = model.encode(before), model.encode(f"{before} {word}")
        if len(whole) > len(front) and whole[: len(front)] == front:
            return whole[len(front) :]
    return model.encode(f" {word}", bos=False)


Encode = Callable[[str], tuple[list[int], list[tuple[int, int]]]]  # ids, and the characters [start, end) of each


@dataclass(frozen=True)
class Swap:
    """Replace `word`, wherever it stands, by one of the `candidates`."""

    word: str
    candidates: tuple[str, ...]


def swapped(
    model: TextSide,
    text: str,
    swaps: Sequence[Swap],
    rng: np.random.Generator,
    *,
    tries: int = 64,
    encode: Encode | None = None,
) -> list[int] | None:
    """Token ids of `text` with every word of `swaps` replaced by another, at the same length and with every other token
    in place.

    `encode`: how the text becomes tokens (None: as it is; a text may be written into another one, whose tokens have
    empty spans). Candidates with as many tokens as the word come first, in random order. None when no candidate
    fits."""
    encode = encode or model.encode_with_offsets
    ids, offsets = encode(text)
    taken: list[tuple[int, int, int]] = []  # character spans of the words, none inside another
    for which, swap in sorted(enumerate(swaps), key=lambda pair: -len(pair[1].word)):
        taken += [(a, b, which) for a, b in find(text, swap.word) if all(b <= c or d <= a for c, d, _ in taken)]
    taken.sort()
    chosen: dict[int, str] = {}
    for which, swap in enumerate(swaps):
        size = len(model.encode(" " + swap.word, bos=False))
        order = [swap.candidates[i] for i in rng.permutation(len(swap.candidates))]
        order.sort(key=lambda word: len(model.encode(" " + word, bos=False)) != size)
        for word in order[:tries]:
            new = _fits(encode, text, ids, offsets, taken, chosen | {which: word})
            if new is not None:
                chosen[which] = word
                break
        else:
            return None
    return _fits(encode, text, ids, offsets, taken, chosen)


def _fits(encode: Encode, text: str, ids, offsets, taken, chosen: Mapping[int, str]) -> list[int] | None:
    """The ids of the text with the chosen replacements, if nothing but the words changed; else None."""
    out, at, changed = "", 0, []
    for a, b, which in taken:
        if which in chosen:
            out += text[at:a] + chosen[which]
            at = b
            changed.append((a, b))
    new, _ = encode(out + text[at:])
    if len(new) != len(ids):
        return None
    inside = set(tokens_of(offsets, changed))
    return new if all(i in inside or a == b for i, (a, b) in enumerate(zip(ids, new))) else None
