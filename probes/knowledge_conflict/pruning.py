"""Step D: the best heads of each side switched off, against random heads of the same layers. k is chosen on the
validation split, what it does is measured on the test split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import polars as pl

from probes.knowledge_conflict.answer_rates import GROUP_RATES, baseline, by_group, gain, rates
from probes.knowledge_conflict.answers import answer_table, edited
from probes.knowledge_conflict.baselines import baseline_rows
from probes.knowledge_conflict.config import ESSAYS, ROLES, Config
from probes.knowledge_conflict.head_selection import Heads, Lists
from probes.knowledge_conflict.items import Item
from probes.knowledge_conflict.neutral_text import neutral_loss, neutral_texts
from probes.knowledge_conflict.random_controls import random_draws
from probes.knowledge_conflict.stages import test_rows, validation_rows
from workbench.core.context import Context
from workbench.engine.edits import Edit, HeadAblation
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.models.model import Model

Split = dict[str, list[Item]]
Measure = Callable[[str, Heads], pl.DataFrame]
Ablated = Callable[[Heads], tuple[Edit, ...]]


def prune(
    model: Model,
    config: Config,
    context: Context,
    split: Split,
    lists: Lists,
    ablated: Ablated,
    asked: dict[str, list[Item]],
) -> tuple[dict[str, pl.DataFrame], dict, dict[str, Heads], str]:
    """Prune the first k heads of each side, and random ones, beside the baselines (`asked`: test items of
    `baselines.instructed`): tables `pruning` (test), `validation`, `groups`,
    `answers`; the summary; the chosen heads of each side; and the variant whose lists gain most on validation."""
    measure, neutral = _measuring(model, config, context, split, ablated)
    counts = {name: len(split[name]) for name in ("validation", "test")}
    sizes_of = {
        "choosing k": validation_rows(config, len(lists)) * counts["validation"],
        "pruned answers": (test_rows(config) - 4 * len(config.baselines)) * counts["test"],
        "baselines": 4 * len(config.baselines) * counts["test"],
    }
    stage = context.stages(sizes_of)
    with stage("choosing k"):
        validation = _validation(config, context, measure, lists)
    variant, gains = _kept(config, lists, validation)
    best, ks = lists[variant], {}
    for role in ROLES:
        _say_sizes(config, context, role, len(best[role]))
        own = [row for row in validation if row["variant"] == variant and row["role"] == role]
        ks[role] = choose_k(config, context, role, own) if best[role] else None
    controls = _controls(model, config, context, best, ks)
    with stage("pruned answers"):
        before = measure("test", ())
        rows = _rows(config, context, measure, best, controls)
    summary = gains | baseline(before, context)
    summary |= {"neutral_text": neutral, "perplexity": float(before["perplexity"][0])}
    picks, groups, answers, tops = {}, [], [], {}
    for role, k in ks.items():
        picks[role] = best[role][: k or 0]
        top = measure("test", picks[role])
        randoms = [measure("test", others) for others in controls[role, k]] if k else []
        tops[role] = top if k else None
        summary |= gain(context, role, k, before, top, randoms)
        groups += by_group(role, k or 0, split["test"], before, top, randoms)
        answers.append(_before_and_after(before, top, role, k or 0))
    with stage("baselines"):
        others, said = baseline_rows(model, config, context, split["test"], asked, before, tops)
    rows, summary = [*rows, *others], summary | said
    for row in (*rows, *validation):
        row["chosen"] = row["heads"] == "top" and row["k"] > 0 and row["k"] == ks[row["role"]]
        row["chosen"] = row["chosen"] and row.get("variant", variant) == variant
    tables = {
        "pruning": pl.DataFrame(rows, infer_schema_length=None),
        "validation": pl.DataFrame(validation, infer_schema_length=None).drop("perplexity"),
        "groups": pl.DataFrame(groups, schema=GROUP_RATES),
        "answers": pl.concat(answers),
    }
    return tables, summary, picks, variant


# what is pruned


def _validation(config: Config, context: Context, measure: Measure, lists: Lists) -> list[dict]:
    """Rates on validation of every list at every k."""
    plan = [
        (variant, role, k)
        for variant, best in lists.items()
        for role in ROLES
        for k in (0, *sizes(config, len(best[role])))
    ]
    rows = []
    for number, (variant, role, k) in enumerate(plan):
        context.progress(number, len(plan), "lists of heads")
        heads = lists[variant][role][:k]
        rows.append({"variant": variant} | _row(config, measure, "validation", role, k, heads, "top", 0))
    return rows


def _kept(config: Config, lists: Lists, rows: Sequence[dict]) -> tuple[str, dict]:
    """The variant whose chosen k gain most of the wanted answers on validation, both sides added up (then most of their
    probability, then the first), and what each gains, for the summary."""

    def gained(variant: str, role: str) -> tuple[float, float]:
        own = [row for row in rows if row["variant"] == variant and row["role"] == role]
        best, base = best_row(config, role, own), next(row for row in own if row["k"] == 0)
        return tuple(best[name] - base[name] for name in (f"{ROLES[role]}_rate", f"p_{ROLES[role]}"))

    found = {(variant, role): gained(variant, role) for variant in lists for role in ROLES}
    kept = max(lists, key=lambda variant: tuple(map(sum, zip(*(found[variant, role] for role in ROLES)))))
    return kept, {f"validation_gain_{role}_{variant}": value for (variant, role), (value, _) in found.items()}


def _controls(
    model: Model, config: Config, context: Context, best: dict[str, Heads], ks: dict[str, int | None]
) -> dict[tuple[str, int], list[Heads]]:
    """For every side and k the random sets of heads to compare with: random_draws of the chosen k, whose gain they
    stand beside, curve_draws of the others."""
    controls = {}
    for role, k in [(side, k) for side in ROLES for k in sizes(config, len(best[side]))]:
        rng, draws = context.rng(f"random {role} {k}"), config.random_draws if k == ks[role] else config.curve_draws
        drawn = random_draws(best[role][:k], model.n_heads, rng, n_layers=model.n_layers, draws=draws)
        if len(drawn) < draws:
            context.warn(
                f"The layers of the {k} {role} heads hold only {len(drawn)} different sets of "
                f"other heads; so many random draws were made for k = {k}."
            )
        controls[role, k] = drawn
    return controls


def sizes(config: Config, available: int) -> list[int]:
    """The k of prune_k for a list of so many heads; those beyond it would all prune the same heads, and become one
    k."""
    return sorted({min(k, available) for k in config.prune_k}) if available else []


def _say_sizes(config: Config, context: Context, role: str, available: int) -> None:
    """Warn of a side without heads, and of k that become one."""
    if not available:
        context.warn(
            f"No head found on the find split pulls towards {role} so that pruning it helps; there is nothing to prune "
            f"on that side, and no mask of it is written."
        )
    elif max(config.prune_k) > available:
        beyond = ", ".join(str(k) for k in sorted(set(config.prune_k)) if k > available)
        context.warn(
            f"Only {available} {role} heads can be pruned: k = {beyond} would all prune these, and k = "
            f"{available} is reported in their place."
        )


def ablation(model: Model, config: Config, context: Context, items: Sequence[Item]) -> Ablated:
    """heads → the edit that switches them off, nothing for none; with ablation=mean, to their means over the conflict
    prompts of these items."""
    mean = None
    if config.ablation == "mean":
        mean = mean_head_outputs(model, [item.conflict for item in items], edits=context.edits)
    return lambda heads: (HeadAblation(tuple(heads), config.ablation, mean),) if heads else ()


# what it does


def _measuring(model: Model, config: Config, context: Context, split: Split, ablated: Ablated) -> tuple[Measure, str]:
    """measure(split, heads): the answers of a split without these heads, on the test split with the perplexity on
    neutral text; each is computed once. And what the neutral text is, in words."""
    answered = [item.clean + model.encode(" " + item.answers[0], bos=False) for item in split["test"]]
    neutral, which = neutral_texts(model, config.neutral, essays=ESSAYS, otherwise=answered)

    @cache
    def once(name: str, heads: Heads) -> pl.DataFrame:
        run = edited(context, ablated(heads))
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


def _row(config: Config, measure: Measure, name: str, role: str, k: int, heads: Heads, kind: str, draw: int) -> dict:
    """Rates of one pruning on one split."""
    found = measure(name, heads)
    return {
        "role": role,
        "k": k,
        "n_heads": len(heads),
        "heads": kind,
        "draw": draw,
        "ablation": config.ablation,
        **rates(found),
        "p_memory": found["p_memory"].mean(),
        "p_context": found["p_context"].mean(),
        "perplexity": found["perplexity"][0] if name == "test" else None,
        "which": " ".join(f"{layer}.{head}" for layer, head in heads),
    }


def _rows(
    config: Config,
    context: Context,
    measure: Measure,
    best: dict[str, Heads],
    controls: dict[tuple[str, int], list[Heads]],
) -> list[dict]:
    """Rates on test of every pruning: none, the first k heads, the random ones."""
    rows = [_row(config, measure, "test", role, 0, (), "top", 0) for role in ROLES]
    done, whole = 1, 1 + sum(1 + len(drawn) for drawn in controls.values())
    for (role, k), drawn in controls.items():
        for kind, draw, heads in [("top", 0, best[role][:k]), *(("random", n, other) for n, other in enumerate(drawn))]:
            context.progress(done, whole, "sets of heads")
            rows.append(_row(config, measure, "test", role, k, heads, kind, draw))
            done += 1
    return rows


def best_row(config: Config, role: str, rows: Sequence[dict]) -> dict:
    """The best k on validation: the highest rate, then the highest probability, of the wanted answer; the smallest k
    among equals, 0 included; it may cost at most max_clean_drop."""
    wanted = ROLES[role]
    base = next(row for row in rows if row["k"] == 0)
    kept = [row for row in rows if row["clean_accuracy"] >= base["clean_accuracy"] - config.max_clean_drop - 1e-9]
    return max(kept, key=lambda row: (row[f"{wanted}_rate"], row[f"p_{wanted}"], -row["k"]))


def choose_k(config: Config, context: Context, role: str, rows: Sequence[dict]) -> int:
    """k of the best row, with a warning where that is none at all."""
    k = best_row(config, role, rows)["k"]
    if k == 0:
        why = (
            f"none that costs at most {config.max_clean_drop:.0%} of clean accuracy brings more {ROLES[role]} answers "
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
