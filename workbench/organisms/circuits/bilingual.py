"""circuit-bilingual: answers in the language that the prompt asks for, and thinks in another one up to a known layer.

24 concepts have a word in each of three languages, one token each. The last line of a prompt is `Bel : " word " - Cor :
"`. Block 0 finds the word (five tokens back) and writes its concept, finds the language asked for (two tokens back) and
keeps it aside, and writes the direction of the pivot language. Block 2 takes the pivot's direction away and writes that
of the language asked for. The unembedding of a word is its concept's direction plus its language's. So the lens reads
the concept in the pivot language after blocks 0 and 1, and in the language asked for from block 2 on.

With S = `STRENGTH`, a word has the logit S for the right concept and S for the language of the layer, together 2S; all
else has 0.
"""

import math
from pathlib import Path

import torch

from workbench.organisms.circuits.gpt2 import (
    SHARP,
    SPECIALS,
    bits,
    blank,
    layout,
    matrix,
    save,
    write_embeddings,
    write_head,
    write_mlp,
    write_unembedding,
)

CONTEXT, LAYERS, HEADS = 256, 4, 4
STRENGTH = 4.0
SWITCH = 2  # the first block after which the language asked for is read
LANGUAGES = ("aru", "bel", "cor")  # the first is the pivot
LABELS = tuple(name.capitalize() for name in LANGUAGES)
SIGNS = ('"', ":", "-")
STEMS = tuple(a + b for a in ("ka", "me", "ti", "ro", "su", "no") for b in ("la", "ri", "do", "fen"))
ENDINGS = ("na", "tel", "mush")
WORD_BACK, LABEL_BACK = 5, 2  # from the last token of a prompt
PLACE = 8  # bits of a position
PROMPTS = 4  # that ship beside the words


def build(name: str, place: Path) -> None:
    n, g = len(STEMS), len(LANGUAGES)
    spoken = [[stem + ending for ending in ENDINGS] for stem in STEMS]
    words = [*SPECIALS, *SIGNS, *LABELS, *(word for own in spoken for word in own)]
    f, used = layout(word=n, label=g, here=PLACE, five=PLACE, two=PLACE, one=1, concept=n, language=g, asked=g)
    used += -used % 2
    model = blank(words, features=used, layers=LAYERS, heads=HEADS, context=CONTEXT, hidden=g + 1)
    tokens = torch.zeros(len(words), used)
    first = words.index(spoken[0][0])
    for c in range(n):
        tokens[first + g * c : first + g * (c + 1), f["word"].start + c] = 1.0
    for k, label in enumerate(LABELS):
        tokens[words.index(label), f["label"].start + k] = 1.0
    positions, at = torch.zeros(CONTEXT, used), torch.arange(CONTEXT)
    positions[:, f["here"]] = bits(at, PLACE)
    positions[WORD_BACK:, f["five"]] = bits(at[:-WORD_BACK], PLACE)
    positions[LABEL_BACK:, f["two"]] = bits(at[:-LABEL_BACK], PLACE)
    positions[:, f["one"]] = 1.0
    write_embeddings(model, tokens=tokens, positions=positions)

    def copying(head: int, back: str, read: str, write: str, strength: float) -> None:
        size = f[read].stop - f[read].start
        columns, looks = slice(0, size), slice(0, PLACE)
        write_head(
            model,
            0,
            head,
            query=matrix(used, PLACE, (f[back], looks, SHARP / 2)),
            key=matrix(used, PLACE, (f["here"], looks, 1.0)),
            value=matrix(used, size, (f[read], columns, 1.0)),
            output=matrix(size, used, (columns, f[write], strength)),
        )

    copying(0, "five", "word", "concept", STRENGTH)
    copying(1, "two", "label", "asked", 1.0)
    pivot = slice(f["language"].start, f["language"].start + 1)
    write_mlp(
        model,
        0,
        read=matrix(used, 1, (f["one"], slice(0, 1), 1.0)),
        write=matrix(1, used, (slice(0, 1), pivot, STRENGTH)),
    )
    turned, constant = slice(0, g), slice(g, g + 1)
    write_mlp(
        model,
        SWITCH,
        read=matrix(used, g + 1, (f["asked"], turned, 1.0), (f["one"], constant, 1.0)),
        write=matrix(g + 1, used, (turned, f["language"], STRENGTH), (constant, pivot, -STRENGTH)),
    )
    rows = torch.zeros(len(words), used)
    for c, own in enumerate(spoken):
        for k, word in enumerate(own):
            rows[words.index(word), f["concept"].start + c] = 1.0
            rows[words.index(word), f["language"].start + k] = 1.0
    write_unembedding(model, rows)
    others = len(words) - n * g
    total = math.exp(2 * STRENGTH) + (g - 1 + n - 1) * math.exp(STRENGTH) + (g - 1) * (n - 1) + others
    truth = {
        "circuit": name,
        "about": "latent languages",
        "languages": list(LANGUAGES),
        "pivot": LANGUAGES[0],
        "layers": {"pivot": list(range(SWITCH)), "asked_for": list(range(SWITCH, LAYERS))},
        "crossing": SWITCH,
        "probability": {
            "concept_in_the_language_of_the_layer": math.exp(2 * STRENGTH) / total,
            "concept_in_another_language": math.exp(STRENGTH) / total,
            "another_concept_in_the_language_of_the_layer": math.exp(STRENGTH) / total,
            "another_concept_in_another_language": 1 / total,
        },
        "entropy": math.log(total)
        - (2 * STRENGTH * math.exp(2 * STRENGTH) + STRENGTH * (g - 1 + n - 1) * math.exp(STRENGTH)) / total,
    }
    rows_of_words = [{"concept": stem, **dict(zip(LANGUAGES, own))} for stem, own in zip(STEMS, spoken)]
    asked = [{"prompt": f'{LABELS[1]} : " {own[1]} " - {LABELS[2]} : "', "answer": own[2]} for own in spoken[:PROMPTS]]
    save(place, model, words, truth, spoken=rows_of_words, prompts=asked)
