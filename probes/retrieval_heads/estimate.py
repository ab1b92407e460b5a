"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.retrieval_heads.passage_files import read_passages
from probes.retrieval_heads.task_answers import read_tasks
from workbench.core.tables import read_table
from workbench.runs.cost import CONTEXT, Facts, Plan

if TYPE_CHECKING:
    from probes.retrieval_heads.config import Config


TAIL = 32  # tokens of a question in its template


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The grid of needles, lengths and depths with its answers, the questions without their needle, and the passes of
    the masking test and of the tasks under its masks; with score=attention the further questions of every context."""
    if config.passages:
        return _of_passages(config.passages, model)
    rows = read_table(data, what="needles").height if data is not None else 0
    if isinstance(config.needles, int):
        rows = min(rows, config.needles) or config.needles
    longest = min(50_000, model.context or CONTEXT)
    lengths = (
        config.lengths
        if config.lengths != "auto"
        else [longest - i * (longest - min(1000, longest // 5)) // 19 for i in range(20)]
    )
    trials, prompts = rows * len(config.depths) * len(lengths), 0
    fed = 0
    if config.score == "attention":
        prompts, fed = 3 * trials, rows * len(config.depths) * sum(lengths) + 2 * TAIL * trials
    if config.generates:
        sets = [k for k in set(config.mask_k) if 0 < k <= model.layers * model.heads // 2]
        passes = (1 + len(sets) * (1 + config.random_draws)) if sets else 0
        masked = min(config.mask_trials, trials) * passes
        closed = rows * len(lengths)  # every question at every length without its needle
        fed += rows * (len(config.depths) + 1) * sum(lengths) + (trials + closed + masked) * config.max_new_tokens
        prompts += trials + closed
        if config.tasks:
            tasks = read_tasks(config.tasks, config.task_metric)
            prompts += len(tasks)
            fed += model.tokens([f"{task.context} {task.question}" for task in tasks])
            fed += len(tasks) * (TAIL + passes * config.task_tokens)
    generated = config.max_new_tokens if config.generates else 1
    longest = max(lengths) + TAIL + generated
    return Plan(prompts, fed, longest=longest, generated=generated, at_once=max(longest, config.max_tokens))


def _of_passages(source: str, model: Facts) -> Plan:
    """Every context once, and three questions after it."""
    rows = read_passages(source)
    return Plan(3 * len(rows), model.tokens([" ".join(row.passages) for row in rows]) + 3 * TAIL * len(rows))
