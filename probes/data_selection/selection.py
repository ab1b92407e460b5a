"""Which rows of the pool are selected for each target, and the tables and files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from probes.data_selection.config import Config
from probes.data_selection.rankings import ranked, selected_share, undecided
from probes.data_selection.samples import TokenizedSamples
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.files import write_bytes


@dataclass(frozen=True, eq=False)
class Eligible:
    """The rows among which is selected, and how many are."""

    names: list[str]  # of the targets
    size: int  # rows to select for each
    rows: list[np.ndarray]  # of each target, those that may be selected
    duplicate: np.ndarray  # bool [N, targets]: whether a row is also among the examples of a target


def eligible(
    pool: TokenizedSamples, examples: Mapping[str, TokenizedSamples], config: Config, context: Context
) -> Eligible:
    """Rows in which something counts, and that are no example of the target if `exclude_duplicates`. Raises InputError
    where they are fewer than there are to select."""
    taken = [set(samples.keys) for samples in examples.values()]
    duplicate = np.array([[key in keys for keys in taken] for key in pool.keys])
    if duplicate.any():
        fate = "left in; exclude_duplicates=true takes them out"
        if config.exclude_duplicates:
            fate = "excluded from the target's selection"
        many = int(duplicate.any(1).sum())
        context.warn(f"{many} pool row{'s are' if many > 1 else ' is'} also among the examples of a target ({fate}).")
    rows = [np.flatnonzero((pool.counted > 0) & ~(own & config.exclude_duplicates)) for own in duplicate.T]
    size = config.k or max(1, round(config.ratio * len(pool)))
    for t, name in enumerate(examples):
        if size > len(rows[t]):
            without = f"the {int(duplicate[:, t].sum())} duplicates of the target {name} and "
            raise InputError(
                f"Without {without if config.exclude_duplicates else ''}rows that do not count, {len(rows[t])} pool "
                f"rows are left, fewer than the {size} to select."
            )
    return Eligible(list(examples), size, rows, duplicate)


def orders_of(
    scores: Mapping[str, np.ndarray], chance: list[np.ndarray], among: Eligible, context: Context
) -> dict[str, list[list[np.ndarray]]]:
    """orders[method][draw][target]: the eligible rows, best first; one draw of every method but `random`, which has
    those of `chance`. Warns where equal scores leave it to the order of the file what is selected."""
    orders = {
        method: [
            [ranked(draw[:, t], rows) for t, rows in enumerate(among.rows)]
            for draw in (chance if method == "random" else [found])
        ]
        for method, found in scores.items()
    }
    for method, found in scores.items():
        for t, name in enumerate(among.names if method != "random" else ()):
            tied = undecided(found[:, t], orders[method][0][t], among.size)
            if tied > max(2, among.size / 2):
                context.warn(
                    f"{tied} pool rows have the same {method} score for the target {name}, and only some of "
                    f"them are selected: the order of the file decides which."
                )
    return orders


def score_table(
    pool: TokenizedSamples,
    scores: np.ndarray,
    resampled: Mapping[str, np.ndarray],
    order: list[np.ndarray],
    among: Eligible,
    labels: tuple[np.ndarray, list[str]] | None,
) -> pl.DataFrame:
    """`scores` [N, targets] of every row and target, with their intervals (`resampled`: low, high, draws), their ranks
    and whether they are selected."""
    found, nothing = [], np.full(len(scores), np.nan)
    for t, name in enumerate(among.names):
        rank = np.zeros(len(scores), np.int64)
        rank[order[t]] = np.arange(1, len(order[t]) + 1)
        share = nothing
        if "draws" in resampled:
            share = selected_share(resampled["draws"][:, t], among.rows[t], among.size)
        table = pl.DataFrame(
            {
                "row": np.arange(len(scores)),
                "target": name,
                "score": scores[:, t],
                "rank": rank,
                "length": pool.counted,
                "duplicate": among.duplicate[:, t],
                "score_low": resampled["low"][:, t] if "low" in resampled else nothing,
                "score_high": resampled["high"][:, t] if "high" in resampled else nothing,
                "selected_share": share,
            }
        ).with_columns(pl.col("score", "score_low", "score_high", "selected_share").fill_nan(None))
        if labels is not None:
            table = table.with_columns(label=pl.Series(labels[0]), relevant=pl.Series(labels[0] == labels[1][t]))
        is_ranked = pl.col("rank") > 0
        selected = is_ranked & (pl.col("rank") <= among.size)
        found.append(table.with_columns(rank=pl.when(is_ranked).then("rank"), selected=selected))
    return pl.concat(found)


def selected_table(
    pool: pl.DataFrame, scores: np.ndarray, order: list[np.ndarray], names: list[str], size: int
) -> pl.DataFrame:
    """The rows of the file that were selected, with their scores. Columns of a pool that is itself a selection are
    renamed."""
    chosen = []
    for t, name in enumerate(names):
        best = order[t][:size]
        columns = {"target": name, "rank": np.arange(1, len(best) + 1), "row": best, "score": scores[best, t]}
        new_names = dict.fromkeys(pool.columns)
        for column in pool.columns:
            free = column
            while free in columns or free in new_names.values() or (free != column and free in pool.columns):
                free = f"pool_{free}"
            new_names[column] = free
        chosen.append(pl.concat([pl.DataFrame(columns), pool[best].rename(new_names)], how="horizontal"))
    return pl.concat(chosen)


def file_names(names: list[str]) -> dict[str, str]:
    """What the files of each target are called: its name in letters, digits, hyphens and underscores."""
    found: dict[str, str] = {}
    for name in names:
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
        while safe.lower() in map(str.lower, found.values()):  # "a b" and "a-b"
            safe += "-2"
        found[name] = safe
    return found


def export(out: Path, selected: pl.DataFrame, names: Mapping[str, str]) -> None:
    """Write the selected rows of each target (``names``: target -> name of its files) as JSONL beside the tables (which
    hold them as Parquet)."""
    for target, name in names.items():
        rows = selected.filter(pl.col("target") == target).iter_rows(named=True)
        lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        write_bytes(out / f"selected-{name}.jsonl", lines.encode())
