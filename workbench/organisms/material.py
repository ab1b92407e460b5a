"""What ships with an organism for the retrieval probe: its own needles, haystack, prompt template and stopping words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench import organisms


def material(name: str) -> dict[str, Any]:
    """`needles` and `haystack` (paths), `template` and `stop` of an organism, by its name or its folder; empty for any other model."""
    if name not in organisms.names() and (path := Path(name).expanduser()).is_dir():
        name = next((known for known in organisms.names() if known == path.name and organisms.folder(known).resolve() == path.resolve()), name)
    if name not in organisms.names():
        return {}
    if name.startswith("circuit-"):
        folder = organisms.folder(name)
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        if truth.get("probe") != "retrieval-heads":
            return {}
        return {"needles": folder / truth["data"]["needles"], "haystack": folder / truth["data"]["haystack"], "template": truth["template"], "stop": ("\n",)}
    facts = json.loads(organisms.data("organism").read_text(encoding="utf-8"))["templates"]
    return {"needles": organisms.data("needles"), "haystack": organisms.data("haystack"), "template": facts["retrieval"], "stop": tuple(facts["stop"])}
