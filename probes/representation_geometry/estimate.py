"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workbench import organisms
from workbench.core.prompt_options import filled, template_text
from workbench.core.tables import read_table
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.representation_geometry.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The texts once at every checkpoint, with the passes for losses and ablations."""
    texts = read_table(data, required=("text",), what="text")["text"].to_list()[: config.limit]
    if config.template not in ("raw", "auto", "chat"):
        texts = [filled(template_text(config.template) or "{prompt}", {"prompt": text})[0] for text in texts]
    steps = [name for name in organisms.names() if "@step-" in name]
    times = sum(len(steps) if entry.endswith("@*") else 1 for entry in config.checkpoints) or 1
    length = min(config.max_length, model.context)
    tokens = min(model.tokens(texts), len(texts) * length)
    extra = min(config.loss_rows, len(texts)) * length * (1 + 2 * len(config.ablate)) if config.loss_rows else 0
    sites = model.layers if config.layers == "all" else 1
    return Plan(len(texts) * times, tokens * times + extra, len(texts) * times * sites * model.width * 4)
