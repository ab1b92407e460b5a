"""SHA-256 of every file of a run: taken when it closes, kept in run.json, compared when a file is read."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.core.files import digest_file, read_plain
from workbench.runs.records import NOTES, RUN

APART = (RUN, NOTES)  # run.json guards itself, and notes are written later
APART_FOLDERS = ("figures", "parts")  # drawn again at will; gone when the run is complete


class Damaged(Exception):
    """A file of a run is not what was written; the text says how."""


def of_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """``files`` of run.json: relative path -> sha256 and bytes of every file below the folder that belongs to the
    run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        ours = not any(part.startswith(".") for part in parts) and parts[0] not in APART_FOLDERS
        if ours and "/".join(parts) not in APART and path.is_file():
            found["/".join(parts)] = {"sha256": digest_file(path), "bytes": path.stat().st_size}
    return found


def checked_bytes(folder: Path, name: str, files: Mapping[str, Mapping[str, Any]] | None) -> bytes:
    """The bytes of a file of a run, which are those that were written. ``files``: those of run.json; None for a run
    from before checksums. Raises Damaged, or OSError for a file that cannot be read."""
    wanted = None if files is None else files.get(name)
    if files is not None and wanted is None:
        raise Damaged("it is none of the files that the run left")
    try:
        data = read_plain(folder / name)
    except FileNotFoundError:
        raise Damaged("it is missing") from None
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted["sha256"]:
        raise Damaged(_changed(len(data), wanted["bytes"]))
    return data


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]], *, thorough: bool) -> dict[str, str]:
    """The files of a run that are not what was written, and how. ``thorough``: read them all; else only those that
    were touched since run.json was written, which is quick enough for a list of runs."""
    found = {}
    closed = None if thorough else _modified(folder / RUN)
    for name, wanted in files.items():
        problem = _problem(f"{folder}/{name}", wanted, closed)
        if problem:
            found[name] = problem
    return found


def _problem(path: str, wanted: Mapping[str, Any], closed: int | None) -> str | None:
    try:
        about = os.stat(path)
        if about.st_size != wanted["bytes"]:
            return _changed(about.st_size, wanted["bytes"])
        if closed is None:
            actual = hashlib.sha256(read_plain(Path(path))).hexdigest()
        elif about.st_mtime_ns <= closed:
            return None
        else:
            actual = _digest(path, about.st_mtime_ns, about.st_ino)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None if actual == wanted["sha256"] else _changed(about.st_size, wanted["bytes"])


def _changed(size: int, wanted: int) -> str:
    return "its content has changed" if size == wanted else f"it has {size:,} bytes in place of {wanted:,}"


def _modified(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1


@functools.lru_cache(maxsize=4096)
def _digest(path: str, modified: int, number: int) -> str:
    """Of a file that was touched, e.g. copied after its run.json: read once as long as it is not touched again."""
    return hashlib.sha256(read_plain(Path(path))).hexdigest()
