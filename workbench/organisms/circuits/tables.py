"""Models that output a given table of log-probabilities and nothing else (ground truth for the branching factor).

The next-token distribution depends on the current token (a Markov chain), on the absolute position, or on neither.
Attention and MLPs are zero; the unembedding holds the table. Log-probability of an impossible token: `NEVER`.

"expected" in truth.json: entropy in nats of the next-token distribution, plain and after nucleus truncation at 0.9
(smallest prefix of the sorted distribution with cumulative probability >= 0.9 - 1e-6, renormalised).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from workbench.organisms.circuits.gpt2 import EOS, SPECIALS, blank, layout, save, write_embeddings, write_unembedding

CONTEXT = 1024
NEVER = -1000.0  # exp(-1000) is 0 in float64 too, at any sensible temperature
SHORT, LONG, SIDES = 10, 80, 4  # circuit-survivor: tokens of a short and a long sample, choices per step of a short one


def build(name: str, place: Path) -> None:
    kind = name.removeprefix("circuit-")
    words, by, table, expected, prompts = globals()[f"_{kind}"]()
    states = len(table)
    f, n = layout(state=states)
    n += -n % 4
    model = blank(words, features=n, layers=2, heads=4, context=CONTEXT)
    tokens, positions = torch.zeros(len(words), n), torch.zeros(CONTEXT, n)
    if by == "token":
        for word, row in zip(words, range(states)):
            tokens[words.index(word), row] = 1.0
    else:  # by position; the last row holds from there on
        positions[torch.arange(CONTEXT), torch.arange(CONTEXT).clamp(max=states - 1)] = 1.0
    write_embeddings(model, tokens=tokens, positions=positions)
    logits = torch.full((states, len(words)), NEVER, dtype=torch.float64)
    for row, probabilities in enumerate(table):
        for word, p in probabilities.items():
            logits[row, words.index(word)] = math.log(p)
    write_unembedding(model, torch.cat([logits.T.float(), torch.zeros(len(words), n - states)], dim=1))
    truth = {
        "circuit": name,
        "about": "branching factor",
        "depends_on": by,
        "table": table,
        "table_of": "next-token probabilities: row i holds after token id i"
        if by == "token"
        else "next-token probabilities: row i holds at absolute position i (the last row from there on)",
        "never": NEVER,
        "expected": expected,
    }
    save(place, model, words, truth, prompts=[{"prompt": prompt} for prompt in prompts])


def nucleus(probabilities: Sequence[float], top_p: float = 1.0) -> list[float]:
    """Smallest prefix of the sorted probabilities that reaches top_p - 1e-6, renormalised."""
    kept, total = [], 0.0
    for p in sorted(probabilities, reverse=True):
        kept.append(p)
        total += p
        if total >= top_p - 1e-6:
            break
    return [p / total for p in kept]


def entropy(probabilities: Sequence[float]) -> float:
    """Shannon entropy in nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def _independent(weights: Sequence[float]):
    """The same distribution at every step, whatever came before."""
    words = [*SPECIALS, "start", *(f"t{i}" for i in range(1, len(weights) + 1))]
    probabilities = [w / sum(weights) for w in weights]
    row = {f"t{i}": p for i, p in enumerate(probabilities, 1)}
    expected = {}
    for label, top_p in (("full", 1.0), ("top_p_0.9", 0.9)):
        kept = nucleus(probabilities, top_p)
        expected[label] = {"entropy": entropy(kept), "bf": math.exp(entropy(kept)), "support": len(kept)}
    return words, "position", [row], expected, ["start", "start t1", "start t2 t1 t3"]


def _zipf():
    return _independent([1 / r for r in range(1, 51)])


def _geometric():
    return _independent([0.5**r for r in range(1, 21)])


def _uniform():
    return _independent([1.0] * 10)


def _markov():
    """`start` draws the first state from the stationary law, so every step has the same expected entropy after it."""
    words = [*SPECIALS, "start", "A", "B"]
    a, b, start = {"A": 0.9, "B": 0.1}, {"A": 0.5, "B": 0.5}, {"A": 5 / 6, "B": 1 / 6}
    table = [start, start, start, start, a, b]
    first, rows = entropy(start.values()), {"A": entropy(a.values()), "B": entropy(b.values())}
    rate = 5 / 6 * rows["A"] + 1 / 6 * rows["B"]
    expected = {
        "full": {
            "entropy_rate": rate,
            "bf": math.exp(rate),
            "entropy_after": {"start": first, **rows},
            "mean_entropy_from_start": "(entropy_after.start + (N - 1) * entropy_rate) / N over N steps after `start`",
        }
    }
    return words, "token", table, expected, ["start"] * 4


def _survivor():
    """First token: long (probability 1/5) or one of four short ones; then a chain of fixed length ends the text."""
    sides = "abcd"[:SIDES]
    short = [[f"s{i}{side}" for side in sides] for i in range(SHORT)]
    long = [f"l{i}" for i in range(LONG)]
    words = [*SPECIALS, "start", *(word for step in short for word in step), *long]
    first = {word: 1 / (SIDES + 1) for word in (*short[0], long[0])}
    after = dict.fromkeys((*SPECIALS, "start"), first)
    for i, step in enumerate(short):
        for word in step:
            after[word] = {nxt: 1 / SIDES for nxt in short[i + 1]} if i + 1 < SHORT else {EOS: 1.0}
    for i, word in enumerate(long):
        after[word] = {long[i + 1]: 1.0} if i + 1 < LONG else {EOS: 1.0}
    p_long, first_entropy = 1 / (SIDES + 1), math.log(SIDES + 1)
    in_short, in_long = first_entropy + (SHORT - 1) * math.log(SIDES), first_entropy
    total = p_long * in_long + (1 - p_long) * in_short
    length = {
        "with_eos": p_long * (LONG + 1) + (1 - p_long) * (SHORT + 1),
        "without_eos": p_long * LONG + (1 - p_long) * SHORT,
    }
    expected = {
        "p_long": p_long,
        "tokens": {"short": SHORT, "long": LONG},
        "eos": "one more step, entropy 0",
        "entropy_per_step": {"first": first_entropy, "short": math.log(SIDES), "long": 0.0},
        "mean_entropy": {
            "short": {"with_eos": in_short / (SHORT + 1), "without_eos": in_short / SHORT},
            "long": {"with_eos": in_long / (LONG + 1), "without_eos": in_long / LONG},
        },
        "pooled": {k: {"entropy": total / n, "bf": math.exp(total / n)} for k, n in length.items()},
        "survivors": "only long samples reach the last positions: an average over these alone is about 1",
        "compat_nll": {
            "entropy": first_entropy / (LONG + 1),
            "bf": math.exp(first_entropy / (LONG + 1)),
            "holds_if": "4 or more of 50 samples are long; the end token counts",
        },
    }
    return words, "token", [after[word] for word in words], expected, ["start"] * 4


def _decline():
    """With a prompt of one token, step t of the output is predicted at position t."""
    words = [*SPECIALS, "start", *(f"t{i}" for i in range(1, 17))]
    table = [{f"t{i}": 1 / (16 - t) for i in range(1, 17 - t)} for t in range(16)]
    steps = [math.log(max(1, 16 - t)) for t in range(64)]
    prefix = [math.exp(sum(steps[: t + 1]) / (t + 1)) for t in range(64)]
    expected = {"full": {"entropy_at_step": steps, "prefix_bf": prefix, "prompt": "one token"}}
    return words, "position", table, expected, ["start"] * 4
