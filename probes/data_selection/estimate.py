"""What a run will take: prompts, tokens and stored bytes, from its config and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from probes.data_selection.samples import target_files
from workbench.core.tables import read_table
from workbench.runs.cost import Facts, Plan

if TYPE_CHECKING:
    from probes.data_selection.config import Config


def estimate(config: Config, data: Path | None, model: Facts) -> Plan:
    """Every sample of the pool and of the targets once."""
    texts = _texts(data)
    for path in target_files(config.target, None if model.folder is None else str(model.folder)).values():
        texts += _texts(path)
    return Plan(len(texts), model.tokens(texts))


def _texts(path: Path | None) -> list[str]:
    frame = read_table(path, what="pool")
    columns = [name for name in ("text", "prompt", "response") if name in frame.columns]
    return [" ".join(str(part or "") for part in row) for row in frame.select(columns).iter_rows()]
