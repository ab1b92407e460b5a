"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.knowledge_conflict.items import COLUMNS, OPTIONAL
from workbench.core.column_names import column_map
from workbench.core.tables import read_table
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.knowledge_conflict.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """Generation and patching of the items, and every pruning of the test items."""
    names = column_map(config.columns, (*COLUMNS, *OPTIONAL))
    frame = read_table(data, required=("clean_prompt", "conflict_prompt"), columns=names, what="conflicts")
    items = min(config.limit or frame.height, frame.height)
    clean, conflict = (
        model.tokens(frame[name].to_list()) / frame.height for name in ("clean_prompt", "conflict_prompt")
    )
    tested = items * (1 - config.find_share)
    sets = 1 + 2 * len(config.prune_k) * (1 + config.random_draws)
    prompts = items + 3 * items * config.find_share + 2 * tested * sets + min(config.flow_items, items) * model.layers
    return Plan(round(prompts), round(prompts * (clean + conflict) / 2 + items * config.max_new_tokens))
