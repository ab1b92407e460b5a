"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.data_selection.config import read_pool, read_target
from probes.data_selection.samples import target_files
from workbench.core.sample_tables import texts
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.data_selection.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """Every sample of the pool and of the targets once."""
    found = texts(read_pool(config, data))
    for name, path in target_files(config.target, None if model.folder is None else str(model.folder)).items():
        found += texts(read_target(config, name, path))
    return Plan(len(found), model.tokens(found))
