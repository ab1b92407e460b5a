"""What ships with an organism for the probes: needles, haystack, prompt template and stopping words; its autoencoder;
targets of selection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench import organisms


def shipped_sae(name: str) -> Path | None:
    """The folder of the sparse autoencoder that ships with a model, by its name or folder."""
    folder = organisms.WEIGHTS / "sae" / ("organism" if name.startswith("organism") else Path(name).name)
    return folder if (folder / "cfg.json").is_file() else None


def shipped_targets() -> dict[str, Path]:
    """Name → file of the targets of data selection."""
    return {path.stem: path for path in sorted((organisms.DATA / "targets").glob("*.jsonl"))}


def material(name: str) -> dict[str, Any]:
    """`needles` and `haystack` (paths), `template` and `stop` of an organism, by its name or its folder; empty for any
    other model."""
    if name not in organisms.names() and (path := Path(name).expanduser()).is_dir():
        name = next(
            (
                known
                for known in organisms.names()
                if known == path.name and organisms.folder(known).resolve() == path.resolve()
            ),
            name,
        )
    if name not in organisms.names():
        return {}
    if name.startswith("circuit-"):
        folder = organisms.folder(name)
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        if truth.get("probe") != "retrieval-heads":
            return {}
        return {
            "needles": folder / truth["data"]["needles"],
            "haystack": folder / truth["data"]["haystack"],
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
