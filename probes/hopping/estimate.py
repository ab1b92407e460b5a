"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.hopping.questions import read_questions
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.hopping.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The answers to all prompts, and of both sets, taken to be as large as they may be, the descriptions, the cuts and
    the back-patches; a patched prompt costs the tokens that follow it."""
    questions = read_questions(config, data)
    count = min(config.limit or len(questions), len(questions))
    texts = [text for question in questions for text in question.prompts.values()]
    each, asked = model.tokens(texts) / len(texts), len(texts) / len(questions) * count
    looked = min(count, 2 * config.items or count)
    layers = model.layers
    described = patched(config, layers)
    cut = cuts(config, layers)
    prompts = asked + looked * (3 + cut + described)
    fed = (asked + looked * (3 + cut)) * each + (asked + looked * (cut + described)) * config.max_new_tokens
    return Plan(
        round(prompts),
        round(fed),
        longest=max(model.lengths(texts)) + config.max_new_tokens,
        generated=config.max_new_tokens,
    )


def cuts(config: Config, layers: int) -> int:
    """Texts that are written while attention is cut, for one question that is looked into."""
    return (len(config.knockout_to) + 1) * layers if config.knockout != "off" else 0


def patched(config: Config, layers: int) -> float:
    """Texts that are written after a patch, for one question that is looked into."""
    there = config.describe_layers
    targets = layers if there == "all" else 1 if there == "same" else len(set(there))
    samples = {"greedy": 1, "sampled": config.samples, "off": 0}[config.describe]
    back = layers * (layers - 1) / 2 * len(config.positions) * (1 + config.controls)
    return 2 * layers * targets * samples + back
