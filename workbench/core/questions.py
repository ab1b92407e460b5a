"""Questions as they are published: with choices and the right one of them (MMLU, MMLU-Pro, ARC, C-Eval, RACE), or about
a passage (SQuAD, BoolQ); read into columns that probes ask for.

A choice is written as "A. text", one a line below the question, and the response is its letter. A passage stands before
its question. Of several answers the response is the first.
"""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.cells import cell_text, text_column
from workbench.core.errors import InputError
from workbench.core.wording import cut

if TYPE_CHECKING:
    import polars as pl

LETTERS = string.ascii_uppercase
PASSAGES = ("context", "passage", "article")
LISTS = ("choices", "options")  # of what may be chosen
RIGHT = ("answer_index", "answerkey", "answer")  # of which it is
COLUMNS_OF_CHOICES = ("a", "b", "c", "d")


def with_questions(frame: pl.DataFrame, there: Mapping[str, str]) -> bool:
    """Whether the rows are such questions. ``there``: name as published files write it -> name in this one."""
    return _paragraphs(frame, there) or _choices(frame, there) is not None or _about(frame, there) is not None


def from_questions(
    frame: pl.DataFrame, there: Mapping[str, str], path: Path, wanted: Collection[str]
) -> tuple[pl.DataFrame, str, dict[str, tuple[str, ...]]]:
    """The table with `prompt` and, as far as they are wanted, `response`, `answer` or `text`; what was done; and which
    columns each was made of. SQuAD's own files give a row for every question.

    Raises InputError, with the row, for an answer that is none of the choices."""
    import polars as pl

    if _paragraphs(frame, there):
        frame = _questions_of(frame[there["paragraphs"]], path)
        there = {name: name for name in frame.columns}
    choices, about = _choices(frame, there), _about(frame, there)
    question = text_column(frame[there["question"]], str(path)).to_list()
    passage = [None] * frame.height
    from_columns = (there["question"],)
    if about is not None and about[0]:
        passage, from_columns = text_column(frame[about[0]], str(path)).to_list(), (about[0], *from_columns)
    if choices is not None:
        labelled = [_labelled(row, f"{path}, row {number}") for number, row in enumerate(_rows(frame, choices[0]), 1)]
        right = frame[choices[1]].to_list()
        answers = [_right(*own, value, f"{path}, row {n}") for n, (own, value) in enumerate(zip(labelled, right), 1)]
        question = [
            f"{asked}\n" + "\n".join(f"{label}. {text}" for label, text in zip(*own))
            for asked, own in zip(question, labelled)
        ]
        from_columns, answer, kind = (*from_columns, *choices[0]), choices[1], "questions with choices"
        responses = answers
    else:
        assert about is not None
        answer, kind = about[1], "questions about a passage"
        lists = alternatives(frame[answer], str(path))
        responses = [own[0] if own else None for own in lists]
        answers = ["|".join(own) if own else None for own in lists]
    prompts = ["\n\n".join(part for part in row if part) for row in zip(passage, question)]
    both = [f"{prompt}\n\n{said}" if said else prompt for prompt, said in zip(prompts, responses)]
    made = {"prompt": prompts, "response": responses, "answer": answers, "text": both}
    own = {"prompt": from_columns, "text": (*from_columns, answer)}
    taken = {name: own.get(name, (answer,)) for name in made if name in wanted}
    said = f"{kind}: " + ", ".join(f"{name} from {' and '.join(columns)}" for name, columns in taken.items())
    return frame.with_columns(pl.Series(name, made[name], dtype=pl.String) for name in taken), said, taken


def alternatives(column: pl.Series, where: str) -> list[list[str]]:
    """The answers of each row, of texts, of lists of texts (Natural Questions) or of objects with such (SQuAD,
    TriviaQA), each once. InputError for a column that holds anything else."""
    found = []
    values = column.to_list() if column.dtype.is_nested() else text_column(column, where).to_list()
    for row, value in enumerate(values, 1):
        value = _unpacked(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            value = [value.get("value"), *(value.get("text") or []), *(value.get("aliases") or [])]
        own = [value] if isinstance(value, str) else value or []
        if not all(text is None or isinstance(text, str) for text in own):
            raise InputError(f"{where}, row {row}: the field '{column.name}' must hold texts.")
        found.append(list(dict.fromkeys(text for text in own if text and text.strip())))
    return found


def _unpacked(text: str) -> Any:
    """A list of texts that stands in a cell as JSON (a column of lists and single texts, csv); else the text."""
    if not text.startswith("["):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else text


def _paragraphs(frame: pl.DataFrame, there: Mapping[str, str]) -> bool:
    return "paragraphs" in there and frame[there["paragraphs"]].dtype.is_nested()


def _choices(frame: pl.DataFrame, there: Mapping[str, str]) -> tuple[tuple[str, ...], str] | None:
    """(columns of the choices, column of the right one)."""
    right = next((there[name] for name in RIGHT if name in there), None)
    if right is None or frame[right].dtype.is_nested() or not _is_text(frame, there, "question"):
        return None
    column = next((there[name] for name in LISTS if name in there and frame[there[name]].dtype.is_nested()), None)
    if column is not None:
        return (column,), right
    if all(name in there for name in COLUMNS_OF_CHOICES):
        more = [name for name in ("e", "f") if name in there]
        return tuple(there[name] for name in (*COLUMNS_OF_CHOICES, *more)), right
    return None


def _about(frame: pl.DataFrame, there: Mapping[str, str]) -> tuple[str | None, str] | None:
    """(column of the passage, column of the answers)."""
    if not _is_text(frame, there, "question"):
        return None
    passage = next((there[name] for name in PASSAGES if _is_text(frame, there, name)), None)
    answer = next((there[name] for name in ("answers", "answer") if name in there), None)
    return (passage, answer) if answer is not None and passage is not None else None


def _is_text(frame: pl.DataFrame, there: Mapping[str, str], name: str) -> bool:
    import polars as pl

    return name in there and frame[there[name]].dtype == pl.String


def _rows(frame: pl.DataFrame, columns: Sequence[str]) -> list[Any]:
    return frame[columns[0]].to_list() if len(columns) == 1 else [list(row) for row in frame.select(columns).rows()]


def _labelled(cell: Any, where: str) -> tuple[list[str], list[str]]:
    """(labels, texts) of the choices of a row: a list of texts or of {label, text}, or {label, text} of lists."""
    if isinstance(cell, list) and cell and all(isinstance(item, dict) for item in cell):
        cell = {name: [item.get(name) for item in cell] for name in ("text", "label")}
    if isinstance(cell, dict):
        cell, labels = cell.get("text"), cell.get("label")
    else:
        labels = None
    texts = [cell_text(text) for text in cell if text is not None] if isinstance(cell, list) else []
    labels = labels or list(LETTERS[: len(texts)])
    if len(texts) < 2 or len(labels) != len(texts) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{where}: the choices must be a list of at least two texts, or of texts with labels.")
    return labels, [text or "" for text in texts]


def _right(labels: Sequence[str], texts: Sequence[str], value: Any, where: str) -> str:
    """The label of the right choice, which is given as a label, as a text or as a number from 0."""
    text = "" if value is None else str(cell_text(value)).strip()
    if text in labels:
        return text
    if text in texts:
        return labels[texts.index(text)]
    if text.isascii() and text.isdigit() and int(text) < len(labels):
        return labels[int(text)]
    raise InputError(f"{where}: the answer '{cut(text, 60)}' is none of the choices {', '.join(labels)}.")


def _questions_of(paragraphs: pl.Series, path: Path) -> pl.DataFrame:
    """A row for every question of SQuAD's articles."""
    import polars as pl

    rows = []
    for number, article in enumerate(paragraphs.to_list(), 1):
        for paragraph in article or []:
            for asked in paragraph.get("qas") or []:
                texts = [answer.get("text") for answer in asked.get("answers") or []]
                rows.append({"context": paragraph.get("context"), "question": asked.get("question"), "answers": texts})
                if not isinstance(rows[-1]["question"], str) or not isinstance(rows[-1]["context"], str):
                    raise InputError(f"{path}, row {number}: the field 'paragraphs' has no question or no context.")
    if not rows:
        raise InputError(f"{path}: the field 'paragraphs' has no question in it.")
    return pl.DataFrame(
        rows, schema={"context": pl.String, "question": pl.String, "answers": pl.List(pl.String)}, strict=False
    )
