"""What the model says under edits: its answers, which side they follow, and the probabilities of both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import torch

from probes.knowledge_conflict.config import Config
from probes.knowledge_conflict.items import GROUPS, Item
from workbench.core.context import Context
from workbench.core.errors import RunFailed
from workbench.engine.edits import Edit
from workbench.engine.generate import greedy
from workbench.engine.hf import stream
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.models.text_positions import find, first_mention
from workbench.models.thinking import thinking_splitter

_TAG = re.compile(r"<[^<>\s][^<>]*>|<\||\[/?[A-Z_]+\]")  # what a response without an answer begins with


def edited(context: Context, edits: Iterable[Edit] = ()) -> Pass:
    """A pass with the run's own edits and these after them."""
    return Pass((*context.edits, *edits), check=context.check)


def clean_right(model: Model, config: Config, context: Context, items: Sequence[Item], run: Pass) -> list[bool]:
    """Whether the greedy continuation of each clean prompt names the answer; with a warning where most continuations
    hold no answer that could be right."""
    texts = _continuations(model, config, context, [item.clean for item in items], run)
    empty, tags = sum(not text for text in texts), sum(bool(_TAG.match(text)) for text in texts)
    if 2 * (empty + tags) > len(texts):
        kinds = {"are empty (or thinking that did not end)": empty, "begin with a tag": tags}
        found = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        context.warn(
            f"Of {len(texts)} answers to clean prompts {found}; set thinking=off, another template (now "
            f"{config.template}), an answer_prefix or a larger max_new_tokens."
        )
    return _right(items, texts)


def clean_share(model: Model, config: Config, context: Context, items: Sequence[Item], run: Pass) -> float:
    """The share of clean prompts whose greedy continuation names the answer."""
    return float(np.mean(_right(items, _continuations(model, config, context, [item.clean for item in items], run))))


def _right(items: Sequence[Item], texts: Sequence[str]) -> list[bool]:
    return [any(find(text, answer) for answer in item.answers) for item, text in zip(items, texts)]


def log_probabilities(model: Model, context: Context, items: Sequence[Item], run: Pass) -> np.ndarray:
    """log p(a_m), log p(a_c) after the conflict prompts, [n, 2]: taken where the scores are, so that two numbers a
    prompt leave the device. Raises RunFailed where they are NaN."""
    ids, out = [item.conflict for item in items], np.empty((len(items), 2))
    for rows, found, _ in stream(model, ids, ["logits"], dtype=torch.float32, run=run):
        scores = found[Site("logits")]
        wanted = torch.tensor([items[i].tokens for i in rows], device=scores.device)
        out[rows] = scores.log_softmax(-1).gather(1, wanted).cpu().numpy()
        context.count(prompts=len(rows), tokens=sum(len(ids[i]) for i in rows), forwards=1)
    if wrong := [items[i].row for i in range(len(items)) if np.isnan(out[i]).any()]:
        raise RunFailed(
            f"The model {model.name} gave NaN scores for the items {wrong[:5]}; use another dtype (bfloat16 or "
            f"float32) or check its weights."
        )
    return out


def probabilities(model: Model, context: Context, items: Sequence[Item], run: Pass) -> np.ndarray:
    """p(a_m), p(a_c) after the conflict prompts, [n, 2]."""
    return np.exp(log_probabilities(model, context, items, run))


def answer_table(model: Model, config: Config, context: Context, items: Sequence[Item], run: Pass) -> pl.DataFrame:
    """One row per item: the greedy answer to the conflict prompt and what it follows, p(a_m), p(a_c), and whether the
    clean prompt is still answered."""
    texts = _continuations(model, config, context, [item.conflict for item in items], run)
    p = probabilities(model, context, items, run)
    clean = _continuations(model, config, context, [item.clean for item in items], run)
    return told(items, texts, p, _right(items, clean))


def told(items: Sequence[Item], texts: Sequence[str], p: np.ndarray, right: Sequence[bool]) -> pl.DataFrame:
    """What answers follow: one row per item, with its answer in words, p(a_m) and p(a_c) [n, 2], and whether its clean
    prompt is answered right."""
    sides = [
        first_mention(text, {"memory": item.answers, "context": [item.distractor]}, "other")
        for item, text in zip(items, texts)
    ]
    columns = [name for name in GROUPS if any(name in item.group for item in items)]
    return pl.DataFrame(
        {
            "row": [item.row for item in items],
            "subject": [item.subject for item in items],
            "answer": [item.answers[0] for item in items],
            "distractor": [item.distractor for item in items],
            "text": texts,
            "kind": sides,
            "p_memory": p[:, 0],
            "p_context": p[:, 1],
            "clean_right": list(right),
            **{name: [item.group.get(name) for item in items] for name in columns},
        }
    )


def _continuations(
    model: Model, config: Config, context: Context, prompts: Sequence[Sequence[int]], run: Pass
) -> list[str]:
    """Greedy answers, without white space at their ends and without the thinking before them."""
    out = greedy(model, prompts, max_new_tokens=config.max_new_tokens, run=run)
    return in_words(model, context, prompts, out)


def in_words(
    model: Model, context: Context, prompts: Sequence[Sequence[int]], out: Sequence[Sequence[int]]
) -> list[str]:
    """Generated ids as text, without white space at their ends and without the thinking before them; counted."""
    context.count(prompts=len(prompts), tokens=sum(map(len, prompts)) + sum(map(len, out)), forwards=max(map(len, out)))
    answer = thinking_splitter(model, inside=False)
    return [model.decode(ids[answer(ids).end :]).strip() for ids in out]
