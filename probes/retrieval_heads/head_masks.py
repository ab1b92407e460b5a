"""The heads that were masked as files, for `--edit` and the explorer: each says what its masking was seen to do."""

from __future__ import annotations

from math import isnan
from typing import Any

import polars as pl

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.masking import Plans
from workbench.core.context import Context
from workbench.core.files import atomic
from workbench.engine.head_masks import save_heads
from workbench.models.model import Model

PATTERN = "heads_top*.json"


def save_masks(
    model: Model, config: Config, context: Context, plans: Plans, recalls: pl.DataFrame, *, crossed: bool
) -> None:
    """Write the top heads of every k that was tested into the run folder, `heads_top{k}.json`: those that all trials
    choose, with what masking did (the table `masked_recall`). `crossed`: it was measured with heads that one half of
    the needles chose and the other tested, both ways. Nothing is written without a test."""
    if context.out is None:
        return
    for path in context.out.glob(PATTERN):  # of an earlier run in this folder
        path.unlink()
    if recalls.is_empty():
        return
    how = "uniform" if config.ablation == "uniform" else "zero"
    if config.ablation == "mean" and plans.top:
        context.warn("A head mask cannot hold means: heads_top*.json switch their heads to zero, not to their mean.")
    for k, heads in plans.top.items():
        note = _note(k, recalls, config, crossed=crossed)
        with atomic(context.out / f"heads_top{k}.json") as temporary:
            save_heads(temporary, heads, how=how, note=note, model=model)


def supported(k: int, recalls: pl.DataFrame) -> bool:
    """Whether masking the top k heads lowers recall below that of no masking, and below that of random heads of the
    same layers by an interval that lies under 0."""
    rows = _rows(k, recalls)
    difference = rows.get("top_minus_random")
    told = difference is not None and difference["ci_high"] < 0
    return told and rows["top"]["recall"] < rows["none"]["recall"]


def _rows(k: int, recalls: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Kind of masking → its row, at k and without masking."""
    return {row["heads"]: row for row in recalls.filter(pl.col("k").is_in([0, k])).iter_rows(named=True)}


def _note(k: int, recalls: pl.DataFrame, config: Config, *, crossed: bool) -> str:
    """What masking these heads was seen to do, in words."""
    rows = _rows(k, recalls)
    phase = "while the model answers" if config.mask_phase == "decode" else "in prompt and answer"
    effect = (
        f"top {k} heads of retrieval-heads, masked ({config.ablation}) {phase}: recall {rows['none']['recall']:.3f} "
        f"without masking, {rows['top']['recall']:.3f} with"
    )
    difference = rows.get("top_minus_random")
    if difference is not None:
        ends = (difference["ci_low"], difference["ci_high"])
        interval = "no interval" if isnan(ends[0]) else f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"
        effect += (
            f", {rows['random']['recall']:.3f} with random heads of the same layers; top minus random "
            f"{difference['recall']:+.3f} {interval}, n = {difference['n']} {config.resample} "
            f"({difference['rows']} trials)"
        )
    effect += ", with the heads that one half of the needles chose, on the other half" if crossed else ""
    return effect if supported(k, recalls) else f"{effect}: not shown to lower recall more than random heads do"
