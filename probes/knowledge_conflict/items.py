"""Conflict items: a fact, what contradicts it, and the prompts as token ids, made ready for a model.

A row of the file holds `subject, answer, distractor, clean_prompt, conflict_prompt` (answer: a text or a list of
aliases) and may hold `corrupt_prompt, split` and what the items are reported by: `relation, source, form`. Nothing here
knows how the items are measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probes.knowledge_conflict.asking import asking
from workbench.core.cells import cell_text
from workbench.core.errors import InputError
from workbench.core.json_text import parse_json
from workbench.core.tables import read_table
from workbench.core.wording import cut

if TYPE_CHECKING:
    from probes.knowledge_conflict.asking import Asking

TEXT = ("subject", "distractor", "clean_prompt", "conflict_prompt")
COLUMNS = ("subject", "answer", "distractor", "clean_prompt", "conflict_prompt")
GROUPS = ("source", "relation", "form")  # columns that say what kind of conflict an item is
OPTIONAL = ("corrupt_prompt", *GROUPS, "split")
SPLITS = ("find", "validation", "test")
SOURCES = ("subject_context", "attribute_context", "subject_question")
SAME, STATED, UNALIGNED, FOREIGN = (
    "skipped_same_first_token",
    "skipped_answer_in_prompt",
    "skipped_not_aligned",
    "corrupted_across_relations",
)
LONG = "skipped_too_long"
REPEATED = "items_repeated"
COUNTS = {
    SAME: "were skipped: answer and distractor start with the same token",
    STATED: "were skipped: the true answer stands in the conflict prompt, from where it could be copied",
    UNALIGNED: "were skipped: no corrupted prompt of equal length was found",
    FOREIGN: "have a corrupted prompt with names of other relations: none of their own relation fits",
    LONG: "were skipped: a prompt is longer than the model's context (long=skip)",
    REPEATED: "repeat another one: they are no evidence of their own, and the intervals are too narrow",
}


def read_conflicts(
    path: Path, columns: Mapping[str, str] | None = None, *, tell: Callable[[str], None] | None = None
) -> list[dict]:
    """The rows of the file, with `answers` as a list of aliases. `columns`: our name → the file's; `tell` is given what
    was read as what of a published file (JUICE, comp-mech).

    Raises InputError naming file, row (from 1) and field for a column that is missing, a field that is empty, a name
    that does not stand in the prompt it must stand in, a distractor that is one of the answers, and a column split that
    names ours in some rows only."""
    from workbench.models.text_positions import find

    columns = columns or {}
    labels = (*GROUPS, "split")
    table = read_table(
        path,
        required=TEXT,
        optional=OPTIONAL,
        labels=labels,
        also=("answer",),
        columns=columns,
        what="conflicts",
        tell=tell,
    )
    if "answer" not in table.columns:
        read_table(path, required=("answer",), columns=columns, what="conflicts")  # says what is there instead
    rows = []
    for number, row in enumerate(table.iter_rows(named=True), 1):
        row |= {name: row[name].strip() for name in ("subject", "distractor")}
        answers = _aliases(row["answer"], f"{path}, row {number}")
        if not answers:
            raise InputError(f"{path}, row {number}: the field 'answer' is empty.")
        if row["distractor"].lower() in {answer.lower() for answer in answers}:
            raise InputError(
                f"{path}, row {number}: the distractor '{row['distractor']}' is one of the answers; give one "
                f"that is wrong."
            )
        for name, field in (
            ("subject", "conflict_prompt"),
            ("distractor", "conflict_prompt"),
            ("subject", "clean_prompt"),
        ):
            if not find(row[field], row[name]):
                raise InputError(f"{path}, row {number}: the {name} '{row[name]}' is not found in the field '{field}'.")
        rows.append({**row, "answers": answers})
    ours = [row.get("split") in SPLITS for row in rows]
    if any(ours) and not all(ours):
        number = ours.index(False)
        said = rows[number].get("split") or ""
        raise InputError(
            f"{path}, row {number + 1}: the split is '{said}', while other rows say {', '.join(SPLITS)}; give "
            f"every row one of these, or none."
        )
    return rows


def _aliases(answer, where: str) -> list[str]:
    """The texts of an answer: of a list, also where it is written into a cell of text (as it comes from a column in
    which only some rows are lists), or of one word or number. InputError for what is neither."""
    if isinstance(answer, str) and answer.lstrip().startswith("["):
        with contextlib.suppress(InputError):
            answer = parse_json(answer, where)
    try:
        texts = [cell_text(entry) for entry in (answer if isinstance(answer, list) else [answer])]
    except (OverflowError, AttributeError):
        raise InputError(
            f"{where}: the field 'answer' must be a word, a number or a list of them, not '{cut(answer, 60)}'."
        ) from None
    return [text.strip() for text in texts if text is not None and text.strip()]


@dataclass
class Item:
    """One conflict: prompts as token ids, the two answer tokens, where the names stand, and the split it belongs to."""

    row: int  # of the data file, from 0
    subject: str
    answers: list[str]
    distractor: str
    clean: list[int]
    conflict: list[int]
    corrupt: list[int]
    memory_id: int
    context_id: int
    sources: dict[str, tuple[int, ...]]  # of SOURCES: token positions in the conflict prompt
    group: dict[str, str]  # of GROUPS and split, as far as the file has them
    split: str = ""
    texts: tuple[str, str] = ("", "")  # the clean and the conflict prompt, before they are written for the model

    @property
    def tokens(self) -> list[int]:
        return [self.memory_id, self.context_id]


def build_items(
    model,
    rows: Sequence[dict],
    path: Path,
    *,
    chosen: Sequence[int],
    room: int,
    long: str = "refuse",
    rng: Callable[[str], np.random.Generator],
    check: Callable[[], None],
    how: Asking | None = None,
) -> tuple[list[Item], dict[str, int]]:
    """Items of the `chosen` rows that can be measured on this model, and how many fell under each of COUNTS.

    Skipped are items whose two answers start with the same token, items whose true answer stands in the conflict
    prompt, and items for which no corrupted prompt of equal length is found: the subject and the distractor replaced,
    wherever they stand, by those of other rows of the same relation (of any row where that leaves nothing), all other
    tokens in place (or the file's own `corrupt_prompt`). `room`: tokens that must fit after a prompt; `how`: how
    prompts are written (None: as they are). Raises InputError for an answer that the tokenizer cannot place, a prompt
    that is too long, and when nothing is left."""
    from workbench.models.text_positions import find

    how = how or asking(model)
    counts = dict.fromkeys(COUNTS, 0)
    items = []
    for number in chosen:
        check()
        row, where = rows[number], f"{path}, row {number + 1}"
        memory_id, context_id = answer_tokens(model, row, where, how)
        asked = how.write(row["conflict_prompt"])
        clean, conflict = how.write(row["clean_prompt"]).ids, asked.ids
        if not _has_room(model, {"clean_prompt": clean, "conflict_prompt": conflict}, room, long, where):
            counts[LONG] += 1
            continue
        if memory_id == context_id:
            counts[SAME] += 1
            continue
        if any(find(asked.text, answer) for answer in row["answers"]):
            counts[STATED] += 1
            continue
        corrupt, foreign = _corrupt_prompt(how, row, rows, lambda number=number: rng(f"corrupt {number}"))
        if corrupt is None or len(corrupt) != len(conflict) or corrupt == conflict:
            counts[UNALIGNED] += 1
            continue
        counts[FOREIGN] += foreign
        items.append(
            Item(
                row=number,
                subject=row["subject"],
                answers=row["answers"],
                distractor=row["distractor"],
                clean=clean,
                conflict=conflict,
                corrupt=corrupt,
                memory_id=memory_id,
                context_id=context_id,
                sources=_sources(row, asked.spans),
                group={name: str(row[name]) for name in (*GROUPS, "split") if row.get(name) is not None},
                texts=(row["clean_prompt"], row["conflict_prompt"]),
            )
        )
    if not items:
        raise InputError(
            f"{path}: none of the {len(chosen)} items can be measured on this model: the answer and the "
            f"distractor of {counts[SAME]} start with the same token, the conflict prompts of {counts[STATED]} hold "
            f"the true answer, those of {counts[UNALIGNED]} cannot be aligned with a corrupted prompt of equal "
            f"length, and {counts[LONG]} are too long."
        )
    counts[REPEATED] = len(items) - len({(tuple(item.clean), tuple(item.conflict)) for item in items})
    return items, counts


def _has_room(model, prompts: Mapping[str, Sequence[int]], room: int, long: str, where: str) -> bool:
    """Whether the prompts and `room` more tokens fit the model; InputError where they do not and long=refuse."""
    for field, ids in prompts.items():
        if model.too_long(len(ids) + room):
            if long == "skip":
                return False
            raise InputError(
                f"{where}: the field '{field}' has {len(ids)} tokens, too many for the model's context "
                f"of {model.context_length}; shorten it, or leave such rows out with long=skip."
            )
    return True


def _sources(row: dict, offsets: Sequence[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Where the names stand in the conflict prompt, in tokens: the last mention of the subject is the question's."""
    from workbench.models.text_positions import find, tokens_of

    mentions = find(row["conflict_prompt"], row["subject"])
    spans = (mentions[:-1], find(row["conflict_prompt"], row["distractor"]), mentions[-1:])
    return {name: tokens_of(offsets, found) for name, found in zip(SOURCES, spans)}


def answer_tokens(model, row: dict, where: str, how: Asking | None = None) -> tuple[int, int]:
    """The first tokens of the answer and of the distractor, as they follow the conflict prompt as it is written."""
    how = how or asking(model)
    found = []
    for field, answer in (("answer", row["answers"][0]), ("distractor", row["distractor"])):
        tokens = [how.first_token(row[prompt], answer) for prompt in ("clean_prompt", "conflict_prompt")]
        for prompt, token in zip(("clean_prompt", "conflict_prompt"), tokens):
            if token is None:
                raise InputError(
                    f"{where}: the tokenizer cannot place the {field} '{answer}' after the field '{prompt}' "
                    f"(does the prompt end with a space?)."
                )
        found.append(tokens[1])
    return found[0], found[1]


def _corrupt_prompt(
    how: Asking, row: dict, rows: Sequence[dict], rng: Callable[[], np.random.Generator]
) -> tuple[list[int] | None, bool]:
    """The file's own corrupted prompt, or one with names of its relation, or of any; and whether it is the last."""
    if row.get("corrupt_prompt"):
        return how.write(row["corrupt_prompt"]).ids, False
    alike = [other for other in rows if other.get("relation") == row.get("relation")]
    corrupt = _corrupted(how, row, alike, rng())
    return (corrupt, False) if corrupt is not None else (_corrupted(how, row, rows, rng()), True)


def _corrupted(how: Asking, row: dict, others: Sequence[dict], rng: np.random.Generator) -> list[int] | None:
    """The conflict prompt with the subject and the distractor of `others` in place of its own, as many tokens long;
    None if none fits.

    Never taken are the row's own answers and distractor, nor a subject whose own answer is one of them."""
    from workbench.models.text_positions import Swap, swapped

    taken = {name.lower() for name in (*row["answers"], row["distractor"])}
    truths: dict[str, set[str]] = {}
    for other in others:
        truths.setdefault(other["subject"], set()).update(answer.lower() for answer in other["answers"])
    subjects = tuple(subject for subject, known in truths.items() if subject != row["subject"] and not known & taken)
    objects = dict.fromkeys([other["distractor"] for other in others] + [other["answers"][0] for other in others])
    swaps = [
        Swap(row["subject"], subjects),
        Swap(row["distractor"], tuple(name for name in objects if name.lower() not in taken)),
    ]
    asked = how.write(row["conflict_prompt"])
    return swapped(how.model, row["conflict_prompt"], swaps, rng, encode=lambda prompt: how.other(asked, prompt))


def assign_splits(
    items: list[Item], *, find: float, validation: float, test_relations: Sequence[str], rng: np.random.Generator
) -> list[Item]:
    """Items with their split: the file's own where it says find, validation or test (`read_conflicts`: in all rows or
    in none), else by subject in these shares.

    With `test_relations`, items of these relations are tested on only and the others are not tested on; a subject is
    never on both sides."""
    if {item.group.get("split") for item in items} <= set(SPLITS):
        for item in items:
            item.split = item.group["split"]
        return items
    subjects = sorted({item.subject for item in items})
    order = [subjects[i] for i in rng.permutation(len(subjects))]
    first = max(1, round(find * len(order)))
    second = first + max(1, round(validation * len(order)))
    place = {s: "find" if i < first else "validation" if i < second else "test" for i, s in enumerate(order)}
    for item in items:
        item.split = place[item.subject]
    if test_relations:
        return [i for i in items if (i.group.get("relation") in test_relations) == (i.split == "test")]
    return items


def kinds(items: Sequence[Item]) -> list[tuple[str, str, list[int]]]:
    """(column, value, indices of the items that have it) for every column of GROUPS that the file has."""
    found: dict[tuple[str, str], list[int]] = {}
    for column in GROUPS:
        for n, item in enumerate(items):
            if column in item.group:
                found.setdefault((column, item.group[column]), []).append(n)
    return [
        (column, value, found[column, value])
        for column, value in sorted(found, key=lambda pair: (GROUPS.index(pair[0]), pair[1]))
    ]
