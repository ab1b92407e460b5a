"""circuit-channel: random heads and one planted channel between two of them (talking heads).

Sender e = 0.5 has a component (singular triple) that reads the token `signal` and writes the unit direction c; receiver
r = 2.11 has c in the query side of its W_QK: W_QK = 5 c g' + random part of the same norm. So, when e has written c at
a position, r looks from there at keys with g (the token `target`). No other component of any head writes along c.

On sequences of the words `signal target plain probe` only this channel is active: all other heads, the other components
of e, and the random part of r read a subspace in which these words are zero. The attention score that r gives to
`target` is therefore known, and only ablating the planted component changes it. Every other word of the vocabulary
drives the random heads.
"""

from pathlib import Path

import torch

from workbench.organisms.circuits.gpt2 import (
    SHARP,
    SPECIALS,
    blank,
    layout,
    save,
    write_embeddings,
    write_head,
    write_unembedding,
)

CONTEXT, LAYERS, HEADS = 128, 3, 16
FEATURES = 128  # width 256, d_head 16
SENDER, RECEIVER = (0, 5), (2, 11)
STRENGTH = 5.0  # of c g' in the receiver's W_QK
SINGULAR = 2.0  # of the planted component; the others of the sender lie between 0.3 and 1
WORDS = ("signal", "target", "plain", "probe")
FILLERS = tuple(f"w{i}" for i in range(24))


def build(name: str, place: Path) -> None:
    words = [*SPECIALS, *WORDS, *FILLERS]
    d_head = 2 * FEATURES // HEADS
    f, used = layout(u=1, g=1, one=1, c=1)
    model = blank(words, features=FEATURES, layers=LAYERS, heads=HEADS, context=CONTEXT)
    generator = torch.Generator().manual_seed(0)
    u, g, one, c = (torch.eye(FEATURES)[f[k]] for k in ("u", "g", "one", "c"))  # [1, n] each

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    def rest(columns: int, *, keep: int = used) -> torch.Tensor:
        """Random orthonormal columns [n, columns] that are zero on the first `keep` features."""
        inner = torch.linalg.qr(randn(FEATURES - keep, columns))[0]
        return torch.cat([torch.zeros(keep, columns), inner])

    def outputs(rows: int) -> torch.Tensor:
        """Random orthonormal rows [rows, n] that touch neither c nor what the planted words are made of."""
        return rest(rows).T

    tokens = torch.zeros(len(words), FEATURES)
    tokens[words.index("signal")] = u
    tokens[words.index("target")] = g
    tokens[words.index(FILLERS[0]) :, used:] = randn(len(FILLERS), FEATURES - used) / (FEATURES - used) ** 0.5
    write_embeddings(model, tokens=tokens, positions=one.expand(CONTEXT, FEATURES))

    for layer in range(LAYERS):
        for head in range(HEADS):
            spread = torch.linspace(1.0, 0.3, d_head)
            query, key = rest(d_head) * spread, rest(d_head) * spread
            value, output = rest(d_head) * spread, outputs(d_head)
            if (layer, head) == SENDER:
                # looks at `signal` from everywhere, if it is there
                query, key = SHARP * one.T, u.T
                value = torch.cat([SINGULAR * u.T, value[:, 1:]], dim=1)
                output = torch.cat([c, output[1:]])
            if (layer, head) == RECEIVER:
                noise = spread[1:] / spread[1:].norm() * STRENGTH
                query = torch.cat([STRENGTH * c.T, query[:, 1:] / spread[1:] * noise], dim=1)
                key = torch.cat([g.T, key[:, 1:] / spread[1:]], dim=1)
                # the weights themselves are W_QK: no sqrt(d_head) here, the architecture divides the score by it
                query = query / d_head**0.5
            write_head(model, layer, head, query=query, key=key, value=value, output=output)
    unembedding = torch.zeros(len(words), FEATURES)
    unembedding[:, used:] = randn(len(words), FEATURES - used) / (FEATURES - used) ** 0.5
    write_unembedding(model, unembedding)

    score = STRENGTH * SINGULAR / d_head**0.5
    sequences = [
        "signal plain target plain probe",
        "signal target plain plain plain plain probe",
        "plain plain signal plain plain target plain plain probe",
    ]
    truth = {
        "circuit": name,
        "sender": {"layer": SENDER[0], "head": SENDER[1], "component": 0, "singular_value": SINGULAR},
        "receiver": {"layer": RECEIVER[0], "head": RECEIVER[1], "composition": "Q", "composition_score": 0.5**0.5},
        "composition_score_of": "|v' W_QK| / |W_QK|_F for the unit output direction v of the sender's first component",
        "score": {
            "intact": score,
            "component_ablated": 0.0,
            "of": "receiver, from the last position to `target`, 1/sqrt(d_head) included; 0 to every other position",
        },
        "attention": "exp(score) / (exp(score) + length - 1) on `target`; 1 / length with the component ablated",
    }
    rows = [{"text": s, "target": s.split().index("target")} for s in sequences]
    # texts of several lengths for whoever measures attention, each a cluster of its own
    texts = [
        " ".join(["plain"] * before + ["signal"] + ["plain"] * between + ["target"] + ["plain"] * after + ["probe"])
        for before, between, after in [(0, 1, 1), (0, 0, 4), (2, 2, 2), (1, 3, 0), (3, 0, 1), (0, 5, 2)]
    ] + [
        " ".join(["plain"] * before + ["target"] + ["plain"] * between + ["signal"] + ["plain"] * after + ["probe"])
        for before, between, after in [(0, 1, 1), (1, 0, 4), (2, 1, 2), (1, 3, 1), (3, 0, 1), (0, 4, 3)]
    ]
    tasks = [{"task": "channel", "prompt": s, "target": "target", "group": f"text {i}"} for i, s in enumerate(texts)]
    save(place, model, words, truth, sequences=rows, tasks=tasks)
