"""Examples of a target that do not build its prototype, on which a fine-tuned model is measured; and the rows of the
pool that would give them away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.data_selection.precisions import MOST_COMPARED
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.sample_tables import texts
from workbench.stats.near_duplicates import near_duplicates


@dataclass(frozen=True, eq=False)
class HeldExamples:
    """Of every target the examples that are kept back, and which of them say almost the same (int [n] each)."""

    tables: dict[str, pl.DataFrame]
    groups: dict[str, np.ndarray]


def split_examples(
    tables: Mapping[str, pl.DataFrame], share: float, context: Context
) -> tuple[dict[str, pl.DataFrame], HeldExamples]:
    """The examples of every target in two: those that build the prototype, and a random `share` of them (at least one)
    that does not. Examples that say almost the same, or have the same `group` where there is such a column, stay
    together. Raises InputError for a target whose examples are all one group."""
    building, held, groups = {}, {}, {}
    for name, table in tables.items():
        group = groups_of(table)
        kinds = np.unique(group)
        if len(kinds) < 2:
            raise InputError(
                f"The target '{name}' has no two examples that say different things, so none can be held out for "
                f"finetune=true; give more examples."
            )
        wanted, away = max(1, round(share * table.height)), np.zeros(table.height, bool)
        for kind in context.rng(f"held out {name}").permutation(kinds)[: len(kinds) - 1]:
            if away.sum() >= wanted:
                break
            away |= group == kind
        building[name], held[name], groups[name] = table.filter(~away), table.filter(away), group[away]
    return building, HeldExamples(held, groups)


def groups_of(table: pl.DataFrame) -> np.ndarray:
    """The cluster of every row, [n]: its `group` where there is such a column, else those that say almost the same."""
    if "group" in table.columns and not table["group"].dtype.is_nested():
        own = table["group"].cast(pl.String).fill_null("").to_list()
        return np.unique([name or f"\0{row}" for row, name in enumerate(own)], return_inverse=True)[1]
    return near_duplicates(texts(table))


def leaks(pool: Sequence[str], held: Sequence[str], context: Context) -> np.ndarray:
    """Whether each text of the pool says almost the same as one that is held out, bool [N]; of a pool of more than
    MOST_COMPARED texts, whether it says the same."""
    if len(pool) > MOST_COMPARED:
        context.warn(
            f"The pool has {len(pool):,} rows, too many to look for those that say almost the same as a held-out "
            f"example: only exact copies are kept out of the fine-tuning."
        )
        there = {" ".join(text.split()) for text in held}
        return np.array([" ".join(text.split()) in there for text in pool])
    group = near_duplicates([*pool, *held])
    return np.isin(group[: len(pool)], group[len(pool) :])
