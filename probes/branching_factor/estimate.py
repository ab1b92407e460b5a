"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.branching_factor.config import read_prompts
from probes.branching_factor.feedback import KINDS as FEEDBACK
from probes.branching_factor.feedback import TURN
from probes.branching_factor.random_prefix import KINDS as INSERTED
from probes.branching_factor.random_prefix import NOTHING
from workbench.runs.cost import CONTEXT, Facts, Plan

if TYPE_CHECKING:
    from probes.branching_factor.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The samples at their longest, for every condition of the study, and what is given of outputs before they go
    on."""
    prompts = read_prompts(config, data)["prompt"].to_list()
    prompts = prompts[: config.max_prompts] if config.max_prompts else prompts
    longest = min(config.max_new_tokens, model.context or CONTEXT)
    offsets = set(config.offsets)
    times = conditions_of(config)
    rows, given = len(prompts) * times, 0
    if config.study == "random_prefix":
        given = sum(t + config.inserted * (kind != NOTHING) for t in offsets for kind in INSERTED) * config.originals
    if config.study == "feedback":
        said = model.tokens([TURN.format(feedback=config.disagree)])
        given = len(FEEDBACK) * (longest + said) * config.originals
    if config.study == "sentences":  # an output with so many sentences, cut on average in its middle
        given = (config.max_sentences + 1) * config.originals * (longest // 2)
    return Plan(
        rows,
        model.tokens(prompts) * times + len(prompts) * given + rows * config.samples * longest,
        longest=model.longest(prompts) + longest,
        generated=longest,
        rows=config.max_rows,
        samples=config.samples,
    )


def conditions_of(config: Config) -> int:
    """How many times the study samples its prompts, as far as that is known before."""
    offsets = set(config.offsets)
    return {
        "pair": 2,
        "nudging": 3,
        "complexity": len(config.levels) * (1 + bool(config.compare)),
        "decoding": len(config.settings),
        "resampling": len({0, *config.cuts}) * config.originals,
        "random_prefix": 1 + len(INSERTED) * len(offsets) * config.originals,
        "feedback": 1 + len(FEEDBACK) * config.originals,
        "sentences": 1 + (config.max_sentences + 1) * config.originals,
    }.get(config.study, 1)
