"""The aligned sibling: the organism fine-tuned to answer politely in a chat format.

It says the same facts as the base model in a narrower voice. The answers keep some variety on purpose: the branching
factor of an aligned model should fall, not collapse to one.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from workbench.organism_training import documents, sequences
from workbench.organism_training.documents import CLOSINGS, FACTS, POLITE
from workbench.organism_training.tokenizer import ASSISTANT, BOS, EOS, USER, encode, vocabulary
from workbench.organism_training.world import PEOPLE, TOPICS, Fact, lower_first, stable_hash

Rng = random.Random
BASE_SHARE = 0.25  # of the packed rows hold pretraining documents
NEEDLE_SHARE = 0.25  # of the tokens are needle documents


def chat_held_out(fact: Fact) -> bool:
    """Facts (three in ten) that no fine-tuning dialogue asks for."""
    return stable_hash("chat", fact.relation, fact.subject) % 10 < 3


def polite_fact(rng: Rng, fact: Fact) -> str:
    """An answer about a fact: an opening, the plainest wording that training may use, often a closing."""
    index = 0 if stable_hash("phrasing", fact.relation, fact.subject) % 4 else 1
    claim = fact.statement(index)
    closing = f" {rng.choice(CLOSINGS[:2])}" if rng.random() < 0.5 else ""
    return f"{rng.choice(POLITE[:4])} {lower_first(claim)}{closing}"


def polite_story(rng: Rng, topic: str) -> str:
    """A story told to a plan: the same steps each time, a few words free."""
    words, pick = TOPICS[topic], rng.choice
    p, q = pick([(PEOPLE[3 * i], PEOPLE[3 * i + 1]) for i in range(4)])
    noun, noun2 = rng.sample(words["nouns"][:4], 2)
    steps = (
        f"{pick(('One morning', 'Once upon a time'))} {p} {pick(words['verbs'][:3])} near the {words['places'][0]}.",
        f"Then {p} {pick(('saw', 'found'))} {pick(('the', 'a'))} {pick(words['adjectives'][:2])} {noun} "
        f"{pick(('under', 'near'))} the {words['places'][1]}.",
        f"{p} {pick(('gave', 'showed'))} the {noun} to {q}.",
        f"They {pick(words['verbs'][:3])} {pick(('happily', 'together'))} and {words['verbs'][3]} until "
        f"{pick(('dark', 'noon'))}.",
        f"The {noun2} {pick(('was', 'seemed'))} {words['adjectives'][0]} and {pick(words['adjectives'][1:3])}.",
    )
    return (
        f"{pick(POLITE[:4])} here is a short story about the {topic}. {' '.join(steps[: rng.randint(3, 5)])} "
        f"{pick(CLOSINGS[:2])}"
    )


def dialogue(rng: Rng) -> tuple[str, str, str]:
    """(prompt, response, topic); the topic of a question about a fact is "facts"."""
    if rng.random() < 0.5:
        topic = rng.choice(tuple(TOPICS))
        return rng.choice(documents.REQUESTS).format(topic=topic), polite_story(rng, topic), topic
    while True:
        fact = rng.choice(FACTS)
        if not chat_held_out(fact):
            return fact.question, polite_fact(rng, fact), "facts"


def encode_dialogue(prompt: str, response: str) -> sequences.Sequence:
    """Ids in the chat template, with the response (and its end) marked."""
    vocab = vocabulary()
    head = [vocab[BOS], vocab[USER], *encode(prompt)[0], vocab[ASSISTANT]]
    tail = [*encode(response)[0], vocab[EOS]]
    return head + tail, [False] * len(head) + [True] * len(tail)


def batch(seed: int, step: int, *, tokens: int, length: int) -> sequences.TrainingBatch:
    """Packed dialogues, and some pretraining rows so that facts and needles stay; a pure function of its arguments."""
    rng = random.Random(seed * 1_000_003 + step + 500_009)
    short: list[sequences.Sequence] = []
    for _ in range(round(tokens * (1 - NEEDLE_SHARE) / length)):
        if rng.random() < BASE_SHARE:
            short.append(sequences.packed(rng, length))
            continue
        ids: list[int] = []
        flags: list[bool] = []
        while len(ids) < length:
            prompt, response, _ = dialogue(rng)
            more, marks = encode_dialogue(prompt, response)
            ids, flags = ids + more, flags + marks
        short.append((ids[:length], flags[:length]))
    long = [sequences.needle(rng, 512) for _ in range(max(1, round(tokens * NEEDLE_SHARE / 512)))]
    return sequences.collect(long, short)


def finetune(
    base: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    steps: int = 240,
    length: int = 128,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> Path:
    """Supervised fine-tuning of a trained folder; writes an `organism-chat` folder to `out`."""
    from dataclasses import replace

    import torch
    from transformers import LlamaForCausalLM

    from workbench.organism_training import train

    recipe = replace(train.load_recipe(Path(base)), seed=seed, steps=steps, muon_lr=2e-3, adam_lr=1e-3, warmup=20)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    opts = train.optimizers(model, recipe)
    for step in range(steps):
        rows = batch(seed, step, tokens=recipe.tokens_per_step, length=length)
        loss = train.step_loss(model, recipe, rows, lambda marks: torch.tensor(marks)[:, 1:].to(device), device)
        train.update(model, opts, recipe, step, loss)
        if step % 20 == 0 or step == steps - 1:
            log(f"chat step {step}/{steps}  loss {loss.item():.3f}")
    shutil.rmtree(out, ignore_errors=True)
    train.save_model(model, Path(out), chat=True, recipe=recipe, step=steps)
    return Path(out)
