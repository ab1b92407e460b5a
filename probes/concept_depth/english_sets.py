"""Concept sets in plain English, generated: from one word's form to a parity that has to be followed, with the words
that answer them.

`python -m probes.concept_depth.english_sets FOLDER` writes them; those that ship are in
`probes/concept_depth/material`, beside `facts`: pairs of a true and a false statement, which are written and not
generated. Rows are balanced and their order is drawn with a fixed seed. `group` holds what a
careful split keeps on one side: the word, number or country that decides the label.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

Row = tuple[str, bool, str, tuple[str, str]]  # text, label, group, answers of class 0 and 1
ROWS = 400

NOUNS = (
    "dog cat house tree car book river teacher window garden letter table bird student farmer bridge road flower "
    "shop king"
).split()
ANIMALS = (
    "otter wolf sparrow tiger rabbit salmon beetle horse camel turtle goose spider whale lizard monkey donkey "
    "eagle frog"
).split()
THINGS = (
    "hammer bottle ladder candle kettle carpet mirror pencil basket wagon anchor button helmet blanket bucket "
    "shovel saddle lantern"
).split()
GOOD = "wonderful excellent brilliant delightful charming superb lovely impressive fantastic enjoyable".split()
BAD = "terrible awful dreadful boring disappointing horrible dull miserable unpleasant ugly".split()
SUBJECTS = "film meal concert novel journey lecture hotel garden party song".split()
PEOPLE = "Anna Ben Carla David Emma Frank Grace Henry Ines Jack Kate Leo".split()
CAPITALS = dict(
    pair.split(":")
    for pair in "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Austria:Vienna Greece:Athens "
    "Poland:Warsaw Hungary:Budapest Norway:Oslo "
    "Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Ireland:Dublin Belgium:Brussels Russia:Moscow "
    "Ukraine:Kyiv Romania:Bucharest Bulgaria:Sofia "
    "Croatia:Zagreb Serbia:Belgrade Turkey:Ankara Egypt:Cairo Kenya:Nairobi Ghana:Accra Morocco:Rabat "
    "Japan:Tokyo China:Beijing India:Delhi "
    "Thailand:Bangkok Vietnam:Hanoi Iran:Tehran Iraq:Baghdad Nepal:Kathmandu Cuba:Havana Peru:Lima "
    "Chile:Santiago Canada:Ottawa Australia:Canberra "
    "Colombia:Bogota".split()
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ONES = "one two three four five six seven eight nine".split()
TRUTH = ("false", "true")


def _number(n: int) -> str:
    return TENS[n // 10 - 2] + (f"-{ONES[n % 10 - 1]}" if n % 10 else "")


def _plural(rng: random.Random, label: bool) -> Row:
    noun, other = rng.sample(NOUNS, 2)
    place = rng.choice(["near the", "behind the", "beside the", "with the"])
    return f"The {noun}{'s' if label else ''} {place} {other}{rng.choice(['', 's'])}", label, noun, ("is", "are")


def _animal(rng: random.Random, label: bool) -> Row:
    word = rng.choice(ANIMALS if label else THINGS)
    template = rng.choice(
        [
            "In the picture there was {a} {w}. It is a kind of",
            "{p} drew {a} {w}, which is a kind of",
            "Everybody knows the {w}: it is a kind of",
        ]
    )
    return (
        template.format(a="an" if word[0] in "aeiou" else "a", w=word, p=rng.choice(PEOPLE)),
        label,
        word,
        ("tool", "animal"),
    )


def _sentiment(rng: random.Random, label: bool) -> Row:
    word = rng.choice(GOOD if label else BAD)
    template = rng.choice(["{p} found the {s} {w}.", "The {s} was {w}, said {p}.", "What a {w} {s}, {p} thought."])
    return (
        template.format(p=rng.choice(PEOPLE), s=rng.choice(SUBJECTS), w=word) + " The review is",
        label,
        word,
        ("negative", "positive"),
    )


def _negation(rng: random.Random, label: bool) -> Row:
    negated = rng.random() < 0.5
    word = rng.choice(GOOD if label != negated else BAD)
    template = rng.choice(
        ["{p} did not find the {s} {w}.", "The {s} was anything but {w}, said {p}."]
        if negated
        else ["{p} did find the {s} {w}.", "The {s} was truly {w}, said {p}."]
    )
    return (
        template.format(p=rng.choice(PEOPLE), s=rng.choice(SUBJECTS), w=word) + " The review is",
        label,
        word,
        ("negative", "positive"),
    )


def _larger(rng: random.Random, label: bool) -> Row:
    a, b = rng.sample(range(20, 100), 2)
    if (a > b) != label:
        a, b = b, a
    return (
        f"{_number(a).capitalize()} is larger than {_number(b)}. This statement is",
        label,
        f"{min(a, b)}-{max(a, b)}",
        TRUTH,
    )


def _capitals(rng: random.Random, label: bool) -> Row:
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country] if label else rng.choice([c for c in CAPITALS.values() if c != CAPITALS[country]])
    template = rng.choice(
        ["The capital of {c} is {x}.", "{x} is the capital of {c}.", "{p} says that {x} is the capital of {c}."]
    )
    return template.format(c=country, x=city, p=rng.choice(PEOPLE)) + " This statement is", label, country, TRUTH


def _switches(rng: random.Random, label: bool) -> Row:
    """Label: the lamp is on after a start state and three people who press the switch or leave it."""
    people, start = rng.sample(PEOPLE, 3), rng.random() < 0.5
    presses = [rng.random() < 0.5, rng.random() < 0.5]
    presses.append((start + sum(presses)) % 2 != label)
    acts = " ".join(f"{p} {'presses' if press else 'leaves'} the switch." for p, press in zip(people, presses))
    return f"The lamp is {'on' if start else 'off'}. {acts} Now the lamp is", label, " ".join(people), ("off", "on")


# name -> (difficulty, what a reader must do, generator)
CONCEPTS: dict[str, tuple[int, str, Callable[[random.Random, bool], Row]]] = {
    "plural": (1, "see the form of the first noun", _plural),
    "animal": (1, "know what one word means", _animal),
    "sentiment": (1, "know what one adjective means", _sentiment),
    "negation": (2, "combine an adjective with what stands before it", _negation),
    "larger": (3, "compare two numbers", _larger),
    "capitals": (3, "recall a fact and compare it with the text", _capitals),
    "switches": (4, "follow a state through three steps", _switches),
}

FACTS = 3  # difficulty of the set `facts`, which is not generated: recall a fact and compare it with the text


def rows(name: str, count: int = ROWS) -> list[dict[str, object]]:
    """Different texts, as many of each class."""
    rng, seen, out = random.Random(f"english {name}"), set(), []
    while len(out) < count:
        text, label, group, answers = CONCEPTS[name][2](rng, len(out) % 2 == 1)
        if text not in seen:
            seen.add(text)
            out.append({"text": text, "label": int(label), "group": group, "answer": answers[label]})
    rng.shuffle(out)
    return out


def text_of(name: str) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows(name))


if __name__ == "__main__":
    for name in CONCEPTS:
        (Path(sys.argv[1]) / f"{name}.jsonl").write_text(text_of(name), encoding="utf-8")
