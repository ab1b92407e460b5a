"""Hashes of large files, remembered between processes for as long as the system vouches that the file is the same.

A file is known by its device, number, size and times of change. The time of the last change of status (ctime) is set by
the system alone: other content of the same size with the old times copied onto it (`cp -p`, unpacked archives,
`os.utime`) has a new one. A file that has changed within the last seconds is hashed and not remembered, because a
second change within the same tick of the clock would not show.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from workbench.core.files import canonical, digest_file, read_plain, write_bytes
from workbench.core.private import make_folder

TICK = 2.0  # seconds after a change in which another one might not show in the times of a file
MOST = 4096  # files that are remembered; the ones learnt last stay
_KEY = re.compile(r"[0-9]+(:-?[0-9]+){4}")
_HEX = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 4_000_000  # what MOST entries take, and some; a larger file is none of ours


def stamp(path: Path) -> tuple[int, int, int, int, int]:
    """Device, number, size, mtime and ctime of the file that the path leads to: other numbers when it has changed.

    Raises OSError where there is none."""
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def folder_stamps(folder: Path) -> tuple:
    """The stamps of all the files below a folder, by name: others when a file was changed, added or taken away."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((path.relative_to(folder).as_posix(), *stamp(path)) for path in files)


def hashes(files: Sequence[Path], memory: Path) -> list[str]:
    """SHA-256 (hex) of the content of each file; `memory` is the file that keeps those of unchanged files.

    What `memory` holds is used only where it is whole and of the right shape; it may be missing, damaged or
    unwritable."""
    known = _remembered(memory)
    found, learnt = [], {}
    for file in files:
        key = _key(file)
        digest = known.get(key)
        if digest is None:
            started = time.time()
            digest = digest_file(file)
            if _key(file) == key and started - stamp(file)[4] / 1e9 > TICK:
                learnt[key] = digest
        found.append(digest)
    if learnt:
        _remember(memory, known | learnt)
    return found


def _key(file: Path) -> str:
    return ":".join(map(str, stamp(file)))


def _remembered(memory: Path) -> dict[str, str]:
    """What an earlier process wrote, entry by entry; nothing where the file is not as it was written."""
    try:
        if not memory.is_file() or memory.stat().st_size > _MOST_BYTES:
            return {}
        kept = json.loads(read_plain(memory))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(kept, dict) or not isinstance(entries := kept.get("files"), dict):
        return {}
    right = all(
        _KEY.fullmatch(key) and isinstance(digest, str) and _HEX.fullmatch(digest) for key, digest in entries.items()
    )
    return entries if right and kept.get("checksum") == _checksum(entries) else {}


def _remember(memory: Path, entries: dict[str, str]) -> None:
    entries = dict(list(entries.items())[-MOST:])
    text = json.dumps({"files": entries, "checksum": _checksum(entries)}, indent=0)
    with contextlib.suppress(OSError):  # only a memory: without it the hash is computed again
        make_folder(memory.parent)
        write_bytes(memory, text.encode())


def _checksum(entries: dict[str, str]) -> str:
    return hashlib.sha256(canonical(entries)).hexdigest()
