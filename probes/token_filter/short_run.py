"""The settings of a short run on a model, from what is known of it before it is loaded; and what is then known not to
fit into its context."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probes.token_filter.config import COLUMNS, NEEDLES, Config
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.models.model_outline import Facts
from workbench.models.needle_prompts import PAPER_TEMPLATE
from workbench.organisms.needles import own_needles

LONGEST = 480  # tokens of a prompt of a short run
LEAST = 8  # tokens of haystack in the shortest prompt
NEW = 16  # tokens of an answer


def example(model: Facts) -> dict[str, object]:
    """A short run: eight needles at three lengths and depths, or those that the context of the model holds.

    Raises InputError where it holds none."""
    values: dict[str, object] = {
        "lengths": (192, 320, 480),
        "depths": (0, 50, 100),
        "needles": 8,
        "max_new_tokens": NEW,
        "k": (48,),
        "answer_trials": 24,
        "force_keep": ("question",),
        "random_draws": 5,
    }
    own = own_needles(model.name)
    if own is not None:
        values["needles"] = min(8, read_table(own, required=COLUMNS, what="needles").height)
    return values if model.is_organism else values | _that_fits(model)


def _that_fits(model: Facts) -> dict[str, object]:
    """Lengths and needles that the context holds, and a quarter of the shortest prompt."""
    needed = [size + LEAST for size in sizes(model, NEEDLES)[:8]]
    room = min(LONGEST, (model.context or LONGEST + NEW) - NEW)
    count = next((n for n, size in enumerate(needed) if size > room), len(needed))
    if not count:
        raise InputError(
            f"The context of {model.name} ({model.context} tokens) cannot hold the first needle that ships with its "
            f"question and an answer of {NEW} tokens ({needed[0] + NEW} tokens); give shorter needles with --data."
        )
    shortest = max(needed[:count])
    lengths = tuple(sorted({int(x) for x in np.linspace(max(shortest, min(192, room)), room, 3).round()}))
    # a question may be longer than what is kept where a tokenizer spells in bytes
    return {"needles": count, "lengths": lengths, "k": (max(1, min(lengths) // 4),), "force_keep": ("none",)}


def sizes(model: Facts, source: Path) -> list[int]:
    """Tokens that each needle of a file takes with its question, in the plain template: seldom fewer, at most a few
    more than it really takes."""
    rows = read_table(source, required=COLUMNS, what="needles").iter_rows(named=True)
    texts = [PAPER_TEMPLATE.format(context=row["needle"].strip() + " ", question=row["question"]) for row in rows]
    return [length + 2 for length in model.lengths(texts)]


def check_model(config: Config, facts: Facts | None) -> None:
    """Raise InputError for lengths that are known to go beyond the context of the model, and for a filter layer that it
    is known not to have."""
    if facts is None:
        return
    if isinstance(config.filter_layer, int) and facts.layers and config.filter_layer >= facts.layers:
        raise InputError(
            f"filter_layer={config.filter_layer} does not exist: {facts.name} has layers 0–{facts.layers - 1}."
        )
    if facts.folder is not None and not facts.attention_interface:
        raise InputError(
            f"{facts.name} does not hand its queries and keys to the attention function of transformers, so their "
            f"products cannot be read; choose a model of another architecture."
        )
    if facts.context is None:
        return
    wanted = () if config.lengths == "auto" else map(int, config.lengths)
    beyond = [n for n in wanted if n + config.max_new_tokens > facts.context]
    if beyond:
        raise InputError(
            f"A prompt of {max(beyond)} tokens and an answer of {config.max_new_tokens} go beyond the context of "
            f"{facts.context}; ask for shorter lengths."
        )
    if config.lengths == "auto" and facts.context <= config.max_new_tokens:
        raise InputError(
            f"The context of {facts.name} ({facts.context} tokens) cannot hold a needle and an answer of "
            f"max_new_tokens={config.max_new_tokens}; ask for shorter answers."
        )
