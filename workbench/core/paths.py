"""Where the workbench keeps things on disk."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """The path that a person means: ``~`` is the home folder, unless something of that very name is here."""
    path = Path(path)
    if not str(path).startswith("~") or is_there(path):
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # ~name, where nobody has that name
        return path


def is_there(path: str | Path) -> bool:
    """Whether something has this path; a text that can be no path is none."""
    try:
        return os.path.exists(path)
    except ValueError:  # a null character
        return False


def cache_root() -> Path:
    """The folder of the activation store and of the runs: ``$WORKBENCH_CACHE``, else ``cached/`` of the checkout, else
    the user's cache folder."""
    named = os.environ.get("WORKBENCH_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "cached").is_dir():
        return checkout / "cached"
    import platformdirs

    return Path(platformdirs.user_cache_dir("interpretability-workbench"))
