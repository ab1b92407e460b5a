"""What a run will take: tokens of the search and of the evaluation, from config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.bigram_subnetwork.config import read_texts
from probes.bigram_subnetwork.search import MONITORED, NOTES
from workbench.runs.cost import CONTEXT, Facts, Plan

if TYPE_CHECKING:
    from probes.bigram_subnetwork.config import Config

BACKWARD = 3  # a pass with its gradients, in plain passes
BYTES = 24  # for each weight: m, its gradient and two moments in float32, the masked weight and its gradient


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """Every step of the search counts three times (a pass and its gradients), then one pass over the held-out texts for
    each variant. Scores over the vocabulary come on top: of every token, one product of the width."""
    texts = read_texts(config, data)["text"].to_list()[: config.limit]
    length = min(config.length, model.context or CONTEXT)
    words = model.tokens(texts)
    held = round(words * config.held_out * min(1.0, config.eval_texts / max(1, round(len(texts) * config.held_out))))
    rest = words - round(words * config.held_out)
    step = min(config.batch * length, rest)
    noted = 0 if config.mask else min(NOTES, config.steps) * MONITORED * length
    searched = 0 if config.mask else config.steps * step * BACKWARD + noted
    variants = 3 + 2 * config.random_draws
    variants += (model.layers or 1) * (1 + config.layer_draws) if config.layer_ablation else 0
    judged = held * variants + (3 * min(config.rotation_tokens, rest) if config.rotation else 0)
    prompts = (0 if config.mask else config.steps * config.batch) + variants * max(1, held // length)
    scored = (searched + judged) * model.vocabulary * model.width
    captured = length * (model.layers + 1) * model.width if config.rotation else 0
    return Plan(
        prompts,
        searched + judged,
        scored=scored,
        longest=length,
        at_once=config.max_tokens,
        captured=captured,
        trained=0 if config.mask else BYTES,
    )
