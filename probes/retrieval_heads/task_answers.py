"""Questions of a task file, what in a response is the answer, and how good it is: exact match, F1, last number."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.core.errors import InputError
from workbench.core.questions import alternatives
from workbench.core.tables import read_table

NEXT = "\nQuestion:"  # where a base model goes on with a question of its own
_NUMBER = re.compile(r"(?<![\d.])[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_SAID = re.compile(r"(?:answer\s*(?:is\b\s*:?|:)|####)\s*", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TaskQuestion:
    """A row of a task file; `group`: what belongs together (questions about one context), as a number."""

    question: str
    answers: tuple[str, ...]
    context: str
    group: int


def read_tasks(source: str | Path, metric: str) -> list[TaskQuestion]:
    """The rows of a file with question, answer (or answers: several that are right) and, where there are, context and
    group. Without a group, questions about one context belong together, unless all have the same (examples to follow).

    Raises InputError that names the row for an answer that the metric cannot hold anything against."""
    found = read_table(source, required=("question",), optional=("context", "group"), also=("answers", "answer"))
    column = next((name for name in ("answers", "answer") if name in found.columns), None)
    if column is None:
        raise InputError(f"{source} has no column 'answer' or 'answers'; the tasks need what is right.")
    answers = alternatives(found[column], str(source))
    contexts, groups = (_texts(found, name) for name in ("context", "group"))
    if not any(groups):
        groups = contexts if len(set(contexts)) > 1 else [""] * found.height
    numbers: dict[str, int] = {}
    rows = []
    for k, (question, own) in enumerate(zip(found["question"].to_list(), answers)):
        usable = tuple(text for text in own if _usable(text, metric))
        if not usable:
            what = "number" if metric == "last_number" else "word"
            raise InputError(f"{source}, row {k + 1}: the field '{column}' has no {what}, so no answer could be right.")
        name = groups[k] or f"\0row {k}"
        rows.append(TaskQuestion(question.strip(), usable, contexts[k], numbers.setdefault(name, len(numbers))))
    return rows


def _texts(found, name: str) -> list[str]:
    values = found[name].to_list() if name in found.columns else [None] * found.height
    return [(value or "").strip() for value in values]


def _usable(text: str, metric: str) -> bool:
    return last_number(text) is not None if metric == "last_number" else bool(normalised(text))


def answer_in(response: str, *, chain_of_thought: bool) -> str:
    """What a response (its thinking aside) answers. Without reasoning its first line; with it what follows the last
    "answer is", "answer:" or "####", to the end of that line, or its last line where it never says so. What comes
    after a question that the model asks itself does not count."""
    text = f"\n{response}".split(NEXT)[0].strip()
    if not chain_of_thought:
        return text.partition("\n")[0].strip()
    said = list(_SAID.finditer(text))
    if said and text[said[-1].end() :].strip():
        return text[said[-1].end() :].partition("\n")[0].strip()
    return text.rpartition("\n")[2].strip()


def normalised(text: str) -> str:
    """Text as SQuAD compares it: lower case, without punctuation and English articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def last_number(text: str) -> float | None:
    """The last number in a text, commas between its digits aside; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def exact(answer: str, right: str) -> float:
    """Whether two answers are the same, once normalised."""
    return float(normalised(answer) == normalised(right))


def f1(answer: str, right: str) -> float:
    """Harmonic mean of the shares of the one's words that are in the other, as in SQuAD."""
    one, two = normalised(answer).split(), normalised(right).split()
    if not one or not two:
        return float(one == two)
    shared = sum((Counter(one) & Counter(two)).values())
    return 2 * shared / (len(one) + len(two))


def same_number(answer: str, right: str) -> float:
    """Whether the last number of two answers is the same."""
    one, two = last_number(answer), last_number(right)
    return float(one is not None and two is not None and bool(np.isclose(one, two, rtol=1e-9, atol=1e-9)))


METRICS: dict[str, Callable[[str, str], float]] = {"exact": exact, "f1": f1, "last_number": same_number}


def judge_answer(answer: str, right: Sequence[str], metric: str) -> float:
    """The best that an answer reaches against any of the right ones, between 0 and 1."""
    return max(METRICS[metric](answer, text) for text in right)
