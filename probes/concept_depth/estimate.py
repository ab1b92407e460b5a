"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.tables import read_table
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.concept_depth.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan | None:
    """Every text once under every condition, all layers kept."""
    paths = [Path(name) for name in config.sets if Path(name).is_file()]
    if data is not None and not paths:
        paths = sorted(p for p in data.iterdir() if p.is_file()) if data.is_dir() else [data]
        paths = [p for p in paths if not config.sets or p.stem in config.sets or p.name in config.sets]
    if not paths:
        return None  # sets by a name that only the probe knows
    texts = [
        text
        for path in paths
        for text in read_table(path, required=("text",), what="concept")["text"].to_list()[: 2 * config.limit or None]
    ]
    conditions = 1 + bool(config.noise) + len(config.precision)
    rows = len(texts) * conditions
    size = 2 if config.store_dtype == "float16" else 4
    return Plan(rows, model.tokens(texts) * conditions, rows * model.layers * model.width * size)
