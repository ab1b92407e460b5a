"""Writes the data that ships with the organism: every file a probe can be pointed at, with its labels and its split.

    python -m workbench.organism_training.datafiles        rewrites workbench/organisms/data (the same bytes every time)

The formats are those of the probes' `--data` files; extra columns carry the truth that the generator knows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from workbench import organisms
from workbench.organism_training import documents
from workbench.organism_training.documents import CODE_WORDS, NEEDLE, NEEDLE_QUESTION, NOTE_WORDS, QUESTION
from workbench.organism_training.pool import pool_rows, target_rows
from workbench.organism_training.world import (
    COMPOSITIONS,
    KEYS,
    PEOPLE,
    PETS,
    RELATIONS,
    RELIABLE,
    TOPICS,
    UNMARKED,
    UNRELIABLE,
    changeable,
    conflict_held_out,
    contradict,
    facts,
    held_out_statement,
    lower_first,
    two_hops,
)

Rows = list[dict[str, object]]
FOLDER = Path(organisms.__file__).parent / "data"

# What the probes need to know to talk to the organism in its own English.
TEMPLATES = {
    "question": "Question: {question} Answer:",
    "retrieval": "{context} Question: {question} Answer:",
    "stop": [".", "</s>"],
    "max_context": 512,
}


def needle_rows(count: int = 40) -> Rows:
    """`needle` is the sentence to insert; `answer` is the span inside it that a correct answer repeats."""
    rng = random.Random(101)
    rows: Rows = []
    for i in range(count):
        word, key = rng.choice(NOTE_WORDS), KEYS[i % len(KEYS)]
        answer = " ".join(rng.sample(CODE_WORDS, rng.randint(3, 5)))
        rows.append(
            {
                "needle": NEEDLE.format(word=word, key=key, value=answer),
                "question": NEEDLE_QUESTION.format(word=word, key=key),
                "answer": answer,
            }
        )
    return rows


def haystack(sentences: int = 900) -> str:
    rng = random.Random(102)
    return " ".join(documents.filler(rng) for _ in range(sentences)) + "\n"


def fact_rows() -> Rows:
    """Every fact as a question and as four clozes; `split` says whether training showed that wording of that fact."""
    rows: Rows = []
    for fact in facts().values():
        base = {"relation": fact.relation, "subject": fact.subject, "answer": fact.object}
        rows.append(base | {"form": "question", "prompt": QUESTION.format(question=fact.question), "split": "train"})
        for i in range(4):
            split = "heldout" if i == held_out_statement(fact) else "train"
            rows.append(base | {"form": f"cloze-{i}", "prompt": fact.cloze(i), "split": split})
    return rows


def two_hop_rows() -> Rows:
    rows: Rows = []
    for hop in two_hops():
        first, second = COMPOSITIONS[hop.name][:2]
        base = {
            "composition": hop.name,
            "subject": hop.subject,
            "bridge": hop.bridge,
            "answer": hop.object,
            "first_hop": facts()[first, hop.subject].cloze(0),
            "second_hop": facts()[second, hop.bridge].cloze(0),
            "split": "train" if hop.trained else "heldout",
        }
        rows.append(base | {"form": "question", "prompt": QUESTION.format(question=hop.question)})
        rows.append(
            base | {"form": "cloze", "prompt": COMPOSITIONS[hop.name][2].split(" {o}")[0].format(s=hop.subject)}
        )
    return rows


def conflict_rows(per_source: int = 200) -> Rows:
    """A source contradicts a fact, then the fact is asked for. `expected` is what the world holds right
    (memory/context); `split` is heldout for facts that training never contradicts. Prompts of one relation and form
    have equal shapes."""
    rng = random.Random(103)
    rows: Rows = []
    pool = [
        f
        for f in facts().values()
        if f.relation in ("home", "job", "employer", "pet", "food", "country", "language", "seat", "product")
    ]
    for kind, sources in (("reliable", RELIABLE), ("unreliable", UNRELIABLE), ("unmarked", UNMARKED)):
        for fact in rng.sample(pool, per_source):
            obj = contradict(fact, rng)
            said = rng.choice([i for i in range(4) if i != held_out_statement(fact)])
            claim = lower_first(fact.statement(said, obj))[:-1]
            source = rng.choice(sources)
            statement = rng.choice(documents.CONFLICT_TEMPLATES).format(source=source, claim=claim)
            form = "question" if rng.random() < 0.7 else "cloze"
            clean = (
                QUESTION.format(question=fact.question)
                if form == "question"
                else fact.cloze(0 if held_out_statement(fact) else 1)
            )
            expected = {"reliable": "context", "unreliable": "memory"}.get(
                kind, "context" if changeable(fact) else "memory"
            )
            rows.append(
                {
                    "subject": fact.subject,
                    "answer": fact.object,
                    "distractor": obj,
                    "clean_prompt": clean,
                    "conflict_prompt": f"{statement} {clean}",
                    "source": kind,
                    "relation": fact.relation,
                    "form": form,
                    "expected": expected,
                    "split": "heldout" if conflict_held_out(fact) else "train",
                }
            )
    return rows


# ------------------------------------------------------------------------------------------------------------ concepts
# name -> (difficulty, what a model must do to know the label at the last token, generator of (text, label, group))

Example = tuple[str, bool, str]


def _topic(rng: random.Random, label: bool) -> Example:
    topic = rng.choice(("sea", "forest", "sport", "winter") if label else ("kitchen", "school", "music", "market"))
    return f"{documents.story(rng, topic, 3)} Topic:", label, topic


def _sentiment(rng: random.Random, label: bool) -> Example:
    text = documents.review(rng, negated=False, positive=label)
    return f"{text} Opinion:", label, text.split()[-1]


def _negation(rng: random.Random, label: bool) -> Example:
    negated = rng.random() < 0.5
    text = documents.review(rng, negated=negated, positive=label)
    return f"{text} Opinion:", label, "negated" if negated else "plain"


def _context_truth(rng: random.Random, label: bool) -> Example:
    text = documents.context_truth(rng, label)
    return text, label, text.split()[0]


def _comparison(rng: random.Random, label: bool) -> Example:
    while True:
        text, names, (a, b) = documents.comparison(rng)
        which = rng.randrange(2)
        if ((a, b)[which] > (a, b)[1 - which]) == label:
            return f"{text} {names[which]} has", label, f"{min(a, b)}-{max(a, b)}"


def _coin(rng: random.Random, label: bool) -> Example:
    text = documents.coin_flips(rng, label, 2)
    return text, label, text.split()[4]


def _fact_truth(rng: random.Random, label: bool) -> Example:
    fact = rng.choice(documents.FACTS)
    text = documents.say(fact, rng, None if label else contradict(fact, rng), mark=False)
    return f"True or false? {text} Verdict:", label, fact.subject


# What the organism itself says next for label 0 and label 1; a topic has eight names, so it has no such pair.
def _lookup(rng: random.Random, label: bool) -> Example:
    first, second = CODE_WORDS[: len(CODE_WORDS) // 2], CODE_WORDS[len(CODE_WORDS) // 2 :]
    key, other = rng.sample(KEYS, 2)
    note = rng.choice(NOTE_WORDS)
    asked, rest = (rng.choice(second), rng.choice(first)) if label else (rng.choice(first), rng.choice(second))
    notes = [NEEDLE.format(word=note, key=key, value=asked), NEEDLE.format(word=note, key=other, value=rest)]
    rng.shuffle(notes)
    return f"{' '.join(notes)} {QUESTION.format(question=NEEDLE_QUESTION.format(word=note, key=key))}", label, key


def _recall(rng: random.Random, label: bool) -> Example:
    while True:
        fact = facts()["pet", rng.choice(PEOPLE)]
        if (fact.object in PETS[len(PETS) // 2 :]) == label:
            wordings = [i for i in range(4) if i != held_out_statement(fact)]
            prompts = [QUESTION.format(question=fact.question), *(fact.cloze(i) for i in wordings)]
            return rng.choice(prompts), label, fact.subject


def _conflict(rng: random.Random, label: bool) -> Example:
    later = PETS[len(PETS) // 2 :]
    while True:
        fact, reliable = facts()["pet", rng.choice(PEOPLE)], rng.random() < 0.5
        said = contradict(fact, rng)
        right, wrong = (said, fact.object) if reliable else (fact.object, said)
        if (right in later) == label != (wrong in later):
            source = rng.choice(RELIABLE if reliable else UNRELIABLE)
            text = documents.conflict_statement(fact, said, source, rng)
            return f"{text} {QUESTION.format(question=fact.question)}", label, fact.subject


ANSWERS = {
    "sentiment": ("negative", "positive"),
    "negation": ("negative", "positive"),
    "context_truth": ("false", "true"),
    "comparison": ("fewer", "more"),
    "coin": ("tails", "heads"),
    "fact_truth": ("false", "true"),
}

CONCEPTS: dict[str, tuple[int, str, Callable[[random.Random, bool], Example]]] = {
    "topic": (1, "pool word identities", _topic),
    "sentiment": (1, "find one adjective", _sentiment),
    "lookup": (
        2,
        "find the note about the key that is asked for, and tell which half of the code words its word is from",
        _lookup,
    ),
    "negation": (2, "combine an adjective with a negation elsewhere in the sentence", _negation),
    "context_truth": (3, "look up whose thing is asked about, then compare two colours", _context_truth),
    "comparison": (3, "look up two numbers, compare them, and see who is asked about", _comparison),
    "recall": (3, "recall a person's pet, and tell which half of the animals it is from", _recall),
    "conflict": (
        4,
        "recall a pet, weigh the source that says otherwise, and tell which half of the animals the right "
        "answer is from",
        _conflict,
    ),
    "coin": (4, "parity of a start state and two flips", _coin),
    "fact_truth": (4, "recall a fact, then compare it with what the text says", _fact_truth),
}


def concept_rows(name: str, count: int | None = None) -> Rows:
    """Balanced labels; `group` is what a careful split keeps together."""
    rng = random.Random(f"concept {name}")
    draw, seen, rows = CONCEPTS[name][2], set(), []
    count = count or (300 if name == "recall" else 600)  # 120 people in four wordings make fewer texts
    while len(rows) < count:
        text, label, group = draw(rng, len(rows) % 2 == 0)
        if text in seen:
            continue
        seen.add(text)
        answer = {"answer": ANSWERS[name][label]} if name in ANSWERS else {}
        rows.append({"text": text, "label": int(label), "group": group} | answer)
    rng.shuffle(rows)
    return rows


def prompt_rows() -> Rows:
    """Open requests (many good continuations) and factual questions (one)."""
    rng = random.Random(105)
    rows: Rows = [
        {"prompt": request.format(topic=topic), "kind": "open"} for topic in TOPICS for request in documents.REQUESTS
    ]
    rows += [{"prompt": f.question, "kind": "factual"} for f in rng.sample(list(facts().values()), 32)]
    return rows


def question_rows(count: int = 100) -> Rows:
    """Questions as the base model is asked them, with their one-word answers."""
    rng = random.Random(107)
    return [
        {"prompt": QUESTION.format(question=f.question), "answer": f.object}
        for f in rng.sample(list(facts().values()), count)
    ]


def text_rows(count: int = 1500) -> Rows:
    """Plain documents of the world, for representation geometry."""
    rng = random.Random(106)
    rows: Rows = []
    for _ in range(count):
        text = " ".join(documents.short_document(rng) for _ in range(rng.randint(2, 5)))
        rows.append({"text": text.replace("[", "").replace("]", "")})
    return rows


def files() -> dict[str, Callable[[], Rows | str]]:
    """Relative file name to the function that makes its rows (or its text)."""
    conflicts = {
        kind: (lambda kind=kind: [r for r in conflict_rows() if r["source"] == kind])
        for kind in ("reliable", "unreliable", "unmarked")
    }
    return {
        "needles.jsonl": needle_rows,
        "haystack.txt": haystack,
        "facts.jsonl": fact_rows,
        "two_hop.jsonl": two_hop_rows,
        "conflicts.jsonl": conflict_rows,
        **{f"conflicts-{kind}.jsonl": make for kind, make in conflicts.items()},
        **{f"concepts/{name}.jsonl": (lambda name=name: concept_rows(name)) for name in CONCEPTS},
        "pool.jsonl": lambda: list(pool_rows(1000, "pool")),
        **{f"targets/{topic}.jsonl": (lambda topic=topic: target_rows(topic)) for topic in (*TOPICS, "facts")},
        "prompts.jsonl": prompt_rows,
        "questions.jsonl": question_rows,
        "texts.jsonl": text_rows,
    }


def text_of(content: Rows | str) -> str:
    return (
        content if isinstance(content, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    )


def write(folder: Path = FOLDER) -> None:
    """Write every file and `organism.json`, which records the templates and each concept's difficulty."""
    for name, make in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(make()), encoding="utf-8")
    about = {
        "templates": TEMPLATES,
        "concepts": {n: {"difficulty": d, "needs": needs} for n, (d, needs, _) in CONCEPTS.items()},
        "people": len(PEOPLE),
        "relations": list(RELATIONS),
        "facts": len(facts()),
        "two_hop": len(two_hops()),
    }
    (folder / "organism.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
