"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.representation_geometry.config import read_texts
from workbench import organisms
from workbench.core.prompt_options import filled, template_text
from workbench.runs.cost import CONTEXT, Facts, Plan

if TYPE_CHECKING:
    from probes.representation_geometry.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The texts once at every checkpoint, those of the losses once more, those of the curvature twice, and what scores
    over the vocabulary take: a product of the width, of the rank of every set of directions, and one exponential for
    each variant."""
    texts = read_texts(config, data)["text"].to_list()[: config.limit]
    if config.template not in ("raw", "auto", "chat"):
        texts = [filled(template_text(config.template) or "{prompt}", {"prompt": text})[0] for text in texts]
    steps = [name for name in organisms.names() if "@step-" in name]
    times = sum(len(steps) if entry.endswith("@*") else 1 for entry in config.checkpoints) or 1
    length = min(config.max_length, model.context or CONTEXT)
    tokens = min(model.tokens(texts), len(texts) * length)
    scored = texts[: config.loss_rows]
    extra = min(model.tokens(scored), len(scored) * length) * times
    bent = texts[: config.also_rows] if "curvature" in config.also else []  # as they are, and shuffled
    angles = 2 * min(model.tokens(bent), len(bent) * length) * times
    sets = 1 + config.random_draws
    a_word = model.width + sets * sum(config.ablate) + 1 + 2 * sets * len(config.ablate)
    sites = model.layers if config.layers == "all" else 1
    stored = len(texts) * times * sites * model.width * 4
    return Plan(
        len(texts) * times,
        tokens * times + extra + angles,
        stored,
        extra * model.vocabulary * a_word,
        "loss_rows=0" if extra else "",
        longest=min(model.longest(texts), length),
        at_once=config.max_tokens,
        captured=sites * model.width,
    )
