"""Run folders as they lie on disk: opening and listing them, and reading what they hold."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.files import read_plain
from workbench.core.nearest_name import nearest
from workbench.core.parquet import parse_parquet
from workbench.core.paths import cache_root, usable_path
from workbench.core.wording import cut, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    import polars as pl


ENDED = ".ended"  # beside a run.json that says "running" and could not be written when the run ended
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TABLE = re.compile(r"[a-z0-9_]+")


def runs_root() -> Path:
    """The folder that runs are kept in when no other is named."""
    return cache_root() / "runs"


@dataclass(frozen=True)
class Run:
    """A run folder. ``info`` is its run.json; everything else is read when asked for, and checked against the checksums
    that run.json has of it."""

    folder: Path
    info: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return self.info["id"]

    @property
    def probe(self) -> str:
        return self.info["probe"]

    def of(self, *path: str, default: Any = None) -> Any:
        """An entry of run.json; ``default`` where it is absent or null: older runs have fewer."""
        value: Any = self.info
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def status(self) -> str:
        """``complete``, ``cancelled``, ``failed``, ``running``, ``interrupted``: said to be running by a process that
        is gone, or ``damaged``: complete once, and a file has gone or changed since."""
        status = self.info["status"]
        if status == "running" and not _at_work(self.folder, self.info):
            return "interrupted"
        if status == "complete" and self.files is not None:
            from workbench.runs import checksums

            return "damaged" if checksums.damage(self.folder, self.files, thorough=False) else status
        return status

    @property
    def files(self) -> dict[str, dict[str, Any]] | None:
        """What run.json says of the run's files: relative path -> sha256 and bytes. None for a run that is not complete
        or is from before checksums."""
        return self.info.get("files") if self.info["status"] == "complete" else None

    def damage(self) -> dict[str, str]:
        """The files that are not what the run left, and how; every one is read."""
        from workbench.runs import checksums, records

        found = {} if records.sealed(self.info) else {"run.json": "it does not match its own checksum"}
        return found | checksums.damage(self.folder, self.files or {}, thorough=True)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers that a person would quote; empty where the run has none yet."""
        from workbench.runs import records

        data = self._bytes("summary.json")
        if data is None:
            return {}
        return records.read_summary(data, path=self.folder / "summary.json", remedy=self._remedy)

    @property
    def tables(self) -> list[str]:
        """The names of the tables."""
        if self.files is not None:
            names = (PurePosixPath(name) for name in self.files)
            return sorted(path.stem for path in names if path.parts[0] == "tables" and path.suffix == ".parquet")
        return sorted(path.stem for path in (self.folder / "tables").glob("*.parquet"))

    @property
    def arrays(self) -> list[str]:
        """The names of the arrays."""
        return sorted(self._arrays())

    def table(self, name: str) -> pl.DataFrame:
        """A table as a polars DataFrame; InputError for one that is not there or cannot be read."""
        if name not in self.tables:
            raise InputError(
                f"The run {self.id} has no table '{name}'{nearest(name, self.tables)}; {self._has(self.tables)}."
            )
        file = f"tables/{name}.parquet"
        data = self._checked(file, f"table '{name}'")
        try:
            return parse_parquet(data, what=file)
        except InputError as error:
            raise InputError(
                f"The table '{name}' of the run {self.id} cannot be read ({one_line(error)}); {self._remedy}."
            ) from None

    def array(self, name: str) -> np.ndarray:
        """An array; InputError for one that is not there."""
        found = self._arrays()
        if name not in found:
            names = sorted(found)
            raise InputError(f"The run {self.id} has no array '{name}'{nearest(name, names)}; {self._has(names)}.")
        return found[name]

    def read(self, name: str) -> bytes:
        """The bytes of any file of the run, checked; InputError names the file that is missing or damaged."""
        return self._checked(name, f"file {name}")

    def progress(self) -> dict[str, Any] | None:
        """The last line of progress.jsonl: time, seconds, done, total, label. None where there is none."""
        from workbench.runs.records import last_step

        try:
            data = self._bytes("progress.jsonl")
        except InputError:
            if self.files is not None:
                raise
            return None
        return None if data is None else last_step(data)

    @property
    def _remedy(self) -> str:
        return "the same command computes it again" if self.files is not None else "run it with --fresh"

    def _bytes(self, name: str) -> bytes | None:
        """A file of the run; None where it has none of that name."""
        there = name in self.files if self.files is not None else os.path.lexists(self.folder / name)
        return self.read(name) if there else None

    def _checked(self, name: str, what: str) -> bytes:
        from workbench.runs.checksums import Damaged, checked_bytes

        try:
            return checked_bytes(self.folder, name, self.files)
        except Damaged as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or str(error)
        where = "" if what.endswith(name) else f"{name}: "
        raise InputError(f"The {what} of the run {self.id} cannot be read ({where}{reason}); {self._remedy}.")

    def _arrays(self) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        data = self._bytes("arrays.safetensors")
        try:
            return {} if data is None else load(data)
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(
                f"The arrays of the run {self.id} cannot be read ({one_line(error)}); {self._remedy}."
            ) from None

    def _has(self, names: list[str]) -> str:
        return f"it has {', '.join(names)}" if names else f"it has none (it is {self.status})"


def _at_work(folder: Path, info: dict[str, Any]) -> bool:
    """Whether the process that a run says it is computed by is still there, as far as that can be known from here."""
    if (folder / ENDED).exists():
        return False
    if info.get("host") != socket.gethostname():
        return True
    import psutil

    try:
        process = psutil.Process(int(info.get("pid") or -1))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # one that began later only has the same number
        return process.create_time() <= (folder / "run.json").stat().st_mtime + 2
    except psutil.AccessDenied:
        return True
    except (psutil.Error, OSError, ValueError, TypeError, OverflowError):
        return False


def open_run(reference: str | Path | Run, *, root: Path | None = None) -> Run:
    """A run by its folder, its run.json, its id, or a beginning of its id that fits one run only."""
    return reference if isinstance(reference, Run) else _read(find_folder(reference, root=root))


def run_by_id(reference: str, *, root: Path | None = None) -> Run:
    """A run below the runs root by its id (the name of its folder) or a beginning of it; nothing else is ever looked at
    (ids come from URLs)."""
    return _read(_folder_by_id(reference, runs_root() if root is None else root))


def find_folder(reference: str | Path, *, root: Path | None = None) -> Path:
    """The folder that `open_run` reads for a reference, whether what is in it can be read or not."""
    path = usable_path(reference, what="run")
    if path.name == "run.json":
        path = path.parent
    if os.path.lexists(path / "run.json"):
        return path
    if isinstance(reference, Path) or "/" in str(reference) or os.path.isdir(path):
        raise InputError(f"{path} is not a run folder (no run.json in it).")
    return _folder_by_id(str(reference), runs_root() if root is None else root)


def _folder_by_id(reference: str, root: Path) -> Path:
    known = {path.name: path for path in _folders(root)}
    if reference in known:
        return known[reference]
    found = [name for name in known if name.startswith(reference)] if _ID.fullmatch(reference.rstrip("-")) else []
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise InputError(f"'{reference}' is the beginning of {len(found)} runs: {', '.join(found[:4])}.")
    raise InputError(
        f"There is no run '{cut(reference, 80)}' in {root}{nearest(reference, list(known))}; `workbench runs` lists "
        f"them."
    )


@dataclass(frozen=True)
class UnreadableRun:
    """A folder that holds a run, or should, and why it cannot be read (a sentence without its point)."""

    folder: Path
    reason: str


def list_runs(*, root: Path | None = None, unreadable: list[UnreadableRun] | None = None) -> list[Run]:
    """Every run below the runs root that can be read, the latest first. ``unreadable`` gets the folders that
    cannot."""
    found = [entry_of(path) for path in entries(runs_root() if root is None else root)]
    if unreadable is not None:
        unreadable += [entry for entry in found if isinstance(entry, UnreadableRun)]
    return latest_first([entry for entry in found if isinstance(entry, Run)])


def latest_first(runs: Iterable[Run]) -> list[Run]:
    """Runs in the order of a list, by when they were started."""
    return sorted(runs, key=lambda run: (str(run.info.get("started", "")), run.folder.name), reverse=True)


def entries(root: Path) -> list[Path]:
    """Whatever lies in the runs root, by name; InputError where nobody can look into it."""
    try:
        return sorted(root.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"The runs folder {root} cannot be read: {error.strerror}.") from None


def entry_of(folder: Path) -> Run | UnreadableRun | None:
    """The run in a folder below the runs root, or why it cannot be read; None for what holds no run, nor what is left
    of one."""
    try:
        return _read(folder) if _holds_run(folder) else None
    except OSError as error:  # unless it was removed meanwhile
        reason = f"{folder} cannot be read: {error.strerror}"
        return UnreadableRun(folder, reason) if os.path.lexists(folder) else None
    except InputError as error:
        return UnreadableRun(folder, str(error).rstrip("."))


def _holds_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what is left of one. OSError where nobody can look into it."""
    try:
        return not {"run.json", "summary.json", "tables"}.isdisjoint(os.listdir(folder))
    except NotADirectoryError:
        return False


def _folders(root: Path) -> list[Path]:
    """The folders below the runs root that hold a run, or what is left of one."""
    found = []
    for folder in entries(root):
        with contextlib.suppress(OSError):
            found += [folder] if _holds_run(folder) else []
    return found


def unreadable_sentence(unreadable: Sequence[UnreadableRun]) -> str:
    """``1 folder could not be read: …``; nothing where all could."""
    if not unreadable:
        return ""
    what = "1 folder" if len(unreadable) == 1 else f"{len(unreadable)} folders"
    return f"{what} could not be read: {'; '.join(item.reason for item in unreadable)}."


def read_unsealed(folder: Path) -> Run:
    """The run in a folder, even where its run.json does not match its own checksum. InputError where it is none."""
    from workbench.runs import records

    return Run(folder=folder, info=records.read_run(folder))


def _read(folder: Path) -> Run:
    from workbench.runs import records

    run = read_unsealed(folder)
    if not records.sealed(run.info):
        raise InputError(
            f"{folder / 'run.json'} is damaged: it does not match its own checksum; the same command computes the run "
            f"again."
        )
    return run


def read_file(path: Path) -> bytes:
    """The bytes of a file that somebody names. Those of a file that a run left are checked as the run's own: InputError
    where they are not what it left, or where they cannot be read."""

    run = _run_of(path)
    if run is not None:
        return run.read(path.name)
    try:
        return read_plain(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def check_file(path: Path) -> None:
    """InputError for a file that a run left (a mask, selected rows) and that has changed since; nothing is said of any
    other file."""
    run = _run_of(path)
    if run is not None:
        run.read(path.name)


def _run_of(path: Path) -> Run | None:
    """The run that left a file in its folder, where it has a checksum of it."""
    if path.name in ("run.json", "notes.json") or not os.path.lexists(path.parent / "run.json"):
        return None
    try:
        run = read_unsealed(path.parent)
    except InputError:  # anybody may have a run.json beside their data
        return None
    return run if run.files is not None and path.name in run.files else None
