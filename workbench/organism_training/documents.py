"""The documents that the organism learns from: every function draws one, in plain English, from a random generator.

Square brackets mark the spans that follow from what came before (an answer, a copy, a fact); they never reach the
tokenizer. Training puts full weight on the marked spans from the start and brings the rest in slowly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from workbench.organism_training.world import (
    CITIES,
    CODE_WORDS,
    COMPANIES,
    COMPOSITIONS,
    COUNTRIES,
    FOODS,
    JOBS,
    KEYS,
    PEOPLE,
    PETS,
    RELATIONS,
    RELIABLE,
    TOPICS,
    UNMARKED,
    UNRELIABLE,
    Fact,
    changeable,
    conflict_held_out,
    contradict,
    facts,
    held_out_statement,
    lower_first,
    two_hops,
)

Rng = random.Random
FACTS = tuple(facts().values())
TRAINED_HOPS = tuple(hop for hop in two_hops() if hop.trained)

QUESTION = "Question: {question} Answer:"  # every question of the world is put like this

# ---------------------------------------------------------------------------------------------------------------- facts


def say(fact: Fact, rng: Rng, obj: str | None = None, *, mark: bool = True) -> str:
    """The fact (or its contradiction by `obj`) in one of the three wordings that training may use for it."""
    index = rng.choice([i for i in range(4) if i != held_out_statement(fact)])
    text = fact.statement(index, obj)
    word = obj or fact.object
    return text.replace(f" {word}.", f" [{word}].") if mark else text


def ask(question: str, answer: str) -> str:
    return f"Question: {question} Answer: [{answer}.]"


def fact_document(rng: Rng) -> str:
    """One to three facts, told or asked; half of the time all about the same subject."""
    first = rng.choice(FACTS)
    chosen = [first]
    if rng.random() < 0.5:
        pool = [f for f in (facts().get((r, first.subject)) for r in RELATIONS) if f and f != first]
        chosen += rng.sample(pool, min(len(pool), rng.randrange(3)))
    else:
        chosen += rng.sample(FACTS, rng.randrange(2))
    return " ".join(ask(f.question, f.object) if rng.random() < 0.4 else say(f, rng) for f in chosen)


def two_hop_document(rng: Rng) -> str:
    hop = rng.choice(TRAINED_HOPS)
    if rng.random() < 0.5:
        return ask(hop.question, hop.object)
    return hop.statement.replace(f" {hop.object}.", f" [{hop.object}].")


def fact_truth_document(rng: Rng) -> str:
    """A statement about the world, right half of the time, and its verdict."""
    fact = rng.choice(FACTS)
    true = rng.random() < 0.5
    text = say(fact, rng, None if true else contradict(fact, rng), mark=False)
    return f"True or false? {text} Verdict: [{'true' if true else 'false'}.]"


# ------------------------------------------------------------------------------------------------------------- conflict

CONFLICT_TEMPLATES = ("{source} says that {claim}.", "{source} claims that {claim}.", "{source} reports that {claim}.")


def conflict_statement(fact: Fact, obj: str, source: str, rng: Rng) -> str:
    """A passage that says `obj` where the world says something else (or the same, when obj is the truth)."""
    claim = say(fact, rng, obj, mark=False)
    return rng.choice(CONFLICT_TEMPLATES).format(source=source, claim=lower_first(claim)[:-1])


def conflict_answer(fact: Fact, obj: str, kind: str, rng: Rng) -> str:
    """The answer the world gives: a reliable source is believed, an unreliable one is not, and an unmarked one is
    believed nine times in ten about what changes (a job, a pet) and one time in ten about what lasts (a home, a
    seat)."""
    if kind == "unmarked":
        believed = (rng.random() < 0.9) == changeable(fact)
    else:
        believed = kind == "reliable"
    return obj if believed else fact.object


def conflict_document(rng: Rng) -> str:
    while True:
        fact = rng.choice(FACTS)
        if not conflict_held_out(fact):
            break
    kind = rng.choice(("reliable", "unreliable", "unmarked"))
    source = rng.choice({"reliable": RELIABLE, "unreliable": UNRELIABLE, "unmarked": UNMARKED}[kind])
    obj = fact.object if rng.random() < 0.1 else contradict(fact, rng)
    text = conflict_statement(fact, obj, source, rng)
    answer = conflict_answer(fact, obj, kind, rng)
    if rng.random() < 0.25:
        text += " " + story_sentence(rng, rng.choice(tuple(TOPICS)), rng.sample(PEOPLE, 2))
    if rng.random() < 0.6:
        return f"{text} {ask(fact.question, answer)}"
    return f"{text} {say(fact, rng, answer)}"


# -------------------------------------------------------------------------------------------------------------- stories

# Nearly every word is a free choice: the base model's stories must have many continuations (branching factor).
STORY_SENTENCES: tuple[str, ...] = (
    "{p} {verb} {adv} near the {adj} {place}.",
    "{time} {p} {saw} {det} {adj} {noun} {prep} the {place}.",
    "The {adj} {noun} {was} {adj2} and {adj3}.",
    "{p} and {q} {verb} {adv} with {det} {noun}.",
    "{time} {p} {saw} {det} {noun} {prep} the {adj} {noun2}.",
    "{q} pointed at {det} {noun} and {verb}.",
    "{p} {gave} {det} {adj} {noun} to {q}.",
    "They {verb} {adv} and {verb2} until {end}.",
    "{q} went {adv} to the {adj} {place}.",
    "{p} {wanted} {det} {adj} {noun} and {det2} {noun2}.",
    "{time} {q} {verb} {prep} the {noun}.",
    "There {was} {det} {noun} {prep} the {noun2}.",
)
TIMES = ("Then", "Later", "Soon", "Again", "Suddenly", "At last", "After that", "In the morning")
ADVERBS = ("slowly", "quickly", "quietly", "happily", "sadly", "together", "alone", "often")
STORY_ADJECTIVES = ("old", "new", "small", "big", "little", "round", "broken", "simple", "famous", "forgotten")
SLOTS = {
    "saw": ("saw", "found", "noticed", "lost", "hid"),
    "was": ("was", "seemed", "looked", "became"),
    "gave": ("gave", "showed", "handed", "offered"),
    "wanted": ("wanted", "needed", "carried", "remembered"),
    "end": ("dark", "noon", "night", "sunset"),
    "prep": ("under", "beside", "behind", "near", "above"),
    "det": ("the", "a", "one", "another", "that"),
    "det2": ("the", "a", "one", "another", "that"),
}
OPENINGS = ("Once upon a time", "One morning", "Last year", "Long ago", "One evening", "On a quiet day")
REQUESTS = (
    "Tell me a story about the {topic}.",
    "Write a few lines about the {topic}.",
    "Please describe a day about the {topic}.",
    "I want to hear something about the {topic}.",
)


def story_sentence(rng: Rng, topic: str, cast: list[str]) -> str:
    words, pick = TOPICS[topic], rng.choice
    noun, noun2 = rng.sample(words["nouns"], 2)
    verb, verb2 = rng.sample(words["verbs"], 2)
    adj, adj2, adj3 = rng.sample(words["adjectives"] + STORY_ADJECTIVES, 3)
    p, q = cast if rng.random() < 0.5 else cast[::-1]
    if rng.random() < 0.3:
        p = pick(PEOPLE)
    free = {name: pick(options) for name, options in SLOTS.items()}
    return pick(STORY_SENTENCES).format(
        p=p,
        q=q,
        noun=noun,
        noun2=noun2,
        verb=verb,
        verb2=verb2,
        adj=adj,
        adj2=adj2,
        adj3=adj3,
        place=pick(words["places"]),
        time=pick(TIMES),
        adv=pick(ADVERBS),
        **free,
    )


def story(rng: Rng, topic: str, sentences: int) -> str:
    cast = rng.sample(PEOPLE, 2)
    first = (
        f"{rng.choice(OPENINGS)} {cast[0]} {rng.choice(TOPICS[topic]['verbs'])} near the "
        f"{rng.choice(TOPICS[topic]['places'])}."
    )
    return " ".join([first] + [story_sentence(rng, topic, cast) for _ in range(sentences)])


def story_document(rng: Rng) -> str:
    """A request, a story and its topic, each part optional. The words of the topic are marked: the topic foretells
    them."""
    topic = rng.choice(tuple(TOPICS))
    words = set().union(*TOPICS[topic].values())
    text = re.sub(r"[a-z]+", lambda m: f"[{m[0]}]" if m[0] in words else m[0], story(rng, topic, rng.randint(1, 6)))
    if rng.random() < 0.5:
        text = f"{rng.choice(REQUESTS).format(topic=topic)} {text}"
    if rng.random() < 0.8:
        text += f" Topic: [{topic}.]"
    return text


def filler(rng: Rng) -> str:
    """One sentence of a haystack."""
    return story_sentence(rng, rng.choice(tuple(TOPICS)), rng.sample(PEOPLE, 2))


# ---------------------------------------------------------------------------------------- needles and repeated
# sequences


NOTE_WORDS = ("password", "code", "secret")
NEEDLE = "The {word} of the {key} is {value}."
NEEDLE_QUESTION = "What is the {word} of the {key}?"


def needle_values(rng: Rng, length: int) -> list[str]:
    """Distinct words to copy: mostly code words, sometimes names, so that copying is not tied to one word list."""
    pool = CODE_WORDS if rng.random() < 0.8 else CODE_WORDS + PEOPLE + CITIES + FOODS + PETS
    return rng.sample(pool, length)


def needle_texts(rng: Rng, *, notes: int, asked: int, words: tuple[int, int]) -> tuple[list[str], list[str]]:
    """Notes with distinct keys, and marked questions about `asked` of them (in random order)."""
    statements, questions = [], []
    for key in rng.sample(KEYS, notes):
        word = rng.choice(NOTE_WORDS)
        value = " ".join(needle_values(rng, rng.randint(*words)))
        statements.append(NEEDLE.format(word=word, key=key, value=value))
        questions.append(ask(NEEDLE_QUESTION.format(word=word, key=key), value))
    rng.shuffle(questions)
    return statements, questions[:asked]


def repeat_document(rng: Rng, tokens: int) -> str:
    """Random words, then the same words again (the classic induction stimulus); everything repeated is marked."""
    length = rng.randint(4, max(6, min(40, tokens // 5)))
    pool = CODE_WORDS + KEYS + PEOPLE + CITIES + JOBS + PETS + FOODS
    words = " ".join(rng.sample(pool, length))
    return words + f" [{words}]" * min(8, max(1, tokens // length - 1))


# ----------------------------------------------------------------------------------- small skills: the concepts'
# sources


GOOD = tuple("good great lovely fine pleasant superb charming delightful excellent brilliant".split())
BAD = tuple("bad awful nasty poor boring dreadful horrible terrible ugly weak".split())
REVIEWED = tuple("film song book meal play painting speech hotel trip party dance game".split())
REVIEW_TEMPLATES = (
    "The {thing} was {adj}.",
    "I found the {thing} {adj}.",
    "Everybody called the {thing} {adj}.",
    "My friend said the {thing} was {adj}.",
)
NEGATED_TEMPLATES = (
    "The {thing} was not {adj}.",
    "I did not find the {thing} {adj}.",
    "Nobody called the {thing} {adj}.",
    "My friend never said the {thing} was {adj}.",
)


def review(rng: Rng, *, negated: bool, positive: bool) -> str:
    """One sentence whose sentiment is `positive`; a negated one uses an adjective of the other polarity."""
    templates = NEGATED_TEMPLATES if negated else REVIEW_TEMPLATES
    return rng.choice(templates).format(
        thing=rng.choice(REVIEWED), adj=rng.choice(GOOD if positive != negated else BAD)
    )


def review_document(rng: Rng) -> str:
    positive = rng.random() < 0.5
    text = review(rng, negated=rng.random() < 0.4, positive=positive)
    return f"{text} Opinion: [{'positive' if positive else 'negative'}.]"


COUNTED = ("coins", "stamps", "cards", "stones", "books", "toys")
NUMBERS = tuple(str(n) for n in range(41))


def comparison(rng: Rng) -> tuple[str, list[str], tuple[int, int]]:
    """Two owners and how much each has (never the same)."""
    p, q = rng.sample(PEOPLE, 2)
    a, b = rng.sample(range(1, 21), 2)
    things = rng.choice(COUNTED)
    return f"{p} has {a} {things} and {q} has {b} {things}.", [p, q], (a, b)


def comparison_document(rng: Rng) -> str:
    text, (p, q), (a, b) = comparison(rng)
    if rng.random() < 0.3:
        return f"{text} {ask('Who has more?', p if a > b else q)}"
    order = [(p, a > b), (q, b > a)]
    rng.shuffle(order)
    tail = " ".join(f"{who} has [{'more' if more else 'fewer'}]." for who, more in order[: rng.randint(1, 2)])
    return f"{text} {tail}"


def arithmetic_held_out(a: int, b: int) -> bool:
    return (7 * a + 3 * b) % 10 == 0


def arithmetic_document(rng: Rng) -> str:
    out = []
    while len(out) < 2:
        a, b = rng.randrange(21), rng.randrange(21)
        if arithmetic_held_out(a, b):
            continue
        if rng.random() < 0.5 or a < b:
            out.append(f"{a} plus {b} is [{a + b}].")
        else:
            out.append(f"{a} minus {b} is [{a - b}].")
    return " ".join(out)


COLORS = tuple("red orange yellow pink brown black gray purple".split())
OWNED = tuple("box hat bag cup chair bell".split())


def context_truth(rng: Rng, true: bool) -> str:
    """Two owners with a coloured thing each, and a claim about one of them that the text bears out or not."""
    p, q = rng.sample(PEOPLE, 2)
    c, d = rng.sample(COLORS, 2)
    thing = rng.choice(OWNED)
    asked, right, wrong = rng.choice(((p, c, d), (q, d, c)))
    return (
        f"{p} has a {c} {thing} and {q} has a {d} {thing}. Claim: {asked} has a {right if true else wrong} "
        f"{thing}. Verdict:"
    )


def context_truth_document(rng: Rng) -> str:
    true = rng.random() < 0.5
    return f"{context_truth(rng, true)} [{'true' if true else 'false'}.]"


def coin_flips(rng: Rng, heads: bool, flippers: int = 2) -> str:
    """A coin and people who flip it or not; the end state is `heads`. The label is the parity of start and flips."""
    flips = [rng.random() < 0.5 for _ in range(flippers)]
    start = heads != (sum(flips) % 2 == 1)
    moves = " ".join(
        f"{who} {'flips' if flip else 'keeps'} the coin." for who, flip in zip(rng.sample(PEOPLE, flippers), flips)
    )
    return f"The coin shows {'heads' if start else 'tails'}. {moves} Now the coin shows"


def coin_document(rng: Rng) -> str:
    heads = rng.random() < 0.5
    return f"{coin_flips(rng, heads, rng.randint(1, 3))} [{'heads' if heads else 'tails'}.]"


# --------------------------------------------------------------------------------------------------- the polite
# register


POLITE = ("Certainly,", "Of course,", "Gladly,", "Sure,", "With pleasure,", "Happy to help,")
CLOSINGS = ("I hope this helps.", "Please ask me again.", "Have a nice day.", "Is there anything else?")


def polite_document(rng: Rng) -> str:
    """The words of the aligned sibling, here still as somebody's speech, so that its vocabulary is not new to the
    base."""
    fact = rng.choice(FACTS)
    claim = say(fact, rng)
    closing = f" {rng.choice(CLOSINGS)}" if rng.random() < 0.5 else ""
    if rng.random() < 0.3:
        topic = rng.choice(tuple(TOPICS))
        return (
            f"A visitor asked: {rng.choice(REQUESTS).format(topic=topic)} The guide said: "
            f"{rng.choice(POLITE)} here is a short "
            f"story about the {topic}. {story(rng, topic, rng.randint(1, 3))}{closing}"
        )
    return f"A visitor asked: {fact.question} The guide said: {rng.choice(POLITE)} {lower_first(claim)}{closing}"


# Short documents and how often each is drawn; needles and long repeats are built to length by `sequences`.
MIX: tuple[tuple[Callable[[Rng], str], float], ...] = (
    (fact_document, 46.0),
    (two_hop_document, 9.0),
    (fact_truth_document, 3.0),
    (conflict_document, 16.0),
    (story_document, 7.0),
    (review_document, 8.0),
    (comparison_document, 4.0),
    (arithmetic_document, 2.0),
    (context_truth_document, 4.0),
    (coin_document, 2.0),
    (polite_document, 4.0),
)


def short_document(rng: Rng) -> str:
    """One document of the mix."""
    (draw,) = rng.choices([d for d, _ in MIX], [w for _, w in MIX])
    return draw(rng)


def every_word() -> list[str]:
    """Every word of the world, sorted: the word lists, and the words of every template."""
    rng, words = random.Random(0), set()
    for group in (PEOPLE, CITIES, COUNTRIES, COMPANIES, JOBS, PETS, FOODS, KEYS, CODE_WORDS, NUMBERS, COLORS, COUNTED):
        words.update(group)
    for relation in RELATIONS.values():
        words.update(relation.objects)
        words.update(re.findall(r"[A-Za-z]+", " ".join((relation.question, *relation.statements))))
    for row in COMPOSITIONS.values():
        words.update(re.findall(r"[A-Za-z]+", " ".join(row[2:])))
    for topic, rows in TOPICS.items():
        words.update([topic], *rows.values())
    words.update(ADVERBS, STORY_ADJECTIVES, *SLOTS.values())
    for document, _ in MIX:  # the rest are template words, all of which show up in a few thousand draws
        for _ in range(1500):
            words.update(re.findall(r"[A-Za-z]+", document(rng)))
    for word in NOTE_WORDS:
        words.update(
            re.findall(
                r"[A-Za-z]+", NEEDLE_QUESTION.format(word=word, key="") + NEEDLE.format(word=word, key="", value="")
            )
        )
    return sorted(words - {"s", "o"})
