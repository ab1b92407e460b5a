"""Folders and files that only their owner may read, whatever the umask.

On a shared machine prompts, activations and results are nobody else's. What is there already keeps its mode: who opens
a folder to others has done so on purpose.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

FOLDER = 0o700
FILE = 0o600
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a link in the place of a new file was planted by somebody else


def make_folder(path: Path) -> None:
    """Make a folder and the parents that are missing, each for its owner alone; one that is there stays as it is."""
    path = Path(path)
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    try:
        path.mkdir(FOLDER)
    except FileExistsError:  # another process was quicker, or it is no folder
        if not path.is_dir():
            raise
        return
    if stat.S_IMODE(path.stat().st_mode) & 0o777 != FOLDER:  # a umask that takes rights from the owner as well
        path.chmod(FOLDER)


def create(path: Path) -> None:
    """Make an empty file that was not there; FileExistsError for anything of that name, links too."""
    os.close(_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def appending(path: Path) -> IO[bytes]:
    """A file opened to be added to, made if it is absent."""
    return os.fdopen(_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def mark(path: Path) -> None:
    """Set the time of a file to now; an empty one is made if it is absent."""
    os.close(_descriptor(path, os.O_WRONLY | os.O_CREAT))
    os.utime(path)


def opener(name: str, flags: int) -> int:
    """For ``open(..., opener=opener)``: what is made is private, and no link is followed."""
    return _descriptor(Path(name), flags)


def close(folder: Path) -> None:
    """Make private what a library has written into a folder of ours."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(FOLDER if path.is_dir() else FILE)


def keep_new_files_private() -> None:
    """For a process of our own (the command line, a worker): what libraries write is private as well."""
    os.umask(0o077)


def _descriptor(path: Path, flags: int) -> int:
    before = os.path.lexists(path)
    descriptor = os.open(path, flags | _NO_LINK | getattr(os, "O_CLOEXEC", 0), FILE)
    if not before and hasattr(os, "fchmod") and stat.S_IMODE(os.fstat(descriptor).st_mode) != FILE:
        os.fchmod(descriptor, FILE)  # a umask that takes rights from the owner as well
    return descriptor
