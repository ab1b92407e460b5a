"""What a run will take: prompts and tokens, from its config and data."""

from __future__ import annotations

from pathlib import Path

from probes.token_filter.config import SHIPPED, Config
from probes.token_filter.trials import LONGEST, PAPER_K, PART, even_lengths
from workbench.core.tables import read_table
from workbench.runs.cost import CONTEXT, Facts, Plan

TAIL = 32  # tokens of a question in its template


def random_sets(config: Config) -> int:
    """Random sets beside each answered trial: with the question forced there is one kind of them."""
    return config.random_draws * (1 if "question" in config.forced else 2)


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """The grid of needles, lengths and depths, read once, and the answers from all tokens, from kept ones and from
    random ones."""
    rows = read_table(data, what="needles").height if data is not None else 0
    needles = (
        min(rows, config.needles) or config.needles if isinstance(config.needles, int) else min(rows, SHIPPED) or rows
    )
    longest = max(1, min(LONGEST, (model.context or CONTEXT) - config.max_new_tokens))
    lengths = even_lengths(longest) if config.lengths == "auto" else [int(n) for n in config.lengths]
    ks = [min(PAPER_K, min(lengths) // PART)] if config.k == "auto" else [int(k) for k in config.k]
    trials = needles * len(config.depths) * len(lengths)
    fed = needles * len(config.depths) * sum(lengths) + trials * TAIL
    tested = min(config.answer_trials, trials)
    each = 3 + random_sets(config)
    answers = tested * (2 + each * len(ks))
    fed += tested * 2 * sum(lengths) // len(lengths) + tested * each * sum(ks) + answers * config.max_new_tokens
    return Plan(
        trials + answers,
        fed,
        longest=max(lengths) + config.max_new_tokens,
        generated=config.max_new_tokens,
        at_once=max(max(lengths) + config.max_new_tokens, config.max_tokens),
    )
