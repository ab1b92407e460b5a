"""The runs of a folder, kept up to date for as long as somebody looks at them: read once each, and again when they
change."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from workbench.core.file_hashes import TICK
from workbench.runs.folder import Run, UnreadableRun, entries, entry_of, latest_first

Stamp = tuple[int, ...]


@dataclass
class RunIndex:
    """What lies below a runs root. Of a thousand runs, :meth:`look` costs as many calls of stat; :meth:`glance` one,
    and one for each run that is not complete.

    ``version`` is another number whenever a run was added, has changed or was taken away; ``looks`` whenever somebody
    looked."""

    root: Path
    version: int = 0
    looks: int = 0
    runs: list[Run] = field(default_factory=list, repr=False)
    unreadable: list[UnreadableRun] = field(default_factory=list, repr=False)
    _known: dict[Path, tuple[Stamp, Run | UnreadableRun | None]] = field(default_factory=dict, repr=False)
    _open: list[Path] = field(default_factory=list, repr=False)  # what may still change without a sign at the root
    _root: Stamp = ()
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def look(self) -> None:
        """Look at every run.json; read those that are new or have changed. InputError where the root cannot be
        read."""
        with self._lock:
            self._root = _of_root(self.root)  # before the list: what comes later is found by the next look
            self.looks += 1
            self._take(entries(self.root), whole=True)

    def glance(self) -> None:
        """Look at the root and at the runs that are not complete; at every run only where a folder has come or gone. A
        complete run that is computed again in its place is seen by the next :meth:`look`."""
        with self._lock:
            if not self._root or self._root != _of_root(self.root):
                self.look()
            else:
                self._take(self._open, whole=False)

    def _take(self, folders: Iterable[Path], *, whole: bool) -> None:
        before = self._known
        known = {} if whole else dict(before)
        changed = False
        for folder in folders:
            stamp = _stamp(folder)
            old = before.get(folder)
            known[folder] = old if old is not None and old[0] == stamp else (stamp, entry_of(folder))
            changed = changed or known[folder] is not old
        if not changed and len(known) == len(before) and self.version:
            return
        found = [entry for _, entry in known.values()]
        self._known = known
        self._open = [folder for folder, (_, entry) in known.items() if not _settled(entry)]
        self.runs = latest_first(entry for entry in found if isinstance(entry, Run))
        self.unreadable = [entry for entry in found if isinstance(entry, UnreadableRun)]
        self.version += 1


def _settled(entry: Run | UnreadableRun | None) -> bool:
    return isinstance(entry, Run) and entry.info["status"] == "complete"


def _stamp(folder: Path) -> Stamp:
    """Changes when the run.json of a folder does, or, where it has none, the folder."""
    try:
        about = os.stat(f"{folder}/run.json")
    except OSError:
        try:
            about = os.lstat(folder)
        except OSError:
            return ()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _of_root(root: Path) -> Stamp:
    """Changes when a folder comes or goes; nothing where it was changed so lately that a second change might not
    show, or is not there."""
    try:
        about = os.stat(root)
    except OSError:
        return ()
    if time.time() - about.st_mtime <= TICK:
        return ()
    return about.st_dev, about.st_ino, about.st_mtime_ns
