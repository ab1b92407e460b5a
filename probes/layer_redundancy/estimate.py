"""What a run will take: prompts and tokens, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.layer_redundancy.drop_orders import sizes
from workbench.core.prompt_options import filled, template_text
from workbench.runs.cost import CONTEXT, Facts, Plan

if TYPE_CHECKING:
    from probes.layer_redundancy.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """One half of the texts once (and again for every module that `iterative` drops and every number that `consecutive`
    does), and the other once under every set of dropped modules, with scores over the vocabulary."""
    from probes.layer_redundancy.config import read_texts

    texts = read_texts(config, data)["text"].to_list()[: config.limit]
    if config.template not in ("raw", "auto", "chat"):
        texts = [filled(template_text(config.template) or "{prompt}", {"prompt": text})[0] for text in texts]
    half = (len(texts) + 1) // 2
    scored = min(len(texts) - half, config.loss_rows)
    length = min(config.max_length, model.context or CONTEXT)
    each = min(model.tokens(texts), len(texts) * length) / max(1, len(texts))
    sets, passes = 1, 2
    for component in config.components:
        count = model.layers * (2 if component == "joint" else 1)
        wanted = sizes(config, count) if count else list(config.drop_n)
        stretch = "consecutive" in config.also and component == "block"
        orders = 3 + ("iterative" in config.also) + stretch + config.random_draws
        sets += len(wanted) * orders
        passes += (max(wanted, default=0) if "iterative" in config.also else 0) + (len(wanted) if stretch else 0)
    tokens, read = round(each * scored * sets), round(each * half * passes)
    return Plan(
        scored * sets + half * passes,
        tokens + read,
        scored=tokens * model.vocabulary * model.width,
        longest=min(model.longest(texts), length),
        at_once=config.max_tokens,
        captured=8 * model.width,
    )
