"""What a run's files and its model are called, as far as its numbers or the words in its tables depend on it.

Files count by content. The name of one's own file counts too: tables are named after it (a concept set, a target, a
checkpoint), and random numbers are drawn by these names. Files that ship have names of their own already, so a run on
them is the same whether the default or the path was given.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from workbench.core.errors import RunFailed
from workbench.core.files import digest_path
from workbench.core.paths import is_there, user_path
from workbench.core.registry import Probe


def by_content(value: Any, probe: Probe) -> Any:
    """A path that exists as the hash of what it holds, with its name if it is somebody's own; anything else as it
    is."""
    if isinstance(value, list):
        return [by_content(item, probe) for item in value]
    if not isinstance(value, str) or not value or not is_there(user_path(value)):
        return value
    path = user_path(value)
    return {"sha256": digest_path(path), **own_name(path, probe)}


def own_name(path: Path | None, probe: Probe) -> dict[str, str]:
    """{"name": the file's} for a file of one's own; nothing for one that ships with the project or the probe."""
    if path is None or any(path.resolve().is_relative_to(place) for place in _places(probe)):
        return {}
    return {"name": path.name or path.resolve().name}


def model_name(model: Any) -> str | None:
    """What tables call the model, where its weights do not say it: a local folder by its last name; None for an
    organism, which has no other."""
    from workbench import organisms

    name = str(model.name)
    shown = Path(name).resolve().name if Path(name).is_dir() else name
    return None if shown in organisms.names() else shown


def check_unchanged(path: Path | None, fingerprint: str | None) -> None:
    """Raise RunFailed when a data file is no longer what it was when the run began: nobody knows what was read."""
    if path is not None and digest_path(path) != fingerprint:
        raise RunFailed(f"{path} was changed while the run read it; run it again.")


def _places(probe: Probe) -> list[Path]:
    """The folders of the packages that data can ship in: the workbench's, and the one that the probe is in."""
    names = ("workbench", probe.run.__module__.partition(".")[0])
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    return [Path(file).resolve().parent for file in files if file and Path(file).name == "__init__.py"]
