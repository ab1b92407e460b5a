"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.representation_geometry.config import read_texts
from workbench import organisms
from workbench.runs.cost import CONTEXT, Facts, Plan

if TYPE_CHECKING:
    from probes.representation_geometry.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The texts once at every checkpoint, with the passes for losses and ablations."""
    texts = read_texts(config, data)["text"].to_list()[: config.limit]
    steps = [name for name in organisms.names() if "@step-" in name]
    times = sum(len(steps) if entry.endswith("@*") else 1 for entry in config.checkpoints) or 1
    length = min(config.max_length, model.context or CONTEXT)
    tokens = min(model.tokens(texts), len(texts) * length)
    extra = min(config.loss_rows, len(texts)) * length * (1 + 2 * len(config.ablate)) if config.loss_rows else 0
    sites = model.layers if config.layers == "all" else 1
    return Plan(len(texts) * times, tokens * times + extra, len(texts) * times * sites * model.width * 4)
