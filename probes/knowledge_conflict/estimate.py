"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.knowledge_conflict.asking import TURN
from probes.knowledge_conflict.items import COLUMNS, OPTIONAL
from workbench.core.column_names import column_map
from workbench.core.prompt_options import filled, template_text
from workbench.core.tables import read_table
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.knowledge_conflict.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """Generation and patching of the items, the lists of heads, and every pruning of the validation and test items."""
    names = column_map(config.columns, (*COLUMNS, *OPTIONAL))
    frame = read_table(data, required=("clean_prompt", "conflict_prompt"), columns=names, what="conflicts")
    items = min(config.limit or frame.height, frame.height)
    around = "{prompt}" if config.template == "raw" else template_text(config.template) or TURN
    written = [
        [filled(around, {"prompt": text})[0] for text in frame[name]] for name in ("clean_prompt", "conflict_prompt")
    ]
    clean, conflict = (model.tokens(texts) / frame.height for texts in written)
    find = items * config.find_share
    measured = 3 * items + 6 * find + min(config.flow_items, items) * model.layers
    measured += selecting(config, model.layers * model.heads, min(find, config.select_items))
    tried = 1 if config.variant != "auto" or config.select == "gates" else 2
    measured += 16 * model.layers * model.heads * min(find, config.select_items) if config.dual_heads else 0
    measured += 3 * 4 * model.layers * min(find, config.patch_items)
    measured += (
        3 * config.path_heads * min(items * config.validation_share, config.path_items) * (3 + config.path_heads)
    )
    ks = len(set(config.prune_k))
    chosen = 2 * tried * (1 + ks) * items * config.validation_share
    sets = 1 + 2 * (ks + config.random_draws + (ks - 1) * config.curve_draws)
    sets += 4 * len(config.baselines)  # a prompt has a control, and decoding reads two prompts for one answer
    dual = 2 * (12 * config.validation_share * items) if config.dual_heads else 0  # with two runs for every answer
    sets += 4 * (1 + config.random_draws) if config.dual_heads else 0
    answered = chosen + 2 * dual + sets * items * (1 - config.find_share - config.validation_share)
    prompts = measured + 3 * answered  # two are answered, one is scored
    generated = (items + 2 * answered) * config.max_new_tokens
    return Plan(
        round(prompts),
        round(prompts * (clean + conflict) / 2 + generated),
        longest=max(map(model.longest, written)) + config.max_new_tokens,
        generated=config.max_new_tokens,
    )


def selecting(config: Config, heads: int, items: float) -> float:
    """Prompts that are read to make the lists of both sides, of a model with so many heads."""
    if config.select == "rank":
        return 0
    if config.select == "gates":
        return 2 * 3 * config.gate_steps * items * 3  # a step is a pass there and, twice as dear, one back
    pool = min(config.pool, heads // 2)
    steps = min(pool, max(config.prune_k, default=0))
    tried = 2 if config.variant == "auto" else 1
    screened = 16 * heads
    weighed = steps + 1 if config.max_clean_drop < 1 else 0  # clean prompts answered: with none off, with each head off
    return screened + 2 * tried * items * (steps * pool - steps * (steps - 1) // 2 + weighed)
