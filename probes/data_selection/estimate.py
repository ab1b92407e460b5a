"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.data_selection.config import NO_DIVERSITY, read_pool, read_target
from probes.data_selection.samples import target_files
from workbench.core.sample_tables import texts
from workbench.runs.cost import Facts, Plan

READ_SHARE = 0.3  # of the texts, those on which a feature fires: a guess
RANDOM_SETS = 5  # of a diverse selection's coverage

if TYPE_CHECKING:
    from probes.data_selection.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """Every sample of the pool and of the targets once; with finetune=true what the fine-tunings are fed, three times
    (there, and twice back), and the held-out examples after each."""
    found = texts(read_pool(config, data))
    rows, targets = len(found), []
    for name, path in target_files(config.target, None if model.folder is None else str(model.folder)).items():
        targets.append(texts(read_target(config, name, path)))
    found += [text for examples in targets for text in examples]
    tokens = model.tokens(found)
    size, length = config.k or max(1, round(config.ratio * rows)), tokens / max(1, len(found))
    if config.diversity != NO_DIVERSITY:  # candidates and random sets are read again
        tokens += round(min(rows, (config.diversity_among + RANDOM_SETS) * size * len(targets)) * length)
    if config.feature_effects:  # on most texts a feature does not fire: these are not read
        apart = len(targets) * config.feature_effects * (1 + config.effect_controls)
        read = config.effect_rows + (len(found) - rows) / max(1, len(targets))
        tokens += round(READ_SHARE * apart * read * length)
    if config.finetune:
        fed = config.finetune_epochs * size * length * config.finetune_seeds * (len(targets) + 2)
        held = config.finetune_held_out * length * (len(found) - rows)
        tokens += round(3 * fed + held * (1 + 3 * config.finetune_seeds))
    longest = model.longest(found)
    return Plan(len(found), tokens, longest=longest, at_once=config.max_tokens, captured=longest * model.width)
