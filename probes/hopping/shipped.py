"""What ships for this method, with the project or for an organism: questions, and the prompt that describes states."""

from __future__ import annotations

from typing import Any

from probes.hopping.config import Config
from workbench import organisms

QUESTIONS = "probes.hopping:material/questions.jsonl"
WORLD = "probes.hopping:material/world.jsonl"
DESCRIBE = (
    "Norway: Norway is a country in the north of Europe, Marie Curie: Marie Curie was a physicist from Poland, "
    "Toyota: Toyota is a maker of cars from Japan, x"
)
DESCRIBE_WORLD = "Belonia: Belonia is a country, Velgrad: Velgrad is a city, Novacorp: Novacorp is a company, x"


def own_questions(model: str) -> str | None:
    """The questions about the generated world, for the models that live in it; None for any other model."""
    return WORLD if organisms.name_of(model) is not None else None


def describe_prompt(config: Config, model: str) -> str:
    """The text that describes states of a model."""
    if config.describe_prompt != "default":
        return config.describe_prompt
    return DESCRIBE if organisms.name_of(model) is None else DESCRIBE_WORLD


def material(config: Config, model: str) -> dict[str, Any]:
    """The describing prompt, where the config leaves it to what ships."""
    if config.describe == "off" or config.describe_prompt != "default":
        return {}
    return {"describe_prompt": describe_prompt(config, model)}
