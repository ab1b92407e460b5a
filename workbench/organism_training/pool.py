"""The pool and the targets of data selection: samples of known topics that no single word gives away.

Requests do not name the topic. A story holds sentences of its own topic and, fewer, of others, about the same people;
an answer to a question may wander off into a story, and a story may state a fact. The label is what most of the
response is about.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from workbench.organism_training import chat, documents
from workbench.organism_training.world import PEOPLE, TOPICS

Rng = random.Random
REQUESTS = (
    "Tell me a story about {who}.",
    "Write a few lines about {who}.",
    "Please describe a day of {who}.",
    "I want to hear something about {who}.",
)


def story(rng: Rng, topic: str) -> tuple[str, str]:
    """(request, response): three to five sentences, of which more are of `topic` than of all other topics together."""
    cast = rng.sample(PEOPLE, 2)
    others = [name for name in TOPICS if name != topic]
    own, rest = rng.choice(((2, 1), (3, 1), (3, 2)))
    sentences = [documents.story_sentence(rng, topic, cast) for _ in range(own)] + [
        documents.story_sentence(rng, rng.choice(others), cast) for _ in range(rest)
    ]
    if rng.random() < 0.3:
        sentences.append(documents.say(rng.choice(documents.FACTS), rng, mark=False))
    rng.shuffle(sentences)
    closing = f" {rng.choice(documents.CLOSINGS[:2])}" if rng.random() < 0.5 else ""
    return rng.choice(REQUESTS).format(who=cast[0]), " ".join(sentences) + closing


def fact(rng: Rng) -> tuple[str, str]:
    """(question, answer), one time in two with a sentence of some story before or after the fact."""
    while True:
        known = rng.choice(documents.FACTS)
        if not chat.chat_held_out(known):
            break
    answer = chat.polite_fact(rng, known)
    if rng.random() < 0.5:
        aside = documents.story_sentence(rng, rng.choice(tuple(TOPICS)), rng.sample(PEOPLE, 2))
        answer = (
            f"{answer} {aside}"
            if rng.random() < 0.5
            else f"{aside} {known.statement(0 if documents.held_out_statement(known) else 1)}"
        )
    return known.question, answer


def sample(rng: Rng, topic: str | None = None) -> dict[str, object]:
    """One row (prompt, response, topic); half of the rows are "facts" where no topic is asked for."""
    topic = topic or (rng.choice(tuple(TOPICS)) if rng.random() < 0.5 else "facts")
    prompt, response = fact(rng) if topic == "facts" else story(rng, topic)
    return {"prompt": prompt, "response": response, "topic": topic}


def pool_rows(count: int, seed: str) -> Iterator[dict[str, object]]:
    rng = random.Random(seed)
    for _ in range(count):
        yield sample(rng)


def target_rows(topic: str, count: int = 20) -> list[dict[str, object]]:
    rng = random.Random(f"target {topic}")
    return [sample(rng, topic) for _ in range(count)]
