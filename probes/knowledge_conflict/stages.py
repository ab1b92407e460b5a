"""What the stages of a run take beside each other, in prompts that are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probes.knowledge_conflict.estimate import selecting
from probes.knowledge_conflict.items import Item

if TYPE_CHECKING:
    from probes.knowledge_conflict.config import Config
    from workbench.models.model import Model

ANSWERED = 10.0  # an item that is answered, clean and in conflict, and scored
PATCHED = (
    0.1  # a patch of one head, or a window of layers switched off, which is computed anew at the last position only
)


def stage_weights(model: Model, config: Config, items: Sequence[Item]) -> dict[str, float]:
    """Stage -> its weight; the same counts as in the estimate of the run, of the items that can be measured."""
    n, heads = len(items), model.n_layers * model.n_heads
    find, validation = n * config.find_share, n * config.validation_share
    test = n - find - validation
    tried = 1 if config.variant != "auto" or config.select == "gates" else 2
    some = min(find, config.select_items)
    return {
        "known items": n * ANSWERED,
        "effects of heads": PATCHED * 3 * heads * find,
        "choice of heads": selecting(config, heads, some),
        "pruning": answered_sets(config, validation, test, tried) * ANSWERED,
        "dual runs": 16 * heads * some + 24 * validation * ANSWERED if config.dual_heads else 0,
        "flow": PATCHED * 5 * model.n_layers * min(config.flow_items, find),
        "patched positions": 3 * 4 * model.n_layers * min(find, config.patch_items),
        "paths between heads": 3 * config.path_heads * min(validation, config.path_items) * (3 + config.path_heads),
    }


def answered_sets(config: Config, validation: float, test: float, tried: int) -> float:
    """Items that are answered in step D: to choose k, and with every set of heads pruned."""
    return validation_rows(config, tried) * validation + test_rows(config) * test


def validation_rows(config: Config, tried: int) -> int:
    return 2 * tried * (1 + len(set(config.prune_k)))


def test_rows(config: Config) -> int:
    ks = len(set(config.prune_k))
    return 1 + 2 * (ks + config.random_draws + (ks - 1) * config.curve_draws) + 4 * len(config.baselines)
