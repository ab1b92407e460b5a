"""Which earlier heads speak to which later ones: paths from head to head, for the strongest heads of the find split,
measured on the validation split, which did not pick them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.knowledge_conflict.config import Config
from probes.knowledge_conflict.head_importance import importance, scores
from probes.knowledge_conflict.items import Item
from probes.knowledge_conflict.patched_positions import judged
from probes.knowledge_conflict.random_controls import Head, random_heads
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.head_paths import THROUGH, head_to_head
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.stats.clusters import clusters_of, mean_interval, p_of_zero

NUMBERS = ("memory_importance", "context_importance", "score", "ci_low", "ci_high", "p", "p_adjusted")
PATHS = dict.fromkeys(("sender_layer", "sender_head", "receiver_layer", "receiver_head"), pl.Int64)
PATHS |= {"through": pl.String, "sender": pl.String} | dict.fromkeys(NUMBERS, pl.Float64)
PATHS |= {"shown": pl.Boolean, "n": pl.Int64, "rows": pl.Int64}


def paths(model: Model, config: Config, context: Context, items: Sequence[Item], heads: pl.DataFrame) -> pl.DataFrame:
    """What both answers lose when one head's output on the corrupted prompt reaches the query, the keys or the values
    of one later head alone: the columns of PATHS.

    Receivers are the `path_heads` heads after layer 0 with the largest |score| in the table `heads`, senders of each as
    many of those before it; beside these stand random senders of the same layers. p is of a score of 0, adjusted over
    all paths; `shown` needs a least size, too."""
    receivers = _strongest(heads.filter(pl.col("layer") > 0), config.path_heads)
    before = {at: _strongest(heads.filter(pl.col("layer") < at), config.path_heads) for at, _ in receivers}
    every = tuple(dict.fromkeys(head for some in before.values() for head in some))
    others = _others(model, context, every)
    plan = [(receiver, side) for receiver in receivers for side in THROUGH]
    subjects = clusters_of(np.array([item.subject for item in items]))
    rows = []
    for number, (receiver, side) in enumerate(plan):
        context.progress(number, len(plan), "paths")
        senders = dict.fromkeys(before[receiver[0]], "top")
        senders |= {head: "random" for head in others if head[0] < receiver[0]}
        lost = _lost(model, config, context, items, receiver, side, list(senders))
        rows += _rows(config, lost, subjects, receiver, side, senders)
    context.progress(max(1, len(plan)), max(1, len(plan)), "paths")
    table = pl.DataFrame(rows, schema=PATHS, orient="row")
    if table.is_empty():
        context.warn("No head is before another, so there are no paths between heads.")
        return table
    return judged(table, config).with_columns(pl.col("ci_low", "ci_high").fill_nan(None))


def _strongest(heads: pl.DataFrame, count: int) -> list[Head]:
    """The heads with the largest |score|."""
    order = heads.sort(pl.col("score").abs(), descending=True, maintain_order=True)
    return [(layer, head) for layer, head in order.select("layer", "head").head(count).iter_rows()]


def _others(model: Model, context: Context, heads: Sequence[Head]) -> tuple[Head, ...]:
    """As many random other heads of the same layers; none where the model has too few."""
    try:
        return random_heads(heads, model.n_heads, context.rng("random senders"), n_layers=model.n_layers)
    except InputError:
        return ()


def _lost(
    model: Model,
    config: Config,
    context: Context,
    items: Sequence[Item],
    receiver: Head,
    side: str,
    senders: Sequence[Head],
) -> np.ndarray:
    """What the answers lose by every sender's path into one side of the receiver, [n, senders, 2]."""
    ids, donors, tokens = ([getattr(item, name) for item in items] for name in ("conflict", "corrupt", "tokens"))
    run = Pass(context.edits, check=context.check)

    def compute() -> dict[str, np.ndarray]:
        found = head_to_head(model, ids, donors, tokens, receiver=receiver, through=side, senders=senders, run=run)
        context.count(prompts=3 * len(ids), tokens=3 * sum(map(len, ids)), forwards=3)
        return {"lost": importance(found, config.metric).numpy()}

    return context.part(f"paths into {receiver[0]}.{receiver[1]} {side} of {senders}", compute)["lost"]


def _rows(
    config: Config, lost: np.ndarray, subjects, receiver: Head, side: str, senders: dict[Head, str]
) -> list[tuple]:
    """One row per sender of effects [n, senders, 2]."""
    score = scores(lost, config.metric)
    low, high = mean_interval(score, subjects)
    p, mean = p_of_zero(score, subjects), lost.mean(0, dtype=np.float64)
    return [
        (*sender, *receiver, side, kind, *mean[k], score[:, k].mean(), low[k], high[k], p[k], None, None, subjects.n,
         subjects.rows)
        for k, (sender, kind) in enumerate(senders.items())
    ]  # fmt: skip
