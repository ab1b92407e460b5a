"""Tags and a note of a run, kept beside it in notes.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core.files import write_json


def read(folder: Path) -> dict[str, Any]:
    """``tags`` (list of words) and ``note``; empty where there are none or the file cannot be read."""
    try:
        found = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
        return {"tags": [str(tag) for tag in found.get("tags", [])], "note": str(found.get("note", ""))}
    except (OSError, ValueError, AttributeError, TypeError):
        return {"tags": [], "note": ""}


def write(folder: Path, *, tags: Sequence[str], note: str) -> None:
    write_json(folder / "notes.json", {"tags": list(tags), "note": note})
