"""The dual run of the follow-up (JuICE, arXiv 2503.10996) beside pruning: two lists of heads, what they say in a first
run added, scaled, to what they say in a second.

A head is in the list that is enlarged if adding what it says (once and three times) makes the wanted answer likelier
within every kind of conflict that the file has, and for memory on the clean prompts, too; in the list that is
suppressed if taking it off (once and twice) does. Heads that are `mixed` are in neither. The lists are made on the find
split, how much is added to either is chosen on validation, what it does is measured on test, against random heads of
the same layers with the same scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from probes.knowledge_conflict.answer_rates import gains_of, rates
from probes.knowledge_conflict.answers import answer_table, edited, log_probabilities
from probes.knowledge_conflict.config import ROLES, Config
from probes.knowledge_conflict.items import Item, kinds
from probes.knowledge_conflict.random_controls import Head, random_draws
from workbench.core.context import Context
from workbench.core.files import atomic
from workbench.engine.dual_run import DualRun
from workbench.engine.head_masks import DUAL, save_heads
from workbench.models.model import Model
from workbench.stats.clusters import FEWEST

TRIED = (1.0, 3.0, -1.0, -2.0)  # what is added of a head to see which list it belongs to
UP, DOWN = (0.0, 1.0, 3.0, 5.0), (0.0, -1.0, -2.0)  # scales of the two lists, tried together on validation
Scaled = tuple[tuple[Head, float], ...]
Lists = tuple[tuple[Head, ...], tuple[Head, ...]]  # enlarged, suppressed


def dual_runs(
    model: Model,
    config: Config,
    context: Context,
    split: dict[str, list[Item]],
    some: Sequence[Item],
    mixed: np.ndarray,
) -> tuple[list[dict], dict]:
    """Rows of the table `pruning`, one for each side and random draw, and the summary; files `dual_run_….json` for what
    is shown to help. `some`: items of the find split; `mixed` [layers, H]: heads that are in no list."""
    if not config.dual_heads:
        return [], {}
    effects = _effects(model, context, some)
    before = _answers(model, config, context, split["test"], ())
    rows, summary = [], {}
    for role, wanted in ROLES.items():
        if context.out is not None:
            _file(context.out, wanted).unlink(missing_ok=True)  # of an earlier run in this folder
        lists = head_lists(config, some, effects, mixed, wanted)
        heads = _chosen(model, config, context, split["validation"], lists, role)
        name = f"dual_run_for_{wanted}"
        summary[f"{name}_heads"] = _words(heads) or "none"
        if not heads:
            context.warn(
                f"No dual run is kept for {wanted}: on validation, none that costs at most {config.max_clean_drop:.0%} "
                f"of clean accuracy brings more {wanted} answers than none at all."
            )
            summary |= dict.fromkeys(f"{name}_{what}" for what in ("gain", "gain_over_random", "clean_change"))
            continue
        after = _answers(model, config, context, split["test"], heads)
        drawn = _random(model, config, context, heads, role)
        randoms = [_answers(model, config, context, split["test"], one) for one in drawn]
        gained, over, clean, by_chance = gains_of(wanted, before, after, randoms)
        summary |= {f"{name}_gain": gained, f"{name}_gain_over_random": over, f"{name}_clean_change": clean}
        summary[f"{name}_compared_with"] = "random heads" if by_chance else "no dual run"
        rows.append(_row(role, heads, after, DUAL, 0))
        rows += [_row(role, one, found, f"{DUAL}, random", n) for n, (one, found) in enumerate(zip(drawn, randoms))]
        if all(found["low"] is not None and found["low"] > 0 for found in (gained, over)):
            _save(model, context, heads, wanted, gained, over, clean)
        else:
            context.warn(
                f"The dual run for {wanted} is not shown on the test items to bring more {wanted} answers than none or "
                f"than random heads do ({gained['value']:+.2f}, {over['value']:+.2f}), so no file of it is written."
            )
    return rows, summary


# which heads


def _effects(model: Model, context: Context, items: Sequence[Item]) -> dict[str, np.ndarray]:
    """What adding TRIED times of each head does to log p of both answers after the conflict prompts, and to that of the
    true one after the clean ones: "conflict" [layers, H, len(TRIED), n, 2] and "clean" [layers, H, len(TRIED), n]."""

    def measured(edits: tuple) -> tuple[np.ndarray, np.ndarray]:
        run = edited(context, edits)
        clean = [_as_clean(item) for item in items]
        return log_probabilities(model, context, items, run), log_probabilities(model, context, clean, run)[:, 0]

    def compute() -> dict[str, np.ndarray]:
        plain, found, heads = measured(()), [], model.heads()
        for number, head in enumerate(heads):
            context.progress(number, len(heads), "single heads")
            found.append([measured((DualRun((head,), scale),)) for scale in TRIED])
        shape = (model.n_layers, model.n_heads, len(TRIED))
        return {
            name: np.stack([one[k] - plain[k] for each in found for one in each]).reshape(*shape, *plain[k].shape)
            for k, name in enumerate(("conflict", "clean"))
        }

    return context.part("dual run effects", compute)


def _as_clean(item: Item) -> Item:
    """The item with its clean prompt in the conflict prompt's place."""
    from dataclasses import replace

    return replace(item, conflict=item.clean)


def head_lists(
    config: Config, items: Sequence[Item], effects: dict[str, np.ndarray], mixed: np.ndarray, wanted: str
) -> Lists:
    """The heads to enlarge and those to suppress for an answer, the most helpful first; at most `dual_heads` each."""
    groups = [chosen for *_, chosen in kinds(items) if len({items[i].subject for i in chosen}) >= FEWEST]
    out = []
    for part in (slice(0, 2), slice(2, 4)):
        gain = effects["conflict"][..., part, :, tuple(ROLES).index(wanted)].mean(2)  # [layers, H, n]
        total, helps = gain.mean(-1), (gain.mean(-1) > 0) & ~mixed
        for chosen in groups:
            helps &= gain[..., chosen].mean(-1) > 0
        if wanted == "memory":
            clean = effects["clean"][..., part, :].mean((2, 3))
            total, helps = total + clean, helps & (clean > 0)
        order = np.argsort(-total, axis=None, kind="stable")
        heads = [divmod(int(i), total.shape[1]) for i in order]
        out.append([head for head in heads if helps[head] and head not in (out[0] if out else ())])
    return tuple(tuple(heads[: config.dual_heads]) for heads in out)  # pyright: ignore[reportReturnType]


def _chosen(model: Model, config: Config, context: Context, items: Sequence[Item], lists: Lists, role: str) -> Scaled:
    """The lists with the scales that bring most of the wanted answers on validation (then most of their probability,
    then the smallest); nothing where none does, or all cost more than `max_clean_drop`."""
    wanted, kept = ROLES[role], []
    base = _answers(model, config, context, items, ())
    for up, down in product(UP if lists[0] else (0.0,), DOWN if lists[1] else (0.0,)):
        context.progress(len(kept), len(UP) * len(DOWN), f"scales of a dual run for {wanted}")
        heads = tuple((head, scale) for some, scale in zip(lists, (up, down)) if scale for head in some)
        found = _answers(model, config, context, items, heads)
        if found["clean_right"].mean() >= base["clean_right"].mean() - config.max_clean_drop - 1e-9:
            value = ((found["kind"] == wanted).mean(), found[f"p_{wanted}"].mean(), -abs(up) - abs(down))
            kept.append((value, heads))
    return max(kept, key=lambda pair: pair[0])[1]


# what it does


def _answers(model: Model, config: Config, context: Context, items: Sequence[Item], heads: Scaled) -> pl.DataFrame:
    """The answers of the items under a dual run of these heads, of the plain model for none."""
    edits = (DualRun(*(tuple(part) for part in zip(*heads))),) if heads else ()
    compute = partial(answer_table, model, config, context, items, edited(context, edits))
    return context.part(f"dual run {items[0].split} {_words(heads)}", lambda: {"answers": compute()})["answers"]


def _random(model: Model, config: Config, context: Context, heads: Scaled, role: str) -> list[Scaled]:
    """Random other heads of the same layers, with the scales of those that they stand for."""
    ordered = sorted(heads)
    drawn = random_draws(
        tuple(head for head, _ in ordered),
        model.n_heads,
        context.rng(f"random dual run {role}"),
        n_layers=model.n_layers,
        draws=config.random_draws,
    )
    return [tuple((head, scale) for head, (_, scale) in zip(one, ordered)) for one in drawn]


def _row(role: str, heads: Scaled, found: pl.DataFrame, kind: str, draw: int) -> dict:
    place = {"role": role, "k": len(heads), "n_heads": len(heads), "heads": kind, "draw": draw, "ablation": None}
    p = {f"p_{side}": found[f"p_{side}"].mean() for side in ROLES}
    return place | rates(found) | p | {"perplexity": None, "which": _words(heads), "chosen": False}


def _words(heads: Scaled) -> str:
    """Heads with what is added of each: 1.0+3 2.1-1."""
    return " ".join(f"{layer}.{head}{scale:+g}" for (layer, head), scale in heads)


def _save(model: Model, context: Context, heads: Scaled, wanted: str, gained: dict, over: dict, clean: dict) -> None:
    """Write the dual run into the run folder, for `--edit`."""
    if context.out is None:
        return
    effect = f"{gained['value']:+.3f} ({over['value']:+.3f} over chance), clean accuracy {clean['value']:+.3f} "
    effect += f"({clean['low']:+.3f} to {clean['high']:+.3f})"
    note = f"dual run found by knowledge-conflict; with it the model should follow {wanted}: rate on test {effect}"
    chosen, scales = (tuple(part) for part in zip(*heads))
    with atomic(_file(context.out, wanted)) as temporary:
        save_heads(temporary, chosen, how=DUAL, scales=scales, note=note, model=model)


def _file(folder: Path, wanted: str) -> Path:
    return folder / f"dual_run_{wanted}.json"
