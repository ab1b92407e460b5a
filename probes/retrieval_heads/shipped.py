"""What ships for this method, with an organism or with the project: needles, haystack, prompt template and stopping
words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probes.retrieval_heads.config import ESSAYS, Config
from workbench import organisms
from workbench.organisms.needles import shipped


def own_needles(model: str) -> Path | None:
    """The needles that ship with a model."""
    return shipped(model).get("needles")


def material(config: Config, model: str) -> dict[str, Any]:
    """Haystack, template and stopping words, where the config leaves them to what ships with the project or with the
    model."""
    own = {"haystack": ESSAYS} | shipped(model)
    if organisms.name_of(model) is None:
        own["template"] = "auto"
    left = {
        "haystack": config.haystack == "default",
        "template": config.template == "default",
        "stop": config.stop == ("default",),
    }
    return {key: own[key] for key, default in left.items() if default and key in own}
