"""Conflict items: a fact, what contradicts it, and the prompts as token ids, made ready for a model.

A row of the file holds `subject, answer, distractor, clean_prompt, conflict_prompt` (answer: a text or a list of aliases) and may hold
`corrupt_prompt, relation, source, split`. Nothing here knows how the items are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.data import read_table
from workbench.errors import InputError

TEXT = ("subject", "distractor", "clean_prompt", "conflict_prompt")
COLUMNS = ("subject", "answer", "distractor", "clean_prompt", "conflict_prompt")
OPTIONAL = ("corrupt_prompt", "relation", "source", "split")
SPLITS = ("find", "validation", "test")
SOURCES = ("subject_context", "attribute_context", "subject_question")
SAME, UNALIGNED = "skipped_same_first_token", "skipped_not_aligned"


def read_conflicts(path: Path, columns: Mapping[str, str] | None = None) -> list[dict]:
    """The rows of the file, with `answers` as a list of aliases. `columns`: our name → the file's.

    Raises InputError naming file, row (from 1) and field for a column that is missing, a field that is empty and a name that does not
    stand in the prompt it must stand in."""
    from workbench.spans import find

    columns = columns or {}
    table = read_table(path, required=TEXT, optional=OPTIONAL, columns=columns, what="conflicts")
    if "answer" not in table.columns:
        read_table(path, required=("answer",), columns=columns, what="conflicts")  # says what is there instead
    rows = []
    for number, row in enumerate(table.iter_rows(named=True), 1):
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        answers = [str(a).strip() for a in answers if a is not None and str(a).strip()]
        if not answers:
            raise InputError(f"{path}, row {number}: the field 'answer' is empty.")
        for name, field in (("subject", "conflict_prompt"), ("distractor", "conflict_prompt"), ("subject", "clean_prompt")):
            if not find(row[field], row[name]):
                raise InputError(f"{path}, row {number}: the {name} '{row[name]}' is not found in the field '{field}'.")
        rows.append({**row, "answers": answers})
    return rows


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
    group: dict[str, str]  # relation, source, split, as far as the file has them
    split: str = ""

    @property
    def tokens(self) -> list[int]:
        return [self.memory_id, self.context_id]


def build_items(model, rows: Sequence[dict], path: Path, *, chosen: Sequence[int], room: int, rng: Callable[[str], np.random.Generator],
                check: Callable[[], None]) -> tuple[list[Item], dict[str, int]]:  # fmt: skip
    """Items of the `chosen` rows that can be measured on this model, and how many were skipped for which reason.

    Skipped are items whose two answers start with the same token, and items for which no corrupted prompt of equal length is
    found: the subject and the distractor replaced, wherever they stand, by those of other rows, all other tokens in place (or the
    file's own `corrupt_prompt`). `room`: tokens that must fit after a prompt. Raises InputError for an answer that the tokenizer
    cannot place, a prompt that is too long, and when nothing is left."""
    from workbench.spans import Swap, find, first_token, swapped, tokens_of

    skipped = {SAME: 0, UNALIGNED: 0}
    subjects = tuple(dict.fromkeys(row["subject"] for row in rows))
    objects = tuple(dict.fromkeys([row["distractor"] for row in rows] + [row["answers"][0] for row in rows]))
    truth = {row["subject"]: row["answers"][0] for row in rows}
    items = []
    for number in chosen:
        check()
        row, where = rows[number], f"{path}, row {number + 1}"
        firsts = []
        for field, answer in (("answer", row["answers"][0]), ("distractor", row["distractor"])):
            placed = {prompt: first_token(model, row[prompt], answer) for prompt in ("clean_prompt", "conflict_prompt")}
            for prompt, token in placed.items():
                if token is None:
                    why = "(does the prompt end with a space?)"
                    raise InputError(f"{where}: the tokenizer cannot place the {field} '{answer}' after the field '{prompt}' {why}.")
            firsts.append(placed["conflict_prompt"])
        clean = model.encode(row["clean_prompt"])
        conflict, offsets = model.encode_with_offsets(row["conflict_prompt"])
        for prompt, ids in (("clean_prompt", clean), ("conflict_prompt", conflict)):
            if model.too_long(len(ids) + room):
                raise InputError(f"{where}: the field '{prompt}' has {len(ids)} tokens, too many for the model's context of {model.context_length}.")
        if firsts[0] == firsts[1]:
            skipped[SAME] += 1
            continue
        if row.get("corrupt_prompt"):
            corrupt = model.encode(row["corrupt_prompt"])
        else:
            taken = {row["answers"][0].lower(), row["distractor"].lower()}
            others = tuple(s for s in subjects if s != row["subject"] and truth[s].lower() not in taken)
            swaps = [Swap(row["subject"], others), Swap(row["distractor"], tuple(o for o in objects if o.lower() not in taken))]
            corrupt = swapped(model, row["conflict_prompt"], swaps, rng(f"corrupt {number}"))
        if corrupt is None or len(corrupt) != len(conflict) or corrupt == conflict:
            skipped[UNALIGNED] += 1
            continue
        mentions = find(row["conflict_prompt"], row["subject"])
        spans = (mentions[:-1], find(row["conflict_prompt"], row["distractor"]), mentions[-1:])
        sources = {name: tokens_of(offsets, found) for name, found in zip(SOURCES, spans)}
        group = {name: str(row[name]) for name in ("relation", "source", "split") if row.get(name) is not None}
        items.append(Item(number, row["subject"], row["answers"], row["distractor"], clean, conflict, corrupt, *firsts, sources, group))
    if not items:
        raise InputError(
            f"{path}: none of the {len(chosen)} items can be measured on this model: the answer and the distractor of {skipped[SAME]} start with the "
            f"same token, and the conflict prompts of {skipped[UNALIGNED]} cannot be aligned with a corrupted prompt of equal length."
        )
    return items, skipped


def assign_splits(items: list[Item], *, find: float, validation: float, test_relations: Sequence[str], rng: np.random.Generator) -> list[Item]:
    """Items with their split: the file's own where it says find, validation or test for all, else by subject in these shares.

    With `test_relations`, items of these relations are tested on only and the others are not tested on; a subject is never on both sides."""
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
