"""What else could bring the answer that pruning is meant to bring: a sentence that asks for it, and context-aware
decoding. Both are measured on the test items, as pruning is, and paired with the plain model.

*prompt*: the sentence stands before the prompt, also before the clean one, so that its cost is measured. Its control
are the same words in a random order, which ask for nothing: any text in front can move answers.

*decoding* (Shi et al., arXiv 2305.14739): the scores with the context and those of the clean prompt, which has none, as
(1 + α) · with − α · without for the context, and with the sign of α turned for memory: at α = 1 that is answering the
clean prompt, with the book closed. A clean prompt has no context, so decoding changes nothing there, by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from probes.knowledge_conflict.answer_rates import change, hits, rates
from probes.knowledge_conflict.answers import answer_table, edited, in_words, told
from probes.knowledge_conflict.asking import Asking
from probes.knowledge_conflict.config import ROLES, Config
from probes.knowledge_conflict.items import Item
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.capture import logits
from workbench.engine.context_aware import context_aware, weighed
from workbench.models.batching import batches
from workbench.models.model import Model

CLEAN = ("clean_accuracy", "clean_low", "clean_high")
UNCHANGED = "0 by construction: a clean prompt has no context to weigh, so its answers are those of the plain model"


def instructed(config: Config, context: Context, how: Asking, items: Sequence[Item]) -> dict[str, list[Item]]:
    """For each role, the items with a sentence before both prompts that asks for the answer that pruning the role is
    meant to bring, and under "role, shuffled" those with its words in a random order; nothing where baselines has no
    prompt. Raises InputError for a prompt that becomes too long, and warns of a sentence that the tokenizer does not
    know."""
    if "prompt" not in config.baselines:
        return {}
    model, out = how.model, {}
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    for role, wanted in ROLES.items():
        sentence = getattr(config, f"ask_{wanted}").strip()
        ids = model.encode(sentence)
        if unknown is not None and ids.count(unknown) > 0.1 * len(ids):
            context.warn(
                f"The tokenizer of {model.name} does not know the words of '{sentence}', so the baseline of a prompt "
                f"that asks for {wanted} says nothing; set ask_{wanted} to words that it knows."
            )
        for name, text in ((role, sentence), (f"{role}, shuffled", _shuffled(sentence, context, role))):
            out[name] = [_with(item, text, how, config, f"ask_{wanted}") for item in items]
    return out


def _shuffled(sentence: str, context: Context, role: str) -> str:
    """The words of a sentence in a random order."""
    words = sentence.split()
    return " ".join(words[i] for i in context.rng(f"shuffled sentence {role}").permutation(len(words)))


def _with(item: Item, sentence: str, how: Asking, config: Config, key: str) -> Item:
    """The item with a sentence before both prompts."""
    clean, conflict = (how.write(f"{sentence} {text}").ids for text in item.texts)
    if how.model.too_long(max(len(clean), len(conflict)) + config.max_new_tokens):
        raise InputError(
            f"Item {item.row + 1} has no room for the sentence {key} in the context of {how.model.context_length} "
            f"tokens; shorten it, or leave prompt out of baselines."
        )
    return replace(item, clean=clean, conflict=conflict)


def baseline_rows(
    model: Model,
    config: Config,
    context: Context,
    items: Sequence[Item],
    asked: dict[str, list[Item]],
    before: pl.DataFrame,
    pruned: dict[str, pl.DataFrame | None],
) -> tuple[list[dict], dict]:
    """Rows of the table `pruning`, one for every baseline and role, and the summary: what each gains over the plain
    model (`before`) and costs, and what pruning (`pruned`: by role, None where no head is) gains over it.

    All are of the test `items`; `asked`: those of `instructed`."""
    rows, summary = [], {}
    for name in config.baselines:
        for role, wanted in ROLES.items():
            done = 2 * config.baselines.index(name) + list(ROLES).index(role)
            context.progress(done, 2 * len(config.baselines), f"baseline {name} for {wanted}")
            if name == "prompt":
                found, which = _prompted(model, config, context, asked[role], role), getattr(config, f"ask_{wanted}")
            else:
                found, which = _decoded(model, config, context, items, role, before), _words(config, role)
            row = _row(found, role, name, which)
            gained = _gained(before, found, wanted)
            summary[f"{name}_for_{wanted}_gain"] = gained
            if name == "prompt":
                summary[f"{name}_for_{wanted}_clean_change"] = _gained(before, found, "clean")
                control = _prompted(model, config, context, asked[f"{role}, shuffled"], f"{role}, shuffled")
                summary[f"{name}_for_{wanted}_gain_over_shuffled"] = _gained(control, found, wanted)
                rows.append(_row(control, role, f"{name}, shuffled", _shuffled(which.strip(), context, role)))
            else:  # not measured: nothing to print
                row |= dict.fromkeys(CLEAN)
                summary["decoding_clean_change"] = UNCHANGED
            top = pruned[role]
            summary[f"{role}_pruned_gain_over_{name}"] = None if top is None else _gained(found, top, wanted)
            rows.append(row)
    return rows, summary


def _gained(before: pl.DataFrame, after: pl.DataFrame, side: str) -> dict:
    """How much more often the answers of the same items follow a side, paired, over subjects."""
    return change(hits(after)[side] - hits(before)[side], before["subject"].to_numpy())


def _row(found: pl.DataFrame, role: str, name: str, which: str) -> dict:
    place = {"role": role, "k": 0, "n_heads": 0, "heads": name, "draw": 0, "ablation": None}
    p = {f"p_{side}": found[f"p_{side}"].mean() for side in ROLES}
    return place | rates(found) | p | {"perplexity": None, "which": which}


def _prompted(model: Model, config: Config, context: Context, items: Sequence[Item], role: str) -> pl.DataFrame:
    """Answers to the items with the sentence before them."""
    return context.part(
        f"baseline prompt {role}",
        lambda: {"answers": answer_table(model, config, context, items, edited(context))},
    )["answers"]


def _decoded(
    model: Model, config: Config, context: Context, items: Sequence[Item], role: str, before: pl.DataFrame
) -> pl.DataFrame:
    """Answers by context-aware decoding; the clean ones are the plain model's."""
    weight, run = _weight(config, role), edited(context)

    def compute() -> dict[str, pl.DataFrame]:
        both = [item.conflict for item in items], [item.clean for item in items]
        ids = context_aware(model, *both, weight=weight, max_new_tokens=config.max_new_tokens, run=run)
        p, texts = np.empty((len(items), 2)), in_words(model, context, both[0], ids)
        for rows in batches([len(item.conflict) for item in items]):
            first, second = (logits(model, [side[i] for i in rows], run=run.for_prompts(rows)) for side in both)
            for i, row in zip(rows, weighed(first, second, weight).softmax(-1)):
                p[i] = row[items[i].memory_id], row[items[i].context_id]
        context.count(prompts=3 * len(items), tokens=2 * sum(len(ids) for side in both for ids in side), forwards=2)
        return {"answers": told(items, texts, p, before["clean_right"].to_list())}

    return context.part(f"baseline decoding {role}", compute)["answers"]


def _weight(config: Config, role: str) -> float:
    """α, positive where the context is to be followed."""
    return config.decoding_weight if ROLES[role] == "context" else -config.decoding_weight


def _words(config: Config, role: str) -> str:
    """The decoding in words."""
    weight = _weight(config, role)
    return f"α = {weight:g}" + (" (closed book: the scores without the context)" if weight == -1 else "")
