"""The pool of known topics: what the label says is true of the text, and no request gives it away."""

import json
import re
from collections import Counter

from workbench import organisms
from workbench.organism_training import datafiles
from workbench.organism_training.tokenizer import vocabulary
from workbench.organism_training.world import TOPICS

WORDS = {topic: set().union(*words.values()) for topic, words in TOPICS.items()}


def rows(name):
    return [json.loads(line) for line in organisms.data(name).read_text(encoding="utf-8").splitlines()]


def test_sizes_columns_and_vocabulary():
    pool = rows("pool")
    assert len(pool) == 1000 and all(list(row) == ["prompt", "response", "topic"] for row in pool)
    assert {row["topic"] for row in pool} == {*TOPICS, "facts"} and min(
        Counter(row["topic"] for row in pool).values()
    ) >= 50, "5 % can all be of the topic"
    known = {word.strip("Ġ▁ ") for word in vocabulary()}
    for name in ("pool", *(f"targets/{topic}" for topic in (*TOPICS, "facts"))):
        own = rows(name)
        assert set(re.findall(r"[A-Za-z]+", " ".join(row["prompt"] + " " + row["response"] for row in own))) <= known
        assert name == "pool" or (len(own) == 20 and {row["topic"] for row in own} == {name.partition("/")[2]})


def test_no_request_names_its_topic_and_stories_share_words_with_other_topics():
    stories = [row for row in rows("pool") if row["topic"] != "facts"]
    mixed = 0
    for row in stories:
        assert not set(re.findall(r"[a-z]+", row["prompt"])) & (WORDS[row["topic"]] | {row["topic"]})
        found = set(re.findall(r"[a-z]+", row["response"]))
        assert found & WORDS[row["topic"]]
        mixed += any(found & words for topic, words in WORDS.items() if topic != row["topic"])
    assert mixed > 0.95 * len(stories)
    asides = [
        row
        for row in rows("pool")
        if row["topic"] == "facts"
        and any(set(re.findall(r"[a-z]+", row["response"])) & words for words in WORDS.values())
    ]
    assert len(asides) > 100, "answers wander off into stories"


def test_the_label_is_what_most_sentences_are_about():
    agree = 0
    stories = [row for row in datafiles.pool_rows(300, "other") if row["topic"] != "facts"]
    for row in stories:
        votes = Counter()
        for sentence in row["response"].split("."):
            hits = Counter({topic: len(set(re.findall(r"[a-z]+", sentence)) & words) for topic, words in WORDS.items()})
            votes[hits.most_common(1)[0][0]] += bool(hits.total())
        agree += votes.most_common(1)[0][0] == row["topic"]
    assert agree > 0.9 * len(stories)
