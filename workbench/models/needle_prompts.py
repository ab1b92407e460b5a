"""Needle-in-a-haystack prompts, put together at the token level: haystack, a needle at a sentence end, a question.

Nothing is decoded and encoded again. The answer's tokens are found by character offsets inside the needle. All prompts
of one length share the same haystack tokens, so that keys and values up to the insertion point can be shared too.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from workbench.core.errors import InputError
from workbench.models.prompt_style import PromptStyle, write_prompt

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from workbench.models.model import Model

PAPER_TEMPLATE = "{context}Based on the content of the book, Question: {question}\nAnswer:"
CHAT_TURN = "<book>{context}</book>\nBased on the content of the book, Question: {question}\nAnswer:"
ANCHOR = "."  # pieces are encoded after a full stop, as they stand in the text, and the full stop is dropped again


@dataclass(frozen=True)
class Needle:
    """A needle as tokens. `span`: token indices of the answer inside `ids`."""

    row: int
    question: str
    answer: str
    ids: tuple[int, ...]
    span: tuple[int, int]
    tail: tuple[int, ...]  # the tokens after the context: the question in its template


@dataclass(frozen=True)
class Trial:
    """One prompt. `shared`: how many of its first tokens are plain haystack; `body`: how many come before the question;
    `span`: answer tokens in the prompt, end excluded; `guess`: what a copying model would say, the needle from the
    answer on."""

    needle: int
    length: int
    depth: float
    ids: tuple[int, ...]
    shared: int
    body: int
    span: tuple[int, int]
    guess: tuple[int, ...]


class Words:
    """Tokenizer for rouge-score: runs of letters, marks and digits of any script, in lower case, English ones stemmed.

    rouge-score's own keeps a-z and 0-9 only, so that an answer in another script could never be recalled; on ASCII text
    the two give the same. Scripts written without spaces give one word per character."""

    _UNSPACED = "".join(
        rf"\p{{{script}}}" for script in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
    )

    def __init__(self) -> None:
        import regex
        from nltk.stem.porter import PorterStemmer

        self.pattern = regex.compile(rf"(?V1)[{self._UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{self._UNSPACED}]]+")
        self.stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        found = self.pattern.findall(unicodedata.normalize("NFC", text).lower())
        return [self.stem(word) if len(word) > 3 and word.isascii() else word for word in found]


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], tokenizer=Words())


def recall(answer: str, response: str) -> float:
    """ROUGE-1 recall of the answer's words (see Words) in the response, stemmed, between 0 and 1: the official success
    measure, which prints it × 100."""
    return float(_rouge().score(answer, response)["rouge1"].recall)


def check_answers(rows: pl.DataFrame, source: Path) -> None:
    """Raise InputError, with the file in front, for a needle that does not hold its answer, see :func:`place`."""
    for k, row in enumerate(rows.iter_rows(named=True)):
        try:
            place(k, row["needle"], row["answer"])
        except InputError as error:
            raise InputError(f"{source}: {error}") from None


def place(row: int, needle: str, answer: str) -> tuple[int, int]:
    """Characters [start, end) of the answer in its needle, the case aside; `row` counts from 0.

    Raises InputError when the answer is not a literal part of the needle, or has no word that recall could count."""
    found = re.search(re.escape(answer.strip()), needle.strip(), re.IGNORECASE)
    if found is None:
        raise InputError(
            f"Needle row {row + 1}: the answer '{answer}' does not occur in the needle '{needle}'; the answer "
            f"must be a literal part of it."
        )
    if not any(c.isalnum() for c in answer):
        raise InputError(
            f"Needle row {row + 1}: the answer '{answer}' has no letter or digit, so no recall can be "
            f"measured; give an answer of words."
        )
    return found.span()


def encode_after(model: Model, text: str, *, leading: str = " ") -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of `text` as it reads after a sentence, with character spans into `text`."""
    ids, spans = model.encode_with_offsets(ANCHOR + leading + text, bos=False)
    skip = len(ANCHOR) + len(leading)
    first = next((i for i, (_, end) in enumerate(spans) if end > len(ANCHOR)), len(ids))
    if first < len(ids) and spans[first][0] < len(ANCHOR):  # the tokenizer merges the full stop with the text
        ids, spans = model.encode_with_offsets(leading + text, bos=False)
        return ids, [(max(0, start - len(leading)), max(0, end - len(leading))) for start, end in spans]
    return ids[first:], [(max(0, start - skip), max(0, end - skip)) for start, end in spans[first:]]


def split_template(model: Model, style: PromptStyle) -> tuple[str, str, bool]:
    """What stands before and after the context, the question still a slot, and whether the prompt ends inside a block
    of thinking. A chat has the official code's user turn, in the model's own template.

    Raises InputError where the model's template, or its absence, does not allow the style."""
    marks = {"context": "Qx1zVj1kW", "question": "Qx2zVj2kW"}
    written = write_prompt(model, marks, style=style, plain=PAPER_TEMPLATE, turn=CHAT_TURN, instead="template=paper")
    (start, end), (asked, asked_end) = (written.spans[name] for name in ("context", "question"))
    before, after = written.text[:start], f"{written.text[end:asked]}{{question}}{written.text[asked_end:]}"
    bos = model.tokenizer.bos_token
    if model.prepends_bos and bos and before.startswith(bos):
        before = before.removeprefix(bos)  # it is put in front of the tokens
    return before, after, written.thinks


def read_needle(model: Model, row: int, needle: str, question: str, answer: str, after: str) -> Needle:
    """Encode one needle and place its answer. Raises InputError when the answer is not in the needle or has no tokens
    of its own."""
    at, end = place(row, needle, answer)
    ids, spans = encode_after(model, needle.strip())
    inside = [i for i, (a, b) in enumerate(spans) if a < end and b > at]
    if not inside or any(b <= a for a, b in (spans[i] for i in inside)):
        raise InputError(f"Needle row {row + 1}: the tokenizer cannot say which tokens are the answer '{answer}'.")
    tail, _ = encode_after(model, after.replace("{question}", question.strip()), leading="")
    return Needle(row, question, answer.strip(), tuple(ids), (inside[0], inside[-1] + 1), tuple(tail))


def sentence_ends(model: Model, ids: Sequence[int]) -> list[int]:
    """Positions right after a token that ends a sentence: where a needle may be put. 0 is one of them."""
    text = {i: model.token_strings([i])[0].strip() for i in set(ids)}
    return [0] + [k + 1 for k, i in enumerate(ids) if text[i].endswith((".", "!", "?", '."', ".”"))]


def grid(
    model: Model,
    needles: Sequence[Needle],
    haystack: Sequence[int],
    before: str,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    new_tokens: int,
) -> tuple[list[int], list[Trial], list[Trial]]:
    """Every needle at every length and depth: (the tokens that all prompts share a beginning of, trials, closed book).

    A prompt of `length` has at most `length` tokens, BOS and question included (the longest needle fills it exactly).
    `depth` is the percentage of the haystack before the needle, moved back to the nearest sentence end (100: right
    before the question). Closed book: every question at every length once more, with haystack where the needle was;
    they have no depth (NaN) and no span. Raises InputError when a length cannot hold the needle or goes beyond the
    model's context."""
    head = model.encode(before, bos=True) if before else model._bos(True)
    extra = len(head) + max(len(n.ids) + len(n.tail) for n in needles)
    if min(lengths) <= extra:
        raise InputError(
            f"A prompt of {min(lengths)} tokens cannot hold needle and question ({extra} tokens); ask for "
            f"longer lengths."
        )
    if model.too_long(max(lengths) + new_tokens):
        raise InputError(
            f"A prompt of {max(lengths)} tokens and an answer of {new_tokens} go beyond the context of "
            f"{model.context_length}; ask for shorter lengths."
        )
    instead = extra - len(head) - max(len(n.tail) for n in needles)  # tokens that fill the place of any needle
    longest = max(lengths) - extra
    text = (list(haystack) * ((longest + instead) // len(haystack) + 1))[: longest + instead]
    ends = sentence_ends(model, text[:longest])
    trials, closed = [], []
    for length in lengths:
        room = length - extra
        for k, needle in enumerate(needles):
            ids = (*head, *text[: room + instead], *needle.tail)
            body = len(ids) - max(1, len(needle.tail))
            closed.append(Trial(k, length, math.nan, ids, max(body - 1, 0), body, (0, 0), guess=()))
        for depth in depths:
            limit = room if depth >= 100 else int(room * depth / 100)
            at = room if depth >= 100 else max(e for e in ends if e <= limit)
            for k, needle in enumerate(needles):
                ids = (*head, *text[:at], *needle.ids, *text[at:room], *needle.tail)
                start = len(head) + at
                span = (start + needle.span[0], start + needle.span[1])
                body = len(ids) - max(1, len(needle.tail))
                trials.append(Trial(k, length, depth, ids, start, body, span, guess=needle.ids[needle.span[0] :]))
    return [*head, *text], trials, closed
