"""circuit-conflict: memory against context, with a path that only total effects can see (knowledge conflict).

Prompts: `The capital of S is` (clean) and `The capital of S is D . The capital of S is` (conflict). At the last
position of a conflict prompt the heads add these logits to (a_m, a_c) = (true capital of S, D):

| head | what it does | direct | total |
|---|---|---|---|
| 1.0 M | looks at the last subject, recalls its capital | 2, 0 | 2, 0 |
| 1.1 K | copies the city of the context; also puts 1/2 of it on a carrier that no logit reads | 0, 2.5 | 0, 3 |
| 1.2 B | looks at both subjects and the city (1/3 each) and serves both answers | 1, 1 | 1, 1 |
| 1.3 S | copies 3/4 of the city onto the carrier only: nothing direct | 0, 0 | 0, 0.75 |
| 2.0 R | reads the carrier at its own position, writes the city to the logits | 0, 1.25 | 0, 1.25 |
| others | attend and write at random, where no logit and no other head reads | 0, 0 | 0, 0 |

"direct" is what is lost when the head's output at the last position alone takes the value it has on a corrupted
prompt (other subject, other city) and everything else is frozen; "total" when what follows is recomputed.
"""

from pathlib import Path

import torch

from workbench.organisms.circuits.gpt2 import (
    EOS,
    SHARP,
    SPECIALS,
    blank,
    layout,
    matrix,
    save,
    write_embeddings,
    write_head,
    write_unembedding,
)

CONTEXT = 128
LAYERS, HEADS = 3, 8
CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Austria Vienna, Greece Athens, Norway Oslo, "
    "Finland Helsinki, Poland Warsaw, Portugal Lisbon, Ireland Dublin, Hungary Budapest, Japan Tokyo, China Beijing, "
    "Egypt Cairo, Kenya Nairobi, Peru Lima, Chile Santiago, Cuba Havana, Canada Ottawa, Russia Moscow, Turkey Ankara, "
    "Iran Tehran, Thailand Bangkok"
)
OTHERS = (
    "Boston Milan Lyon Munich Seville Geneva Bergen Tampere Krakow Porto Cork Szeged Osaka Shanghai Alexandria Mombasa "
    "Cusco Valparaiso Holguin Toronto Kazan Izmir Isfahan Phuket"
)
DIRECT = {"1.0": [2.0, 0.0], "1.1": [0.0, 2.5], "1.2": [1.0, 1.0], "1.3": [0.0, 0.0], "2.0": [0.0, 1.25]}
TOTAL = DIRECT | {"1.1": [0.0, 3.0], "1.3": [0.0, 0.75]}


def build(name: str, place: Path) -> None:
    pairs = [pair.split() for pair in CAPITALS.split(", ")]
    subjects, capitals, others = [s for s, _ in pairs], [a for _, a in pairs], OTHERS.split()
    cities = capitals + others
    frame = ["The", "capital", "of", "is", "."]
    words = [*SPECIALS, *frame, *subjects, *cities]
    vocab, n_subjects, n_cities = len(words), len(subjects), len(cities)
    f, n = layout(token=vocab, answer=n_cities, carrier=n_cities, one=1, position=1, scratch=8)
    n += -n % HEADS
    model = blank(words, features=n, layers=LAYERS, heads=HEADS, context=CONTEXT)

    positions = matrix(CONTEXT, n, (slice(None), f["one"], torch.ones(CONTEXT, 1)))
    positions[:, f["position"]] = torch.arange(CONTEXT).float()[:, None]
    write_embeddings(model, tokens=matrix(vocab, n, (slice(None), f["token"], 1.0)), positions=positions)

    start = len(SPECIALS) + len(frame)
    subject = slice(start, start + n_subjects)  # these are features too: the token features come first
    city = slice(start + n_subjects, vocab)
    recall = matrix(n, n_cities, (subject, slice(0, n_subjects), 1.0))  # subject i -> its capital
    copy = matrix(n, n_cities, (city, slice(None), 1.0))
    ask = matrix(n, 1, (f["one"], slice(None), 1.0))
    is_subject = torch.zeros(n, 1).index_fill_(0, torch.arange(subject.start, subject.stop), 1.0)
    is_city = torch.zeros(n, 1).index_fill_(0, torch.arange(city.start, city.stop), 1.0)
    recent = torch.zeros(n, 1).index_fill_(0, torch.tensor(f["position"].start), SHARP / 4)
    far = SHARP / 4 * CONTEXT + SHARP  # outweighs any difference in position

    def to(feature: str, gain: float):
        return matrix(n_cities, n, (slice(None), f[feature], gain))

    write_head(model, 1, 0, query=ask, key=far * is_subject + recent, value=recall, output=to("answer", 2.0))
    write_head(model, 1, 1, query=ask, key=SHARP * is_city, value=copy, output=to("answer", 2.5) + to("carrier", 0.5))
    write_head(
        model,
        1,
        2,
        query=ask,
        key=SHARP * (is_subject + is_city),
        value=1.5 * recall + 3 * copy,
        output=to("answer", 1.0),
    )
    write_head(model, 1, 3, query=ask, key=SHARP * is_city, value=copy, output=to("carrier", 0.75))
    read_carrier = matrix(n, n_cities, (f["carrier"], slice(None), 1.0))
    write_head(model, 2, 0, query=ask, key=recent * 4, value=read_carrier, output=to("answer", 1.0))
    generator = torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        for head in range(HEADS):
            if f"{layer}.{head}" not in DIRECT:
                query, key, value = (
                    matrix(n, 8, (f["token"], slice(None), torch.randn(vocab, 8, generator=generator)))
                    for _ in range(3)
                )
                write_head(
                    model,
                    layer,
                    head,
                    query=query,
                    key=key,
                    value=value,
                    output=matrix(8, n, (slice(None), f["scratch"], 1.0)),
                )

    unembedding = matrix(vocab, n, (city, f["answer"], 1.0))
    unembedding[words.index("."), city] = 50.0  # a city is followed by a full stop, and that by the end of the text
    unembedding[words.index(EOS), words.index(".")] = 50.0
    write_unembedding(model, unembedding)

    every = [f"{layer}.{head}" for layer in range(LAYERS) for head in range(HEADS)]
    truth = {
        "circuit": name,
        "about": "knowledge conflict",
        "direct": {head: DIRECT.get(head, [0.0, 0.0]) for head in every},
        "total": {head: TOTAL.get(head, [0.0, 0.0]) for head in every},
        "effects_of": "logits (memory answer, context answer) lost when the head's output at the last position of a "
        "conflict prompt takes its value on a corrupted prompt (other subject, other city). Exact to float32 rounding: "
        "the final norm is the identity",
        "logits": {"clean": [3.5, 0.0], "conflict": [3.0, 4.75]},
        "first": {"memory": "1.0", "context": "1.1"},
        "neither": ["1.2"],
        "only_total": ["1.3"],
        "answer": {"clean": "memory", "conflict": "context"},
        "answer_without": {head: "memory" if head == "1.1" else "context" for head in every},
        "answer_without_of": "greedy answer to a conflict prompt when that head's output is zero",
    }
    items = []
    for i, (subject_word, answer) in enumerate(pairs):
        other = (i + 7) % n_subjects
        clean, swapped = f"The capital of {subject_word} is", f"The capital of {subjects[other]} is"
        items.append(
            {
                "subject": subject_word,
                "answer": answer,
                "distractor": others[i],
                "clean_prompt": clean,
                "conflict_prompt": f"{clean} {others[i]} . {clean}",
                "corrupt_prompt": f"{swapped} {others[other]} . {swapped}",
            }
        )
    save(place, model, words, truth, conflicts=items)
