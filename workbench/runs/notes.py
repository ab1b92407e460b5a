"""Tags and a note of a run, kept beside it in notes.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core.files import write_json


def read(folder: Path) -> dict[str, Any]:
    """``tags`` (list of words) and ``note``; empty where there are none. InputError for a file that cannot be read."""
    from workbench.runs.records import read_notes

    return read_notes(folder)


def write(folder: Path, *, tags: Sequence[str], note: str) -> None:
    """Keep them. InputError where the file that is there cannot be read: what somebody wrote is not lost with it."""
    from workbench.runs.records import NOTES

    read(folder)
    write_json(folder / NOTES, {"tags": list(tags), "note": note})


def retag(folder: Path, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
    """Add tags to those of a run, after the ones it has, and take others away. Errors as in :func:`write`; nothing is
    written where nothing changes."""
    found = read(folder)
    tags = [tag for tag in dict.fromkeys([*found["tags"], *add]) if tag not in remove]
    if tags != found["tags"]:
        write(folder, tags=tags, note=found["note"])
