"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.branching_factor.config import read_prompts
from workbench.runs.cost import CONTEXT, Facts, Plan

if TYPE_CHECKING:
    from probes.branching_factor.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The samples at their longest, for every condition of the study."""
    prompts = read_prompts(config, data)["prompt"].to_list()
    prompts = prompts[: config.max_prompts] if config.max_prompts else prompts
    times = {
        "pair": 2,
        "nudging": 3,
        "complexity": len(config.levels) * (1 + bool(config.compare)),
        "decoding": len(config.settings),
        "resampling": len({0, *config.cuts}) * config.originals,
    }.get(config.study, 1)
    rows = len(prompts) * times
    return Plan(
        rows,
        model.tokens(prompts) * times + rows * config.samples * min(config.max_new_tokens, model.context or CONTEXT),
    )
