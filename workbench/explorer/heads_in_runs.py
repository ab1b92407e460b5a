"""What the runs of one model say of its heads, kept for as long as the files of these runs stay as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from workbench.core.errors import InputError
from workbench.explorer import head_sets
from workbench.runs.folder import Run

Table = tuple[Path, str]  # the folder of a run, the name of a table of it


@dataclass
class HeadsInRuns:
    """Of the complete runs of the model of a ``fingerprint``, and those imported under its ``name``: their ``tables``
    (`head_sets.head_tables`), the ``columns`` of these that can colour heads (`head_sets.run_columns`), the ``masks``
    that they left, and a sentence for each table that is ``damaged``."""

    fingerprint: str
    name: str | None = None
    tables: list[tuple[Run, pl.DataFrame]] = field(default_factory=list, repr=False)
    columns: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    masks: dict[str, Path] = field(default_factory=dict, repr=False)
    damaged: list[str] = field(default_factory=list, repr=False)
    _seen: object = None
    _mine: list[Run] = field(default_factory=list, repr=False)
    _stamps: dict[Table, tuple[int, ...]] = field(default_factory=dict, repr=False)
    _read: dict[Table, pl.DataFrame | InputError] = field(default_factory=dict, repr=False)

    def of(self, runs: Sequence[Run], *, seen: object) -> HeadsInRuns:
        """The same, of these runs. ``seen`` stands for the look at the files that gave the runs: nothing is looked at
        where it is the one of before, and no table is read twice whose file is as it was."""
        if seen == self._seen:
            return self
        mine = head_sets.runs_of(runs, fingerprint=self.fingerprint, name=self.name)
        wanted = [(run.folder, table) for run in mine for table in head_sets.scored_tables(run)]
        stamps = {(folder, table): _stamp(folder, table) for folder, table in wanted}
        if stamps == self._stamps and mine == self._mine:
            self._seen = seen
            return self
        self._read = {key: frame for key, frame in self._read.items() if self._stamps.get(key) == stamps.get(key)}
        self._stamps, self._mine = stamps, mine
        self.tables = head_sets.head_tables(mine, read=self._table)
        self.damaged = head_sets.left_out(mine, read=self._table)
        self.columns = head_sets.run_columns(self.tables)
        self.masks = head_sets.masks_of(mine, fingerprint=self.fingerprint)
        self._seen = seen
        return self

    def _table(self, run: Run, name: str) -> pl.DataFrame:
        key = run.folder, name
        if key not in self._read:
            try:
                self._read[key] = run.table(name)
            except InputError as error:
                self._read[key] = error
        found = self._read[key]
        if isinstance(found, InputError):
            raise found
        return found


def _stamp(folder: Path, table: str) -> tuple[int, ...]:
    """Changes when the file of a table does, or the run.json that has its checksum; empty where one is not there."""
    try:
        both = os.stat(f"{folder}/tables/{table}.parquet"), os.stat(f"{folder}/run.json")
    except OSError:
        return ()
    return tuple(n for s in both for n in (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
