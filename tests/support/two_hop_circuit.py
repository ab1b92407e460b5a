"""A GPT-2 of four blocks that hops too late, written weight by weight, and the questions that it is asked.

"the R2 of the R1 of E1 is": the head of block 1 gathers R1 at E1, and the MLP of block 1 writes the bridge there (slot
A). Blocks 1 and 2 move slot A from an entity to "is" (slot B), so the bridge arrives once, in block 2. The MLP of block
2 knows the second hop only of a bridge that arrived before block 2 too (slot B = 2). A bridge that is named (the second
hop alone) is in slot A from the embedding on, and arrives twice: the second hop is known. Of `EARLY` subjects block 0
finds the bridge, so that it arrives twice as well: the model answers these, and fails the others, whose bridge it says.

What describes a state: after "x" comes ":", and ":" says the entity of the last entity that it sees.

Solved by back-patching, for late subjects (source, target): see `SOLVED`.
"""

import itertools
import json
from pathlib import Path

import torch

from workbench.organisms.circuits.gpt2 import (
    SHARP,
    SPECIALS,
    blank,
    layout,
    matrix,
    save,
    write_embeddings,
    write_head,
    write_mlp,
    write_unembedding,
)

LATE = [f"late{i}" for i in range(8)]
EARLY = [f"early{i}" for i in range(4)]
SUBJECTS = [*LATE, *EARLY]
R1, R2 = ["singer", "writer"], ["spouse", "town"]
BRIDGES = [f"bridge{i}" for i in range(8)]
ANSWERS = [f"answer{i}" for i in range(16)]
WORDS = [
    *SPECIALS,
    "The",
    "the",
    "of",
    "is",
    "x",
    ":",
    ",",
    "thing",
    "nothing",
    *R1,
    *R2,
    *SUBJECTS,
    *BRIDGES,
    *ANSWERS,
]
DESCRIBE = "the thing : thing , x"
# (source, target): at the last token the bridge has to be there before block 2; at the subject before block 1 moves it
SOLVED = {"t2": {(2, 0), (2, 1), (3, 0), (3, 1)}, "t1": {(1, 0), (2, 0), (3, 0)}}


def bridge(e1: int, r1: int) -> int:
    """The bridge of subject number e1 under relation number r1."""
    return (e1 + 3 * r1) % len(BRIDGES)


def answer(e2: int, r2: int) -> int:
    return len(BRIDGES) * r2 + e2


def questions() -> list[dict]:
    """Every question, as rows of a data file in the paper's form."""
    rows = []
    for e1, r1, r2 in itertools.product(range(len(SUBJECTS)), range(len(R1)), range(len(R2))):
        e2 = bridge(e1, r1)
        rows.append(
            {
                "e1": SUBJECTS[e1],
                "e2": BRIDGES[e2],
                "e3": ANSWERS[answer(e2, r2)],
                "r1_template": f"the {R1[r1]} of {{}}",
                "r2_template": f"the {R2[r2]} of {{}}",
            }
        )
    return rows


def build(place: Path) -> Path:
    """Write the model, its tokenizer and `questions.jsonl` into a folder."""
    flags = ("is_r1", "is_r2", "is_entity", "is_is", "is_colon", "asks", "is_e3", "first", "one")
    f, n = layout(
        e1=len(SUBJECTS),
        r1=len(R1),
        r2=len(R2),
        e3_token=len(ANSWERS),
        r1_early=len(R1),
        r1_late=len(R1),
        r2_seen=len(R2),
        a=len(BRIDGES),
        b=len(BRIDGES),
        e3=len(ANSWERS),
        said=len(BRIDGES) + len(ANSWERS),
        **dict.fromkeys(flags, 1),
    )
    n += n % 2
    at = {name: f[name].start for name in flags}
    model = blank(WORDS, features=n, layers=4, heads=4, context=64, hidden=16)
    index = {word: i for i, word in enumerate(WORDS)}
    tokens, positions = torch.zeros(len(WORDS), n), torch.zeros(64, n)
    positions[:, at["one"]], positions[0, at["first"]] = 1.0, 1.0
    for words, slot, flagged in (
        (SUBJECTS, "e1", ("is_entity", "asks")),
        (BRIDGES, "a", ("is_entity", "asks")),
        (ANSWERS, "e3_token", ("is_e3", "asks")),
        (R1, "r1", ("is_r1",)),
        (R2, "r2", ("is_r2",)),
    ):
        for i, word in enumerate(words):
            tokens[index[word], f[slot].start + i] = 1.0
            for flag in flagged:
                tokens[index[word], at[flag]] = 1.0
    for word, flag in (("is", "is_is"), (":", "is_colon"), ("x", "asks")):
        tokens[index[word], at[flag]] = 1.0
    write_embeddings(model, tokens=tokens, positions=positions)

    def columns(*pairs):
        """[n, len(pairs)]: one column for each {feature: weight}."""
        out = torch.zeros(n, len(pairs))
        for k, weights in enumerate(pairs):
            for name, weight in weights.items():
                out[at[name], k] = weight
        return out

    def move(block, head, query, keys, *slots):
        """A head that looks at a key from a query, else at the first token, and copies slots to slots."""
        ask = columns({"one": SHARP}, {query: 2 * SHARP})
        size = [f[source].stop - f[source].start for source, _ in slots]
        starts = [sum(size[:k]) for k in range(len(size))]
        value = matrix(n, sum(size), *((f[s], slice(o, o + w), 1.0) for (s, _), o, w in zip(slots, starts, size)))
        output = matrix(
            sum(size), n, *((slice(o, o + w), slice(t, t + w), 1.0) for (_, t), o, w in zip(slots, starts, size))
        )
        write_head(
            model, block, head, query=ask, key=columns({"first": 1.0}, dict.fromkeys(keys, 1.0)), value=value,
            output=output,
        )  # fmt: skip

    for block, slot in ((0, "r1_early"), (1, "r1_late")):
        move(block, 1, "one", ("is_r1",), ("r1", f[slot].start))
    move(0, 2, "one", ("is_r2",), ("r2", f["r2_seen"].start))
    for block in (1, 2):
        move(block, 0, "is_is", ("is_entity",), ("a", f["b"].start))
    said = f["said"].start
    move(3, 0, "is_colon", ("is_entity", "is_e3"), ("a", said), ("e3_token", said + len(BRIDGES)))

    def know(block, facts, *, bias):
        """MLP units: of each (reads, write) one that fires where the weighted reads exceed `bias`."""
        read, write = torch.zeros(n, len(facts)), torch.zeros(len(facts), n)
        for k, (reads, target) in enumerate(facts):
            for place_, weight in reads:
                read[place_, k] += weight
            read[at["one"], k], write[k, target] = -bias, 1.0
        write_mlp(model, block, read=read, write=write)

    for block, subjects, slot in ((0, EARLY, "r1_early"), (1, LATE, "r1_late")):
        facts = [
            (
                [(f["e1"].start + e1, 1.0), (f[slot].start + r1, 1.0), (f["a"], -4.0)],
                f["a"].start + bridge(e1, r1),
            )
            for e1, r1 in itertools.product([SUBJECTS.index(s) for s in subjects], range(len(R1)))
        ]
        know(block, facts, bias=1.0)
    second = [
        ([(f["b"].start + e2, 1.0), (f["r2_seen"].start + r2, 1.0)], f["e3"].start + answer(e2, r2))
        for e2, r2 in itertools.product(range(len(BRIDGES)), range(len(R2)))
    ]
    know(2, second, bias=2.5)

    rows = torch.zeros(len(WORDS), n)
    rows[index["nothing"], at["one"]] = 0.25
    rows[index[":"], at["asks"]] = 3.0
    for i, word in enumerate(BRIDGES):
        rows[index[word], f["b"].start + i], rows[index[word], said + i] = 1.0, 4.0
    for i, word in enumerate(ANSWERS):
        rows[index[word], f["e3"].start + i], rows[index[word], said + len(BRIDGES) + i] = 16.0, 4.0
    write_unembedding(model, rows)
    place.mkdir(parents=True, exist_ok=True)
    save(place, model, WORDS, {"circuit": "two-hop", "about": "hopping"})
    text = "".join(json.dumps(row) + "\n" for row in questions())
    (place / "questions.jsonl").write_text(text, encoding="utf-8")
    return place
