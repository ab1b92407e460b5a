"""What ships for this method, with an organism or with the project: needles, haystack, prompt template and stopping
words."""

from __future__ import annotations

from typing import Any

from probes.retrieval_heads.config import ESSAYS, Config
from workbench.organisms.needles import left_to_what_ships


def material(config: Config, model: str) -> dict[str, Any]:
    """Haystack, template and stopping words, where the config leaves them to what ships with the project or with the
    model."""
    return left_to_what_ships(config, model, ESSAYS)
