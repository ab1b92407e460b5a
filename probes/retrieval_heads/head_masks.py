"""The heads that were masked as files, for `--edit` and the explorer: each says what its masking was seen to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.masking import Masking
from workbench.core.context import Context
from workbench.core.files import atomic
from workbench.engine.head_masks import save_heads
from workbench.models.model import Model

PATTERN = "heads_top*.json"


def save_masks(
    model: Model,
    config: Config,
    context: Context,
    plan: Sequence[Masking],
    masked: pl.DataFrame,
    summary: Mapping[str, Any],
) -> None:
    """Write the top heads of every k that was tested into the run folder, `heads_top{k}.json`: the very heads whose
    masking `masked` (the table `masked_trials`) holds. Nothing is written without a test."""
    if context.out is None:
        return
    for path in context.out.glob(PATTERN):  # of an earlier run in this folder
        path.unlink()
    if masked.is_empty():
        return
    how = "uniform" if config.ablation == "uniform" else "zero"
    top = [item for item in plan if item.kind == "top" and item.k > 0]
    if config.ablation == "mean" and top:
        context.warn("A head mask cannot hold means: heads_top*.json switch their heads to zero, not to their mean.")
    for item in top:
        with atomic(context.out / f"heads_top{item.k}.json") as temporary:
            save_heads(temporary, item.heads, how=how, note=_note(item.k, masked, summary, config), model=model)


def supported(k: int, masked: pl.DataFrame, summary: Mapping[str, Any]) -> bool:
    """Whether masking the top k heads lowers recall below that of no masking, and below that of random heads of the
    same layers by an interval that lies under 0."""
    difference = summary[f"recall_top_minus_random_{k}"]
    return difference["high"] < 0 and _recall(masked, k) < _recall(masked, 0)


def _recall(masked: pl.DataFrame, k: int, kind: str = "top") -> float:
    found = masked.filter((pl.col("k") == k) & (pl.col("heads") == kind))["recall"].to_list()
    return sum(found) / len(found)


def _note(k: int, masked: pl.DataFrame, summary: Mapping[str, Any], config: Config) -> str:
    """What masking these heads was seen to do, in words."""
    difference = summary[f"recall_top_minus_random_{k}"]
    phase = "while the model answers" if config.mask_phase == "decode" else "in prompt and answer"
    without, top, random = _recall(masked, 0), _recall(masked, k), _recall(masked, k, "random")
    effect = (
        f"top {k} heads of retrieval-heads, masked ({config.ablation}) {phase}: recall {without:.3f} without masking, "
        f"{top:.3f} with, {random:.3f} with random heads of the same layers; top minus random "
        f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}], "
        f"n = {difference['n']} trials"
    )
    return effect if supported(k, masked, summary) else f"{effect}: not shown to lower recall more than random heads do"
