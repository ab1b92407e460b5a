"""circuit-copy: a two-layer model that finds a needle and copies it (ground truth for retrieval heads).

Context: haystack words in sentences, one needle sentence `key k1 .. k6 .` in it, and the prompt ends with the key.
Greedy output is `k1 .. k6 .` and the end-of-text token.

Layer 0, heads 0 and 1 both write the previous token into a slot of the residual (twins, so that masking either one
changes nothing); 0.2 looks at position 0, 0.3 at the current position. Layer 1:
1.0 looks where the previous token equals the current one and copies the token there to the logits (score 1);
1.1 looks at position 0 (score 0); 1.2 looks at the earlier occurrence of the current token, one place before the right
one (score 0); 1.3 looks where 1.0 looks when the current token has an even id, else at position 0 (score 0.5: ids in a
needle alternate). Only 1.0 writes what the unembedding reads.
"""

import random
from pathlib import Path

import torch

from workbench.organisms.circuits.gpt2 import (
    BOS,
    EOS,
    SHARP,
    SPECIALS,
    bits,
    blank,
    layout,
    matrix,
    save,
    write_embeddings,
    write_head,
    write_unembedding,
)

CONTEXT = 1024
POSITION_BITS = 10
NEEDLES = {
    "Mira": "copper lantern velvet harbor quartz meadow",
    "Tobias": "saffron glacier ribbon anvil orchid compass",
    "Ingrid": "marble falcon cinder walnut prism tundra",
    "Casper": "ivory beacon thistle cobalt willow magnet",
    "Leonie": "amber canyon feather pewter lotus summit",
    "Rufus": "crimson turbine jasmine granite pebble comet",
}
HAYSTACK = (
    "the road was long and quiet people walked home slowly while rain fell over old houses near our river some "
    "children played under tall trees their mother watched from her window every evening he wrote letters about work "
    "with great care"
)
# the paper's question template has no words of this model's vocabulary: dropped, so the default prompt works as well
QUESTION_TEMPLATE = ("Based on the content of the book, Question:", "Question:", "Answer:")


def vocabulary(*, bos: bool = False) -> list[str]:
    """Ids in a needle run on from an odd key: key odd, k1 even, k2 odd, ... A haystack word keeps the parity."""
    haystack = HAYSTACK.split()
    words = [*SPECIALS, *([BOS] if bos else []), ".", "nothing"]
    for key, answer in NEEDLES.items():
        if len(words) % 2 == 0:
            words.append(haystack.pop(0))
        words += [key, *answer.split()]
    return words + haystack


def build(name: str, place: Path) -> None:
    words = vocabulary()
    vocab = len(words)
    f, n = layout(
        token=vocab, previous=vocab, out=vocab, position=POSITION_BITS, before=POSITION_BITS, one=1, first=1, scratch=8
    )
    n += -n % 4
    model = blank(words, features=n, layers=2, heads=4, context=CONTEXT)

    tokens = matrix(vocab, n, (slice(None), f["token"], 1.0))
    places = torch.arange(CONTEXT)
    positions = matrix(
        CONTEXT,
        n,
        (slice(None), f["position"], bits(places, POSITION_BITS)),
        (slice(1, None), f["before"], bits(places[:-1], POSITION_BITS)),
        (slice(None), f["one"], torch.ones(CONTEXT, 1)),
        (slice(0, 1), f["first"], 1.0),
    )
    write_embeddings(model, tokens=tokens, positions=positions)

    token, code = slice(0, vocab), slice(vocab, vocab + POSITION_BITS)
    read_token = matrix(n, vocab, (f["token"], token, 1.0))
    read_first = matrix(n, 1, (f["first"], slice(0, 1), 1.0))
    first = {"query": matrix(n, 1, (f["one"], slice(0, 1), SHARP)), "key": read_first}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(vocab, 8, generator=generator)
    idle = {"value": read_token @ noise, "output": matrix(8, n, (slice(None), f["scratch"], 1.0))}

    half = SHARP / 2  # codes of different positions differ by at least 2
    read_position = matrix(n, POSITION_BITS, (f["position"], slice(None), 1.0))
    for head in (0, 1):
        write_head(
            model,
            0,
            head,
            query=matrix(n, POSITION_BITS, (f["before"], slice(None), half)),
            key=read_position,
            value=read_token,
            output=matrix(vocab, n, (token, f["previous"], 1.0)),
        )
    write_head(model, 0, 2, **first, **idle)
    write_head(model, 0, 3, query=read_position * half, key=read_position, **idle)

    # 1.0: previous token there = current token here; position 0 has no previous token. A full stop looks nowhere.
    match = matrix(n, vocab + 1, (f["token"], token, SHARP), (f["one"], slice(vocab, None), 2 * SHARP))
    match[f["token"]][words.index(".")] = 0
    write_head(
        model,
        1,
        0,
        query=match,
        key=matrix(n, vocab + 1, (f["previous"], token, 1.0), (f["first"], slice(vocab, None), -1.0)),
        value=read_token,
        output=matrix(vocab, n, (token, f["out"], 1.0)),
    )
    write_head(model, 1, 1, **first, **idle)
    # 1.2: same token, but not here: 20 * SHARP for the token outweighs every position code
    here = matrix(n, vocab + POSITION_BITS, (f["token"], token, 20 * SHARP), (f["position"], code, -half))
    there = matrix(n, vocab + POSITION_BITS, (f["token"], token, 1.0), (f["position"], code, 1.0))
    write_head(model, 1, 2, query=here, key=there, **idle)
    # 1.3: as 1.0 for even ids; position 0 scores half of a match, and wins when nothing matches
    even = torch.diag((torch.arange(vocab) % 2 == 0).float())
    gated = matrix(n, vocab + 1, (f["token"], token, 2 * SHARP * even), (f["one"], slice(vocab, None), SHARP))
    gated[f["token"]][words.index(".")] = 0
    write_head(
        model,
        1,
        3,
        query=gated,
        key=matrix(n, vocab + 1, (f["previous"], token, 1.0), (f["first"], slice(vocab, None), 1.0)),
        **idle,
    )

    write_unembedding(model, unembedding(words, f, n))
    save_circuit(name, place, model, words, copy_head="1.0", half_head="1.3", twins=["0.0", "0.1"])


def unembedding(words: list[str], f: dict[str, slice], n: int) -> torch.Tensor:
    """[vocab, n]: what was copied is said; a full stop ends the answer; with nothing copied the word is "nothing"."""
    rows = matrix(len(words), n, (slice(None), f["out"], 1.0))
    rows[words.index(EOS), f["token"]][words.index(".")] = 2.0
    rows[words.index("nothing"), f["one"]] = 2.0**-12  # less than one word of the longest context leaves behind
    return rows


def save_circuit(name, place, model, words, *, copy_head: str, half_head: str, twins: list[str], extra=()) -> None:
    """Write the folder; heads are named "layer.head"."""
    answers = {key: answer.split() for key, answer in NEEDLES.items()}
    heads = [f"{layer}.{head}" for layer in (0, 1) for head in range(4)]
    truth = {
        "circuit": name,
        "about": "retrieval heads",
        "config": {"lengths": [64, 128, 256], "depths": [0, 25, 50, 75, 100], "max_new_tokens": 10},
        "template": "{context} {question}",
        "scores": dict.fromkeys(heads, 0.0) | {copy_head: 1.0, half_head: 0.5},
        "score_of": "share of the answer's tokens emitted while the head looks most at that very token in the needle",
        "copied": {copy_head: answers, half_head: {key: answer[1::2] for key, answer in answers.items()}},
        "output": {key: f"{' '.join(answer)} . {EOS}" for key, answer in answers.items()},
        "masking": {
            "breaks": [copy_head],
            "breaks_together": [twins],
            "leaves": [head for head in heads if head != copy_head],
            "zero": "copy head set to zero: every step says 'nothing'",
            "uniform": "copy head with uniform attention: each token gets logit count / length, the needle's "
            "1 / length; "
            "the commonest, the full stop, is said, and then the text ends",
        },
        **dict(extra),
    }
    needles = [{"needle": f"{key} {answer} .", "question": key, "answer": answer} for key, answer in NEEDLES.items()]
    save(place, model, words, truth, ignored=QUESTION_TEMPLATE, needles=needles, haystack=_haystack_text())


def _haystack_text(sentences: int = 200, length: int = 8) -> str:
    """Sentences of eight distinct haystack words."""
    rng = random.Random(0)
    words = sorted(set(HAYSTACK.split()))
    return " ".join(f"{' '.join(rng.sample(words, length))} ." for _ in range(sentences)) + "\n"
