"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.concept_depth.chosen_sets import read_sets
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.concept_depth.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan | None:
    """Every text once under every condition, all layers kept."""
    if data is None and not config.sets:
        return None
    texts = [text for concept in read_sets(config, data) for text in concept.texts]
    conditions = 1 + bool(config.noise) + len(config.precision)
    rows = len(texts) * conditions
    size = 2 if config.store_dtype == "float16" else 4
    return Plan(rows, model.tokens(texts) * conditions, rows * model.layers * model.width * size)
