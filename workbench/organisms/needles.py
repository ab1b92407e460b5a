"""What an organism or a circuit brings for needles in a haystack: needles, haystack, prompt template and stopping
words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench import organisms


def shipped(model: str) -> dict[str, Any]:
    """`needles` and `haystack` (paths), `template` and `stop` of an organism, by its name or its folder; empty for any
    other model."""
    name = organisms.name_of(model)
    if name is None:
        return {}
    if not name.startswith("organism"):
        truth = organisms.truth(name)
        files = truth.get("data") or {}
        if "needles" not in files:
            return {}
        folder = organisms.folder(name)
        return {
            "needles": folder / files["needles"],
            "haystack": folder / files["haystack"],
            "template": truth["template"],
            "stop": ("\n",),
        }
    facts = json.loads(organisms.data("organism").read_text(encoding="utf-8"))["templates"]
    return {
        "needles": organisms.data("needles"),
        "haystack": organisms.data("haystack"),
        "template": facts["retrieval"],
        "stop": tuple(facts["stop"]),
    }


def own_needles(model: str) -> Path | None:
    """The needles that ship with a model."""
    return shipped(model).get("needles")


def left_to_what_ships(config: Any, model: str, essays: Path) -> dict[str, Any]:
    """`haystack`, `template` and `stop`, of those that a config with these keys leaves at "default": the model's own,
    or `essays` and the template that suits any other model."""
    own = {"haystack": essays} | shipped(model)
    if organisms.name_of(model) is None:
        own["template"] = "auto"
    left = {
        "haystack": config.haystack == "default",
        "template": config.template == "default",
        "stop": config.stop == ("default",),
    }
    return {key: own[key] for key, default in left.items() if default and key in own}
