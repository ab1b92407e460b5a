"""A small file of each of many runs, read again only when it has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.file_hashes import stamp
from workbench.runs.folder import Run


@dataclass
class KeptFiles:
    """``name``: of the file below a run's folder; ``read``: what a run's is; ``unreadable``: what stands for one that
    cannot be read, ``missing`` for none."""

    name: str
    read: Callable[[Run], dict[str, Any]]
    missing: dict[str, Any]
    unreadable: dict[str, Any]
    _known: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = field(default_factory=dict, repr=False)

    def of(self, run: Run) -> dict[str, Any]:
        """What the file of a run holds."""
        try:
            now = stamp(run.folder / self.name)
        except OSError:
            return self.missing
        known = self._known.get(run.folder)
        if known is not None and known[0] == now:
            return known[1]
        try:
            found = self.read(run)
        except InputError:
            found = self.unreadable
        self._known[run.folder] = now, found
        return found
