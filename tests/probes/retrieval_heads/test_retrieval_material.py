"""The default needles can only be answered by copying: nothing else in a prompt gives their answers away."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "probes"
HAYSTACK = (FOLDER / "essays.txt").read_text(encoding="utf-8")
ROWS = [
    json.loads(line)
    for line in (FOLDER / "retrieval_heads" / "material" / "needles.jsonl").read_text(encoding="utf-8").splitlines()
]
STOP = set(
    "a an and are as at because been before between by did do does every for from has he her his how in inside into "
    "is it its must of on or past she some that the their this to towards under until up was way what where which "
    "while who why with".split()
)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.casefold())


HAYSTACK_WORDS = frozenset(words(HAYSTACK))


def content(text: str) -> set[str]:
    return set(words(text)) - STOP


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r'(?<=[.!?])"?\s+', text) if s.strip()]


def distinctive(row: dict) -> set[str]:
    """Content words of the answer and the names in the needle (capitalised words that do not open a sentence)."""
    names = {w for s in sentences(row["needle"]) for w in re.findall(r"\b[A-Z][a-z]+", s)[1:]}
    return content(row["answer"]) | {n.casefold() for n in names} - STOP


each_needle = pytest.mark.parametrize("row", ROWS, ids=range(1, len(ROWS) + 1))


def test_there_are_enough_needles_with_exactly_the_documented_columns():
    assert len(ROWS) >= 8
    assert all(list(row) == ["needle", "question", "answer"] for row in ROWS)
    for column in ROWS[0]:
        assert len({row[column] for row in ROWS}) == len(ROWS)


@each_needle
def test_the_answer_is_a_literal_part_of_its_needle_and_needle_and_question_are_whole_sentences(row):
    assert row["needle"].count(row["answer"]) == 1
    assert row["needle"].endswith(".") and row["needle"].isascii() and len(sentences(row["needle"])) <= 2
    assert row["question"].endswith("?") and row["question"].isascii()


@each_needle
def test_the_answer_is_long_enough_to_score_and_repeats_almost_no_word(row):
    answer = words(row["answer"])
    assert 6 <= len(answer) <= 15
    assert not [w for w, n in Counter(answer).items() if n > 1 and w not in STOP]
    assert len(answer) - len(set(answer)) <= 1


@each_needle
def test_the_question_shares_no_content_word_with_the_answer(row):
    assert len(content(row["question"])) >= 3
    assert not content(row["question"]) & content(row["answer"])


@each_needle
def test_no_answer_word_is_in_another_needle(row):
    others = [other for other in ROWS if other is not row]
    assert not any(row["answer"].casefold() in other["needle"].casefold() for other in others)
    for other in others:
        assert not content(row["answer"]) & set(words(other["needle"] + " " + other["question"]))


@each_needle
def test_the_haystack_has_neither_the_answer_nor_the_distinctive_words_of_the_needle(row):
    assert len(distinctive(row)) >= 4
    assert row["answer"].casefold() not in HAYSTACK.casefold()
    assert not distinctive(row) & HAYSTACK_WORDS


def test_the_haystack_is_long_plain_ascii_prose():
    assert HAYSTACK.isascii()
    assert len(HAYSTACK.split()) >= 5000
    assert not re.search(r"[{}<>#*_\t]|  |\n\n\n|--", HAYSTACK)
    paragraphs = HAYSTACK.strip().split("\n\n")
    assert len(paragraphs) >= 40
    assert all("\n" not in p and re.search(r'[.?!]"?$', p) for p in paragraphs)


def test_no_sentence_of_the_haystack_comes_twice_and_no_long_run_of_words_does():
    found = [" ".join(words(s)) for s in sentences(HAYSTACK)]
    assert len(found) > 250
    assert len(set(found)) == len(found)
    stream = words(HAYSTACK)
    runs = Counter(tuple(stream[i : i + 8]) for i in range(len(stream) - 7))
    assert not [run for run, n in runs.items() if n > 1]
