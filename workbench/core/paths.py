"""Where the workbench keeps things on disk."""

from __future__ import annotations

import os
from pathlib import Path


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
