"""Conflicts about real facts, for models that people use: made from material/facts.jsonl (countries, books, elements).

`material/fact_conflicts.jsonl` holds what `fact_conflicts` makes, so that a run names what it read by one fingerprint;
`save` writes it anew after a change here or in the facts. A fact becomes one item, in one of the phrasings of its
relation (column `form`): several items about one fact would be no evidence of their own.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probes.knowledge_conflict.config import NEEDS
from probes.knowledge_conflict.items import answer_tokens
from workbench import organisms
from workbench.core.errors import InputError
from workbench.models.model_outline import Facts

if TYPE_CHECKING:
    from probes.knowledge_conflict.asking import Asking

FACTS = Path(__file__).parent / "material" / "facts.jsonl"
CONFLICTS = FACTS.with_name("fact_conflicts.jsonl")
SHIPPED = "probes:knowledge_conflict/material/fact_conflicts.jsonl"
SEED = 0
ROOM = 12  # tokens of a context that a short run keeps for the answer
MEASURED = 60  # conflicts that a short run measures where the model need know none
ENOUGH_ITEMS = 40  # that must fit into its context
ENOUGH = 10  # answers of one subject only that a relation must have for its distractors to be drawn from them alone

# Each phrasing: what the context asserts, and the prompt that asks for the fact and ends before the answer.
PHRASINGS = {
    "capital": {
        "statement": ("The capital of {subject} is {distractor}.", "The capital of {subject} is"),
        "report": (
            "A recent encyclopedia says that {distractor} is the capital of {subject}.",
            "The city that serves as the capital of {subject} is",
        ),
        "question": (
            "It is well known that the capital of {subject} is {distractor}.",
            "Question: Which city is the capital of {subject}? Answer: It is",
        ),
    },
    "language": {
        "statement": ("The official language of {subject} is {distractor}.", "The official language of {subject} is"),
        "report": (
            "A recent encyclopedia says that {distractor} is the official language of {subject}.",
            "In schools and courts, the official language of {subject} is",
        ),
        "question": (
            "It is well known that the official language of {subject} is {distractor}.",
            "Question: Which language is the official language of {subject}? Answer: It is",
        ),
    },
    "currency": {
        "statement": ("The currency of {subject} is the {distractor}.", "The currency of {subject} is the"),
        "report": (
            "A recent encyclopedia says that the {distractor} is the currency of {subject}.",
            "In shops and banks, the currency of {subject} is the",
        ),
        "question": (
            "It is well known that the currency of {subject} is the {distractor}.",
            "Question: What is the currency of {subject}? Answer: It is the",
        ),
    },
    "continent": {
        "statement": (
            "The continent in which {subject} lies is {distractor}.",
            "The continent in which {subject} lies is",
        ),
        "report": (
            "A recent encyclopedia says that {distractor} is the continent of {subject}.",
            "On a map of the world, the continent of {subject} is",
        ),
        "question": (
            "It is well known that the continent of {subject} is {distractor}.",
            "Question: On which continent does {subject} lie? Answer: It lies in",
        ),
    },
    "author": {
        "statement": ("The author of {subject} is {distractor}.", "The author of {subject} is"),
        "report": (
            "A recent encyclopedia says that {distractor} is the author of {subject}.",
            "The name of the person who wrote {subject} is",
        ),
        "question": (
            "It is well known that the author of {subject} is {distractor}.",
            "Question: Who wrote {subject}? Answer: It was written by",
        ),
    },
    "element symbol": {
        "statement": ("The chemical symbol of {subject} is {distractor}.", "The chemical symbol of {subject} is"),
        "report": (
            "A recent encyclopedia says that {distractor} is the chemical symbol of {subject}.",
            "On the periodic table, the symbol of {subject} is",
        ),
        "question": (
            "It is well known that the chemical symbol of {subject} is {distractor}.",
            "Question: What is the chemical symbol of {subject}? Answer: The symbol is",
        ),
    },
}
# Answers that any English text may hold, as it may any single letter: whether the model named them could not be told.
EVERYDAY = frozenset(("as", "be", "he", "in", "real", "won"))
# True as well, though not the answer that is asked for.
ALSO_TRUE = {("language", "Finland"): "Swedish", ("language", "Kazakhstan"): "Russian"}


def own_conflicts(model: str) -> str | None:
    """The conflicts of the generated world, for the models that live in it; None for any other model."""
    return "workbench:organisms/data/conflicts.jsonl" if organisms.name_of(model) is not None else None


def example(model: Facts) -> dict:
    """A short run: on a model that may know a part of the facts only, or none, all items are measured. Raises
    InputError where too few fit into the context."""
    few = {"limit": 40, "prune_k": (1, 3), "flow_items": 8, "random_draws": 2}
    if model.is_organism:
        return few
    few |= {"limit": MEASURED, "keep": "all"}
    if model.why_not(NEEDS["direct"]) is not None and model.why_not(NEEDS["total"]) is None:
        few["variant"] = "total"
    rows = [json.loads(line) for line in CONFLICTS.read_text(encoding="utf-8").splitlines()]
    lengths = model.lengths([row["conflict_prompt"] for row in rows])
    fit = sum(model.fits(length + ROOM) for length in lengths)
    if fit == len(rows):
        return few
    if fit < ENOUGH_ITEMS:
        raise InputError(
            f"The context of {model.name} ({model.context} tokens) holds {fit} of the {len(rows)} conflicts that ship "
            f"with their answer, too few to measure; give shorter ones with --data."
        )
    return few | {"limit": min(len(rows), MEASURED * len(rows) // fit), "long": "skip"}


def is_shipped(path: Path | None) -> bool:
    """Whether a data file is the one that `fact_conflicts` makes."""
    return path is not None and Path(path).resolve() == CONFLICTS.resolve()


def read_facts() -> list[dict]:
    """The facts: relation, subject, answer, aliases."""
    return [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]


def fact_conflicts(facts: Sequence[dict]) -> list[dict]:
    """Rows of the probe's data format, with `relation` and `form`: the same for the same facts.

    Left out are facts whose answer is an everyday word or a letter, or shares a word with the subject, from where it
    could be copied. A relation's phrasings are dealt out evenly."""
    rng = np.random.default_rng(SEED)
    usable = [fact for fact in facts if not _unusable(fact)]
    rows = []
    for relation, phrasings in PHRASINGS.items():
        alike = [fact for fact in usable if fact["relation"] == relation]
        pool = _pool(alike)
        forms = rng.permutation([list(phrasings)[n % len(phrasings)] for n in range(len(alike))])
        for fact, form in zip(alike, forms):
            answers = [fact["answer"], *fact["aliases"]]
            wrong = distractors(relation, fact["subject"], answers, pool)
            distractor = wrong[int(rng.integers(len(wrong)))]
            rows.append(write(relation, str(form), fact["subject"], answers, distractor))
    return rows


def write(relation: str, form: str, subject: str, answers: list[str], distractor: str) -> dict:
    """One row: the clean prompt, and the same after a sentence that asserts the distractor."""
    context, prompt = (text.format(subject=subject, distractor=distractor) for text in PHRASINGS[relation][form])
    return {
        "subject": subject,
        "answer": answers,
        "distractor": distractor,
        "clean_prompt": prompt,
        "conflict_prompt": f"{context} {prompt}",
        "relation": relation,
        "form": form,
    }


def distractors(relation: str, subject: str, answers: Iterable[str], pool: Iterable[str]) -> list[str]:
    """Those of `pool` that are wrong of the subject and share no word with it or with an answer, in order."""
    taken = _words(subject).union(*map(_words, answers))
    also = ALSO_TRUE.get((relation, subject))
    return [name for name in pool if name != also and not _words(name) & taken]


def fit(
    model,
    rows: Sequence[dict],
    chosen: Sequence[int],
    path: Path,
    *,
    check: Callable[[], None] = lambda: None,
    how: Asking | None = None,
) -> tuple[list[dict], list[int], int]:
    """The rows, of which the `chosen` have another distractor where theirs begins with the same token as the answer on
    this model, where prompts are written as `how` says; those of `chosen` whose names the tokenizer can place; and how
    many distractors are other ones. A row for which no distractor does better stays as it is.

    Raises InputError where the tokenizer can place none."""
    rows, placed, changed = list(rows), [], 0
    pools: dict[str, set[str]] = {}
    for row in rows:
        pools.setdefault(row["relation"], set()).add(row["distractor"])
    refused: InputError | None = None
    for number in chosen:
        check()
        row, where = rows[number], f"{path}, row {number + 1}"
        try:
            alike = _begin_alike(model, row, where, how)
        except InputError as error:
            refused = error
            continue
        placed.append(number)
        if not alike:
            continue
        wrong = distractors(row["relation"], row["subject"], row["answers"], sorted(pools[row["relation"]]))
        for n in np.random.default_rng((SEED, number)).permutation(len(wrong)):
            new = row | write(row["relation"], row["form"], row["subject"], row["answers"], wrong[n])
            with contextlib.suppress(InputError):
                if not _begin_alike(model, new, where, how):
                    rows[number], changed = new, changed + 1
                    break
    if refused is not None and not placed:
        raise refused
    return rows, placed, changed


def _begin_alike(model, row: dict, where: str, how: Asking | None) -> bool:
    memory, other = answer_tokens(model, row, where, how)
    return memory == other


def save(path: Path = CONFLICTS) -> None:
    """Write the conflicts of the facts that ship."""
    rows = fact_conflicts(read_facts())
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _pool(alike: Sequence[dict]) -> list[str]:
    """Answers that distractors of a relation are drawn from: those of one subject only, since what many countries
    share may be true of another one too; all of them where these are few."""
    counts = Counter(fact["answer"] for fact in alike)
    single = sorted(answer for answer, n in counts.items() if n == 1)
    return single if len(single) >= ENOUGH else sorted(counts)


def _unusable(fact: dict) -> bool:
    from workbench.models.text_positions import find

    answers = [fact["answer"], *fact["aliases"]]
    stated = any(_words(answer) & _words(fact["subject"]) for answer in answers)
    stems = (text for pair in PHRASINGS[fact["relation"]].values() for text in pair)
    asked = any(find(stem, answer) for stem in stems for answer in answers)
    return stated or asked or any(answer.lower() in EVERYDAY or len(answer) == 1 for answer in answers)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - {"the", "of"}
