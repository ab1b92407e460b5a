"""Data sets as they are published: which of their columns are the ones that a probe asks for.

One table of rules. A rule is looked at only where a column that is required is not there under its own name, and it is
taken only if it gives all that is missing; what it took is said, so that a run can record it. Names match whatever
their case, with blanks and hyphens for underscores. Several columns that make one text are joined by an empty line;
their own columns stay in the table.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.cells import text_column
from workbench.core.errors import InputError
from workbench.core.questions import from_questions, with_questions
from workbench.core.talks import (
    Turns,
    from_instances,
    from_talk,
    messages_column,
    open_talks,
    system_column,
    talk_column,
)

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class PublishedFormat:
    """``needs``: columns that tell it; ``gives``: column asked for -> columns of the file that it is made of (the first
    must be there, the others where they are filled). ``lacks``: why its rows are not what a probe asks for."""

    name: str
    needs: tuple[str, ...]
    gives: Mapping[str, tuple[str, ...]]
    lacks: str = ""


_CONFLICT_QA = (
    "no subject that question and evidence share, and answers that are whole sentences or yes and no; an item needs a "
    "subject, an answer and a distractor of a few words, a clean_prompt and a conflict_prompt that the answer "
    "continues: write these columns from it"
)
_PREFERENCE = (
    "two answers in place of a prompt and its response; name the column that is meant: columns=response:chosen beside "
    "a prompt, columns=messages:chosen for talks in lists, columns=text:chosen for talks in one text"
)
_CONFLICT = ("subject", "answer", "distractor", "clean_prompt", "conflict_prompt")


def _pairs(name: str, prompt: tuple[str, ...], response: str, **more: tuple[str, ...]) -> PublishedFormat:
    return PublishedFormat(name, (prompt[0], response), {"prompt": prompt, "response": (response,), **more})


PAIRS = (
    _pairs("Alpaca", ("instruction", "input"), "output"),
    _pairs("Dolly", ("instruction", "context"), "response"),
    _pairs("questions with answers", ("question",), "answer"),
    _pairs("questions with responses", ("question",), "response"),
    _pairs("inputs with targets", ("input",), "target", answer=("target",)),
    _pairs("inputs with targets", ("inputs",), "targets"),
    _pairs("inputs with outputs", ("input",), "output"),
    _pairs("prompts with completions", ("prompt",), "completion"),
    _pairs("queries with responses", ("query",), "response"),
    _pairs("problems with solutions", ("problem",), "solution"),
)
FORMATS_OF_ROWS = (
    *PAIRS,
    PublishedFormat(
        "OASST",
        ("message_id", "parent_id", "text", "role"),
        {"prompt": (), "response": ()},
        "one message a row, questions and answers alike; keep the threads that you want as talks (messages of role and "
        "content)",
    ),
    PublishedFormat("instructions", ("instruction",), {"prompt": ("instruction", "input", "context")}),
    *(
        PublishedFormat(f"a column {name}", (name,), {"prompt": (name,)})
        for name in ("question", "query", "problem", "input", "inputs", "text")
    ),
    *(
        PublishedFormat(f"a column {name}", (name,), {"text": (name,)})
        for name in ("content", "story", "passage", "document", "article", "sentence", "body")
    ),
    # needles: Retrieval_Head
    PublishedFormat(
        "needles with real_needle",
        ("needle", "real_needle", "question"),
        {"answer": ("real_needle",), "question": ("question",)},
    ),
    PublishedFormat(
        "needles with real_needle",
        ("needle", "real_needle", "retrieval_question"),
        {"answer": ("real_needle",), "question": ("retrieval_question",)},
    ),
    # knowledge conflicts
    PublishedFormat(
        "JUICE",
        ("subject", "answer", "distracted_token", "clean_prompt", "substitution_conflict"),
        {
            "subject": ("subject",),
            "answer": ("answer",),
            "distractor": ("distracted_token",),
            "clean_prompt": ("clean_prompt",),
            "conflict_prompt": ("substitution_conflict",),
            "relation": ("category",),
        },
    ),
    PublishedFormat(
        "comp-mech",
        ("subject", "base_prompt", "prompt", "target_true", "target_new"),
        {
            "subject": ("subject",),
            "answer": ("target_true",),
            "distractor": ("target_new",),
            "clean_prompt": ("base_prompt",),
            "conflict_prompt": ("prompt",),
        },
    ),
    PublishedFormat(
        "comp-mech without its subjects",
        ("base_prompt", "prompt", "target_true", "target_new"),
        dict.fromkeys(_CONFLICT, ()),
        "no column 'subject', the name that the prompts are about; take its file with subjects, or add that column",
    ),
    PublishedFormat("ConflictQA", ("counter_memory", "counter_answer"), dict.fromkeys(_CONFLICT, ()), _CONFLICT_QA),
    PublishedFormat("ConflictQA", ("claim", "contrary_claim"), dict.fromkeys(_CONFLICT, ()), _CONFLICT_QA),
    PublishedFormat("pairs of preference", ("chosen", "rejected"), {"prompt": (), "response": ()}, _PREFERENCE),
)
# where texts are asked for and nothing else (a label might stand in an answer): all that a row says
PAIRS_AS_TEXT = (
    *(
        PublishedFormat(rule.name, rule.needs, {"text": (*rule.gives["prompt"], *rule.gives["response"])})
        for rule in (*PAIRS, _pairs("prompts with responses", ("prompt",), "response"))
    ),
    *(
        PublishedFormat(f"a column {name}", (name,), {"text": (name,)})
        for name in ("prompt", "instruction", "question")
    ),
)


@dataclass(frozen=True)
class Fitted:
    """A table with what a published format gave; ``said``: what was taken from where ("" for nothing); ``sources``: the
    columns that a column was made of, where that is known."""

    frame: pl.DataFrame
    said: str = ""
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def fit(
    frame: pl.DataFrame,
    path: Path,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    chosen: Collection[str] = (),
) -> Fitted:
    """The table with the required columns that it lacks, and the optional ones that come with them, as far as a
    published format has them. ``chosen``: columns that the user has named, which stay. Who takes `messages` besides a
    prompt gets talks of any length (`talks.open_talks`).

    Raises InputError for a format whose rows cannot be what is asked for, and for a talk that is none."""
    there, done = _folded(frame.columns), ""
    talk = talk_column(frame, there)
    if talk is not None and "prompt" in required and "response" not in required and "messages" in optional:
        frame, done = open_talks(frame, there.get("prompt"), talk, path, system_column(frame, there))
    if all(name in frame.columns for name in required):
        return Fitted(frame, done)
    renamed = {name: there[name] for name in (*required, *optional) if name not in frame.columns and name in there}
    if all(name in frame.columns or name in renamed for name in required):
        return _taken(frame, {name: (own,) for name, own in renamed.items()}, path, done and f"{done}; ")
    wanted = [name for name in (*required, *optional) if name not in chosen]
    lacking = [name for name in required if name not in frame.columns and name not in renamed]
    texts_only = list(required) == ["text"]
    if texts_only or set(lacking) <= {"prompt", "response"}:
        if talk is not None:
            return Fitted(*from_talk(frame, talk, path, wanted, system_column(frame, there)))
        if "instances" in there and "instruction" in there:
            return Fitted(*from_instances(frame, there["instruction"], there["instances"], path, wanted))
        if with_questions(frame, there):
            return Fitted(*from_questions(frame, there, path, wanted))
    found = matching(frame.columns, lacking) or (
        matching(frame.columns, lacking, PAIRS_AS_TEXT) if texts_only else None
    )
    if found is None:
        return Fitted(frame)
    if found.lacks:
        raise InputError(f"{path} looks like {found.name}, which has {found.lacks}.")
    parts = {
        name: tuple(there[own] for own in found.gives[name] if own in there)
        for name in wanted
        if name in found.gives and name not in frame.columns
    }
    parts |= {name: (own,) for name, own in renamed.items() if name not in parts}
    made = _taken(frame, parts, path, f"{found.name}: ")
    system = system_column(frame, there)
    if system is None or "prompt" not in lacking:
        return made
    return _with_system(made, system, alone="response" not in required)


def _with_system(made: Fitted, system: str, *, alone: bool) -> Fitted:
    """Pairs with a column of system messages, as the talks that they are; a prompt alone goes without, as of talks."""
    import polars as pl

    before = [text if text and text.strip() else None for text in made.frame[system].to_list()]
    some = sum(text is not None for text in before)
    if not some:
        return made
    if alone:
        return replace(made, said=f"{made.said} ({some} system messages are left out)")
    prompts, responses = made.frame["prompt"].to_list(), made.frame["response"].to_list()
    talks: list[Turns] = [
        [*([("system", own)] if own else []), ("user", prompt), ("assistant", response)]
        for own, prompt, response in zip(before, prompts, responses)
    ]
    joined = [said if own is None or said is None else f"{own.strip()}\n\n{said}" for own, said in zip(before, prompts)]
    frame = made.frame.with_columns(pl.Series("prompt", joined, dtype=pl.String), messages_column(talks))
    return replace(made, frame=frame, said=f"{made.said} ({some} with a system message from {system})")


def can_give(frame: pl.DataFrame, names: Collection[str]) -> bool:
    """Whether :func:`fit` finds these names in a table."""
    there = _folded(frame.columns)
    lacking = {name for name in names if name not in frame.columns and name not in there}
    if lacking <= {"prompt", "response"} and (
        talk_column(frame, there) is not None
        or {"instruction", "instances"} <= set(there)
        or with_questions(frame, there)
    ):
        return True
    found = matching(frame.columns, lacking)
    return not lacking or (found is not None and not found.lacks)


def matching(
    columns: Iterable[str], lacking: Collection[str], rules: Sequence[PublishedFormat] = FORMATS_OF_ROWS
) -> PublishedFormat | None:
    """The first published format that columns of these names are, and that gives all that is lacking."""
    there = _folded(columns)
    return next(
        (
            rule
            for rule in rules
            if all(name in there for name in rule.needs) and all(name in rule.gives for name in lacking)
        ),
        None,
    )


def _folded(columns: Iterable[str]) -> dict[str, str]:
    """Name as the rules write it -> name in the file. Of two that are written alike, the one that is written so
    exactly, else neither."""
    found: dict[str, list[str]] = {}
    for column in columns:
        found.setdefault(re.sub(r"[\s-]+", "_", column.strip().lower()), []).append(column)
    return {name: own[0] if len(own) == 1 else name for name, own in found.items() if len(own) == 1 or name in own}


def _taken(frame: pl.DataFrame, parts: Mapping[str, Sequence[str]], path: Path, begin: str) -> Fitted:
    parts = {name: tuple(own) for name, own in parts.items() if own}
    made = [_joined(frame, own, path).alias(name) for name, own in parts.items()]
    said = ", ".join(f"{name} from {' and '.join(own)}" for name, own in parts.items())
    return Fitted(frame.with_columns(made), f"{begin}{said}", parts)


def _joined(frame: pl.DataFrame, columns: Sequence[str], path: Path) -> pl.Series:
    """One column as it is; several as one text, the empty ones left out."""
    import polars as pl

    if len(columns) == 1:
        return frame[columns[0]]
    texts = [text_column(frame[name], str(path)).to_list() for name in columns]
    rows = [[part.strip() for part in row if part is not None and part.strip()] for row in zip(*texts)]
    return pl.Series(["\n\n".join(row) if row else None for row in rows], dtype=pl.String)
