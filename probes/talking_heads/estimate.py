"""What a run will take: the prompts of its tasks, once for every ablation."""

from __future__ import annotations

from pathlib import Path

from probes.talking_heads.config import REPEATED, Config
from probes.talking_heads.tasks import read_rows
from workbench.runs.cost import Facts, Plan

WORDS = 33  # tokens of a sequence of words said twice, in the mean


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The prompts with every channel removed, held at its mean, and against random components; the weights themselves
    are read with one token for each number of the stream."""
    rows = read_rows(data, config)
    texts = [] if rows is None else rows["prompt"].to_list()
    repeated = config.sequences if config.tasks == ("all",) or REPEATED in config.tasks else 0
    tasks = (rows["task"].n_unique() if rows is not None else 0) + bool(repeated)
    if config.limit:
        texts, repeated = texts[: config.limit * tasks], min(repeated, config.limit)
    passes = 1 + config.receivers_each * (2 + (config.ablate + 1) * (2 + config.random_draws)) / 2
    swept = (1 + len(config.scales)) / max(tasks, 1) if config.sweep != "none" else 0
    tokens = model.tokens(texts) + WORDS * repeated
    longest = max(model.longest(texts) if texts else 0, WORDS * 2 if repeated else 0)
    fed = round(tokens * (passes + swept)) + model.width
    return Plan(len(texts) + repeated, fed, longest=longest, at_once=max(longest, config.max_tokens))
