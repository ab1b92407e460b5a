"""The sentences of a response, by its tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate

from workbench.models.model import Model

# A full stop, exclamation or question mark with the quotes and brackets that close after it, or a line break
MARKS = re.compile(r"[.!?…]+[\"'”’»)\]*_]*|[。！？]+[」』”’）]*|\n")
ALONE = "。！？"  # marks that end a sentence whatever follows


def sentence_ends(text: str) -> list[int]:
    """Where the sentences of a text end, as characters: after a mark (or a line break) that is followed by white space,
    an upper-case letter or nothing. What only white space follows is no sentence of its own."""
    ends = []
    for mark in MARKS.finditer(text):
        after = text[mark.end() : mark.end() + 1]
        if not after or after.isspace() or after.isupper() or mark[0][0] in ALONE:
            ends.append(mark.end())
    return ends


def sentence_splitter(model: Model) -> Callable[[Sequence[int], int], list[int]]:
    """Of token ids of a response, the number of the sentence (from 0) that each belongs to; a sentence ends with the
    first `thinking` tokens too. A token belongs to the sentence in which its first character that is not white space
    stands; white space and special tokens (an end-of-text token) to the sentence before."""
    special, names = set(getattr(model.tokenizer, "all_special_ids", ())), {}

    def split(ids: Sequence[int], thinking: int = 0) -> list[int]:
        ids = [int(i) for i in ids]
        new = [i for i in dict.fromkeys(ids) if i not in names]
        names.update(zip(new, model.token_strings(new)))
        pieces = ["" if i in special else names[i] for i in ids]
        out, number = [], -1  # of the last sentence that was begun
        for part in (pieces[:thinking], pieces[thinking:]):
            starts = [0, *accumulate(map(len, part))]
            ends, passed, begun = sentence_ends("".join(part)), 0, False
            for start, piece in zip(starts, part):
                if piece.strip():
                    at = start + len(piece) - len(piece.lstrip())
                    over = passed
                    while over < len(ends) and ends[over] <= at:
                        over += 1
                    number += not begun or over > passed
                    begun, passed = True, over
                out.append(max(number, 0))
        return out

    return split
