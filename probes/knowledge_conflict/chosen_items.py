"""The items of a run: the rows of the data file that can be measured on the model, and which of them belong to which
split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from probes.knowledge_conflict.asking import Asking
from probes.knowledge_conflict.config import Config
from probes.knowledge_conflict.fact_conflicts import fit, is_shipped
from probes.knowledge_conflict.items import (
    COLUMNS,
    COUNTS,
    GROUPS,
    LONG,
    OPTIONAL,
    SPLITS,
    Item,
    assign_splits,
    build_items,
    read_conflicts,
)
from workbench.core.cells import as_label
from workbench.core.column_names import column_map
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.text_side import TextSide
from workbench.stats.clusters import FEWEST


def named(data: Path | None) -> str:
    """The data, as a sentence begins with them: a path means nothing to who gave none."""
    return "The set of real facts that ships" if is_shipped(data) else str(data)


def rows_of(config: Config, data: Path | None, tell: Callable[[str], None] | None = None) -> list[dict]:
    return read_conflicts(data, column_map(config.columns, (*COLUMNS, *OPTIONAL)), tell=tell)


def of_kind(rows: list[dict], kind: str) -> list[int]:
    """The numbers of the rows of one kind of conflict, given as column:value; of all rows for ""."""
    column, _, value = kind.partition(":")
    return [n for n, row in enumerate(rows) if not kind or (column in GROUPS and row.get(column) == as_label(value))]


def chosen_items(model: TextSide, config: Config, context: Context, how: Asking) -> tuple[list[Item], dict[str, int]]:
    """Items that can be measured on this model, and how many fell under each of COUNTS."""
    rows = rows_of(config, context.data, context.read_as)
    chosen = of_kind(rows, config.kind)
    if 0 < config.limit < len(chosen):
        drawn = context.rng("limit").permutation(len(chosen))[: config.limit]
        chosen = sorted(chosen[i] for i in drawn.tolist())
    if len(chosen) < len(rows):
        context.rows_used = len(chosen)
    if is_shipped(context.data):
        rows, placed, replaced = fit(model, rows, chosen, context.data, check=context.check, how=how)
        context.counters["distractors_replaced"] = replaced
        if len(placed) < len(chosen):
            skipped = f"{len(chosen) - len(placed)} of {len(chosen)} items were skipped"
            context.warn(f"{skipped}: the tokenizer cannot place their answer or distractor after the prompt.")
            chosen = placed
    items, counts = build_items(
        model,
        rows,
        context.data,
        chosen=chosen,
        room=config.max_new_tokens,
        long=config.long,
        rng=context.rng,
        check=context.check,
        how=how,
    )
    if counts[LONG]:
        context.counters["rows_skipped_too_long"] = counts[LONG]
    for reason, what in COUNTS.items():
        if counts[reason]:
            context.warn(f"{counts[reason]} of {len(chosen)} items {what}.")
    return items, counts


def split_items(items: list[Item], config: Config, context: Context) -> dict[str, list[Item]]:
    """The items of every split. Raises InputError for one without any, warns of one with few."""
    items = assign_splits(
        items,
        find=config.find_share,
        validation=config.validation_share,
        test_relations=[as_label(relation) for relation in config.test_relations],
        rng=context.rng("split"),
    )
    split = {name: [item for item in items if item.split == name] for name in SPLITS}
    weak = {
        "find": "no head gets a role or an interval",
        "validation": "k hangs on single answers",
        "test": "gains get no interval",
    }
    more = "a file of items that the model knows (--data)" if is_shipped(context.data) else "more items"
    for name, some in split.items():
        if not some:
            instead = f"{more} or other shares" if config.keep == "all" else f"{more}, other shares or keep=all"
            raise InputError(
                f"{named(context.data)}: no item is left for the split '{name}' (of {len(items)} that can be used); "
                f"give {instead}."
            )
        subjects = len({item.subject for item in some})
        if subjects < FEWEST:
            by = ", with a file of items that the model knows (--data)" if is_shipped(context.data) else ""
            context.warn(
                f"The split '{name}' has only {subjects} subject{'s' if subjects > 1 else ''}: {weak[name]}; give it "
                f"at least {FEWEST}{by}."
            )
    return split
