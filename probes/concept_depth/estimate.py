"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.concept_depth.chosen_sets import read_sets
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.concept_depth.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan | None:
    """Every text once under every condition, all layers kept; with `steer` the held-out texts of sets that ask for an
    answer again, twice for each strength and direction."""
    if data is None and not config.sets:
        return None
    sets = read_sets(config, data)
    texts = [text for concept in sets for text in concept.texts]
    conditions = 1 + bool(config.noise) + len(config.precision)
    rows = len(texts) * conditions
    size = 2 if config.store_dtype == "float16" else 4
    tokens, stored = model.tokens(texts) * conditions, rows * model.layers * model.width * size
    if config.steer:
        held_out = {"kfold": 1 / config.folds, "paper": 0.2, "code": 0.4}[config.split]
        layers = model.layers if config.causal == "all" else 1
        passes = 2 * len(config.steer) * (1 + config.random_draws) * layers * held_out
        asked = [text for concept in sets if concept.answers is not None for text in concept.texts]
        rows, tokens = rows + round(len(asked) * passes), tokens + round(model.tokens(asked) * passes if asked else 0)
    longest, kept = model.longest(texts), model.layers * model.width
    return Plan(rows, tokens, stored, longest=longest, at_once=config.max_tokens, captured=kept)
