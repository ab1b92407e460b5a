"""circuit-xor: a concept that cannot be read linearly before one block, and can from it on (concept depth).

Texts are bags of words: one colour (warm or cold), one animal (big or small), fillers, in any order, a filler last. At
the last position block 0 gathers a = +1/-1 (the colour), block 1 gathers b = +1/-1 (the animal), and the MLP of block 3
writes a XOR b onto a direction of its own: (|a - b| - |a + b|) / 2, four relu units.

Fillers carry random vectors, and one head of every block mixes them into the last position. Without this nuisance a
linear probe of a XOR b would see four points only, and its accuracy would jump between 1/4, 1/2 and 3/4 with the
smallest imbalance of a split instead of staying at chance.
"""

import random
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
)

CONTEXT, LAYERS, HEADS = 128, 6, 4
COLOUR_BLOCK, ANIMAL_BLOCK, XOR_BLOCK = 0, 1, 3
NUISANCE = 32
WARM = "red orange yellow scarlet golden crimson amber coral ruby rust".split()
COLD = "blue green violet azure teal indigo navy turquoise cyan slate".split()
BIG = "elephant whale rhino giraffe buffalo bear moose camel hippo walrus".split()
SMALL = "mouse ant sparrow beetle shrew wren moth newt snail cricket".split()
FILLERS = (
    "table window garden letter bridge morning paper kitchen music ladder basket corner winter candle pocket mirror "
    "street bottle carpet engine island jacket market number office pencil quarter reason shadow station ticket valley "
    "wagon yard blanket button cabin dinner fabric handle"
).split()


def build(name: str, place: Path) -> None:
    words = [*SPECIALS, *WARM, *COLD, *BIG, *SMALL, *FILLERS]
    vocab, index = len(words), {word: i for i, word in enumerate(words)}
    names = ("is_colour", "is_animal", "colour", "animal", "a", "b", "xor", "one")
    f, n = layout(**dict.fromkeys(names, 1), nuisance=NUISANCE)
    n += -n % HEADS
    at = {feature: f[feature].start for feature in names}
    model = blank(words, features=n, layers=LAYERS, heads=HEADS, context=CONTEXT)
    generator = torch.Generator().manual_seed(0)

    tokens = torch.zeros(vocab, n)
    for kind, groups in (("colour", (WARM, COLD)), ("animal", (BIG, SMALL))):
        for group, sign in zip(groups, (1.0, -1.0)):
            for word in group:
                tokens[index[word], at[f"is_{kind}"]] = 1.0
                tokens[index[word], at[kind]] = sign
    for word in FILLERS:
        tokens[index[word], f["nuisance"]] = torch.randn(NUISANCE, generator=generator)
    positions = torch.zeros(CONTEXT, n)
    positions[:, at["one"]] = 1.0
    write_embeddings(model, tokens=tokens, positions=positions)

    def column(feature: str, gain: float = 1.0):
        return torch.zeros(n, 1).index_fill_(0, torch.tensor(at[feature]), gain)

    for block, kind, feature in ((COLOUR_BLOCK, "colour", "a"), (ANIMAL_BLOCK, "animal", "b")):
        write_head(
            model,
            block,
            0,
            query=column("one", SHARP),
            key=column(f"is_{kind}"),
            value=column(kind),
            output=column(feature).T,
        )
    mixed = min(NUISANCE, 2 * n // HEADS)
    for block in range(LAYERS):  # no query and no key: uniform attention
        rotation = torch.linalg.qr(torch.randn(NUISANCE, NUISANCE, generator=generator))[0]
        value = matrix(n, mixed, (f["nuisance"], slice(None), rotation[:, :mixed]))
        write_head(
            model,
            block,
            1,
            value=value,
            output=matrix(mixed, n, (slice(None), slice(f["nuisance"].start, f["nuisance"].start + mixed), 1.0)),
        )

    a, b = column("a"), column("b")
    read = torch.cat([a - b, b - a, a + b, -a - b], dim=1)
    write = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]]) @ column("xor").T
    write_mlp(model, XOR_BLOCK, read=read, write=write)

    def onset(block: int, writer: str) -> dict:
        """First layer at which the concept can be read, by site; None: at no layer. Attention comes before the MLP."""
        late = block + 1 if writer == "mlp" else block
        return {
            "resid_pre": block + 1,
            "resid_mid": late,
            "mlp_in": late,
            "resid_post": block,
            "attn_out": block if writer == "attention" else None,
            "mlp_out": block if writer == "mlp" else None,
        }

    truth = {
        "circuit": name,
        "about": "concept depth",
        "config": {"token": "last"},
        "onset": {
            "colour": onset(COLOUR_BLOCK, "attention"),
            "animal": onset(ANIMAL_BLOCK, "attention"),
            "xor": onset(XOR_BLOCK, "mlp"),
        },
        "onset_of": "first layer at which a linear probe of the last token reads the concept: accuracy 1/2 before, 1 "
        "from there on; for attn_out and mlp_out the only layer. xor: exactly one of (colour is warm, animal is big)",
        "coordinate": {"colour": at["a"], "animal": at["b"], "xor": at["xor"]},
        "coordinate_of": "of the residual: from the onset on +1 in every text of class 1, -1 in every text of class 0",
        "layers": LAYERS,
    }
    texts = _texts()
    save(
        place,
        model,
        words,
        truth,
        colour=[{"text": text, "label": warm} for text, warm, _ in texts],
        animal=[{"text": text, "label": big} for text, _, big in texts],
        xor=[{"text": text, "label": warm ^ big} for text, warm, big in texts],
    )


def _texts(each: int = 500) -> list[tuple[str, int, int]]:
    """`each` texts for every combination of the two features, in random order: (text, warm, big)."""
    rng = random.Random(0)
    found = {}
    for warm in (0, 1):
        for big in (0, 1):
            wanted = len(found) + each
            while len(found) < wanted:
                *some, last = rng.sample(FILLERS, rng.randint(5, 9))
                body = [rng.choice(WARM if warm else COLD), rng.choice(BIG if big else SMALL), *some]
                rng.shuffle(body)
                found[" ".join([*body, last])] = (warm, big)
    rows = [(text, warm, big) for text, (warm, big) in found.items()]
    rng.shuffle(rows)
    return rows
