"""Step D: the best heads of each side switched off, against random heads of the same layers. k is chosen on the
validation split, what it does is measured on the test split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import polars as pl
import torch

from probes.knowledge_conflict.answer_rates import GROUP_RATES, baseline, by_group, gain, rates
from probes.knowledge_conflict.answers import answer_table, edited
from probes.knowledge_conflict.config import ESSAYS, ROLES, Config
from probes.knowledge_conflict.head_importance import ranked
from probes.knowledge_conflict.items import Item
from probes.knowledge_conflict.neutral_text import neutral_loss, neutral_texts
from probes.knowledge_conflict.random_controls import Head, random_draws
from workbench.core.context import Context
from workbench.engine.edits import Edit, HeadAblation
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.models.model import Model

Heads = tuple[Head, ...]
Split = dict[str, list[Item]]
Measure = Callable[[str, Heads], pl.DataFrame]


def prune(
    model: Model, config: Config, context: Context, split: Split, heads: pl.DataFrame
) -> tuple[dict[str, pl.DataFrame], dict, dict[str, Heads]]:
    """Prune the best k heads of each side and random ones: tables `pruning` (test), `validation`, `groups`, `answers`;
    the summary; the chosen heads of each side."""
    measure, neutral = _measuring(model, config, context, split)
    best, controls = _plan(model, config, context, heads)
    before = measure("test", ())
    summary = baseline(before, context) | {"neutral_text": neutral, "perplexity": float(before["perplexity"][0])}
    rows = _rows(config, context, measure, best, controls)
    picks, groups, answers = {}, [], []
    for role in ROLES:
        k = None
        if best[role]:
            validation = [row for row in rows if row["split"] == "validation" and row["role"] == role]
            k = choose_k(config, context, role, validation)
        else:
            context.warn(
                f"No head pulls towards {role} on the find split; there is nothing to prune on that side, and "
                f"no mask of it is written."
            )
        picks[role] = best[role][: k or 0]
        top = measure("test", picks[role])
        randoms = [measure("test", others) for others in controls[role, k]] if k else []
        summary |= gain(context, config, role, k, before, top, randoms)
        groups += by_group(role, k or 0, split["test"], before, top, randoms)
        answers.append(_before_and_after(before, top, role, k or 0))
    for row in rows:
        row["chosen"] = row["heads"] == "top" and row["k"] > 0 and row["k"] == summary[f"{row['role']}_pruned_k"]
    pruned = pl.DataFrame(rows, infer_schema_length=None)
    tables = {
        "pruning": pruned.filter(pl.col("split") == "test").drop("split"),
        "validation": pruned.filter(pl.col("split") == "validation").drop("split", "perplexity"),
        "groups": pl.DataFrame(groups, schema=GROUP_RATES),
        "answers": pl.concat(answers),
    }
    return tables, summary, picks


# what is pruned


def _plan(
    model: Model, config: Config, context: Context, heads: pl.DataFrame
) -> tuple[dict[str, Heads], dict[tuple[str, int], list[Heads]]]:
    """The heads of each side that can be pruned, the strongest first, and for every side and k the random sets of heads
    to compare with."""
    half = heads.height // 2  # beyond it there are too few other heads for a random control
    best = {role: ranked(heads, role)[:half] for role in ROLES}
    plan = [(role, k) for role in ROLES for k in _sizes(config, context, role, len(best[role]))]
    controls = {}
    for role, k in plan:
        rng = context.rng(f"random {role} {k}")
        drawn = random_draws(best[role][:k], model.n_heads, rng, n_layers=model.n_layers, draws=config.random_draws)
        if len(drawn) < config.random_draws:
            context.warn(
                f"The layers of the {k} {role} heads hold only {len(drawn)} different sets of "
                f"other heads; so many random draws were made for k = {k}."
            )
        controls[role, k] = drawn
    return best, controls


def _sizes(config: Config, context: Context, role: str, available: int) -> list[int]:
    """The k of prune_k for this side; those beyond the heads that there are would all prune the same heads, and become
    one k."""
    asked = sorted(set(config.prune_k))
    sizes = sorted({min(k, available) for k in asked}) if available else []
    if available and asked[-1] > available:
        beyond = ", ".join(str(k) for k in asked if k > available)
        context.warn(
            f"Only {available} {role} heads can be pruned: k = {beyond} would all prune these, and k = "
            f"{available} is reported in their place."
        )
    return sizes


def ablation(heads: Sequence[Head], how: str, mean: torch.Tensor | None = None) -> tuple[Edit, ...]:
    """The edit that switches `heads` off; nothing for no heads."""
    return (HeadAblation(tuple(heads), how, mean),) if heads else ()


# what it does


def _measuring(model: Model, config: Config, context: Context, split: Split) -> tuple[Measure, str]:
    """measure(split, heads): the answers of a split without these heads, on the test split with the perplexity on
    neutral text; each is computed once. And what the neutral text is, in words."""
    mean = None
    if config.ablation == "mean":
        mean = mean_head_outputs(model, [item.conflict for item in split["validation"]], edits=context.edits)
    answered = [item.clean + model.encode(" " + item.answers[0], bos=False) for item in split["test"]]
    neutral, which = neutral_texts(model, config.neutral, essays=ESSAYS, otherwise=answered)

    @cache
    def once(name: str, heads: Heads) -> pl.DataFrame:
        run = edited(context, ablation(heads, config.ablation, mean))
        label = hashlib.sha256(repr((name, heads)).encode()).hexdigest()[:16]
        part = context.part(
            f"prune {label}", lambda: {"answers": answer_table(model, config, context, split[name], run)}
        )
        if name != "test":
            return part["answers"]
        nll = context.part(f"neutral {label}", lambda: neutral_loss(model, neutral, run))
        perplexity = float(np.exp(nll["nll"].sum() / max(1, nll["count"].sum())))
        return part["answers"].with_columns(perplexity=pl.lit(perplexity))

    return lambda name, heads: once(name, tuple(sorted(heads))), which


def _rows(
    config: Config,
    context: Context,
    measure: Measure,
    best: dict[str, Heads],
    controls: dict[tuple[str, int], list[Heads]],
) -> list[dict]:
    """Rates of every pruning: none and the best k heads on validation and test, the random ones on test."""

    def row(role: str, name: str, k: int, heads: Heads, kind: str, draw: int) -> dict:
        found = measure(name, heads)
        return {
            "role": role,
            "split": name,
            "k": k,
            "n_heads": len(heads),
            "heads": kind,
            "draw": draw,
            "ablation": config.ablation,
            **rates(found),
            "p_memory": found["p_memory"].mean(),
            "p_context": found["p_context"].mean(),
            "perplexity": found["perplexity"][0] if name == "test" else None,
            "which": " ".join(f"{l}.{h}" for l, h in heads),
        }

    rows = [row(role, name, 0, (), "top", 0) for role in ROLES for name in ("validation", "test")]
    for number, ((role, k), drawn) in enumerate(controls.items()):
        context.progress(number, len(controls), f"pruning {role} heads")
        rows += [row(role, name, k, best[role][:k], "top", 0) for name in ("validation", "test")]
        rows += [row(role, "test", k, others, "random", draw) for draw, others in enumerate(drawn)]
    context.progress(len(controls), max(1, len(controls)), "pruning")
    return rows


def choose_k(config: Config, context: Context, role: str, rows: Sequence[dict]) -> int:
    """k by validation: the highest rate, then the highest probability, of the wanted answer; the smallest k among
    equals, 0 included."""
    wanted = ROLES[role]
    base = next(row for row in rows if row["k"] == 0)
    kept = [row for row in rows if row["clean_accuracy"] >= base["clean_accuracy"] - config.max_clean_drop - 1e-9]
    k = max(kept, key=lambda row: (row[f"{wanted}_rate"], row[f"p_{wanted}"], -row["k"]))["k"]
    if k == 0:
        why = (
            f"none that costs at most {config.max_clean_drop:.0%} of clean accuracy brings more {wanted} answers "
            f"than none at all"
        )
        context.warn(f"No {role} heads are pruned (k = 0): on validation, {why}; no mask of that side is written.")
    return k


def _before_and_after(before: pl.DataFrame, top: pl.DataFrame, role: str, k: int) -> pl.DataFrame:
    """Every test item's answer as the model is, and with the chosen heads pruned."""
    return (
        before.rename({"text": "before", "kind": "before_kind"})
        .drop("p_memory", "p_context", "clean_right", "perplexity")
        .with_columns(top.select(after="text", after_kind="kind"), role=pl.lit(role), k=pl.lit(k, pl.Int64))
    )
