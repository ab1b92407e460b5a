"""The settings of a short run on a model, from what is known of it before it is loaded; and what is then known not to
fit into its context."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probes.retrieval_heads.config import COLUMNS, NEEDLES, Config
from workbench.core.errors import InputError
from workbench.core.tables import read_table
from workbench.models.model_outline import Facts
from workbench.models.needle_prompts import PAPER_TEMPLATE
from workbench.organisms.needles import own_needles

LONGEST = 480  # tokens of a prompt of a short run
LEAST = 8  # tokens of haystack in the shortest prompt


def example(model: Facts) -> dict[str, object]:
    """A short run: on the aligned organism only as much as the two maps need to be compared; never more needles than
    ship with a model. On a model that is no organism every trial is scored, also those that it fails, and lengths and
    needles are those that its context holds.

    Raises InputError where it holds none."""
    values: dict[str, object] = {
        "lengths": (128, 256, 384, 480),
        "depths": (0, 25, 50, 75, 100),
        "needles": 8,
        "max_new_tokens": 16,
        "mask_k": (1, 2, 3, 4, 8),
    }
    if model.name == "organism-chat":
        values |= {"lengths": (128, 256), "depths": (0, 50, 100), "needles": 4, "mask_k": (1, 2)}
    own = own_needles(model.name)
    if own is not None:
        values["needles"] = min(int(str(values["needles"])), read_table(own, required=COLUMNS, what="needles").height)
    return values if model.is_organism else values | _that_fits(model)


def _that_fits(model: Facts) -> dict[str, object]:
    """Lengths and needles that the context holds, and what can be done to heads that cannot be made uniform."""
    new = 16
    needed = [size + LEAST for size in sizes(model, NEEDLES)[:8]]
    room = min(LONGEST, (model.context or LONGEST + new) - new)
    count = next((n for n, size in enumerate(needed) if size > room), len(needed))
    if not count:
        raise InputError(
            f"The context of {model.name} ({model.context} tokens) cannot hold the first needle that ships with its "
            f"question and an answer of {new} tokens ({needed[0] + new} tokens); give shorter needles with --data."
        )
    shortest = max(needed[:count])
    lengths = (128, 256, 384, 480) if shortest <= 128 and room == LONGEST else np.linspace(shortest, room, 4).round()
    grid = {"keep": "all", "needles": count, "lengths": tuple(sorted({int(x) for x in lengths}))}
    ways = (({}, Config()), ({"ablation": "zero"}, Config(ablation="zero")), ({"mask_k": (0,)}, Config(mask_k=(0,))))
    return grid | next(values for values, config in ways if why_no_masking(config, model) is None)


def sizes(model: Facts, source: Path) -> list[int]:
    """Tokens that each needle of a file takes with its question, in the paper's template: seldom fewer, at most a few
    more than it really takes."""
    rows = read_table(source, required=COLUMNS, what="needles").iter_rows(named=True)
    texts = [PAPER_TEMPLATE.format(context=row["needle"].strip() + " ", question=row["question"]) for row in rows]
    return [length + 2 for length in model.lengths(texts)]


def why_no_masking(config: Config, facts: Facts) -> str | None:
    """Why the masking that a config asks for is known to be impossible on a model, in a sentence; None where it is
    not."""
    if not config.masks:
        return None
    if config.ablation != "uniform":
        reason = facts.why_not(("heads_apart",))
        return reason and f"{reason[:-1]}; use ablation=uniform, or mask_k=0 for no masking test."
    if not facts.attention_interface:
        return "Uniform attention cannot be put into this model; use ablation=zero, or mask_k=0 for no masking test."
    return None


def check_model(config: Config, facts: Facts | None) -> None:
    """Raise InputError for lengths that are known to go beyond the context of the model, for a context that is known to
    hold no needle, and for a masking that is known to be impossible."""
    if facts is None:
        return
    if (reason := why_no_masking(config, facts)) is not None:
        raise InputError(reason)
    if facts.context is None:
        return
    beyond = (
        [] if config.lengths == "auto" else [n for n in config.lengths if n + config.max_new_tokens > facts.context]
    )
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
