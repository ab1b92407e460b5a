"""What a disk refuses, told from the errors of the system and from those of libraries that only quote it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.core.errors import InputError, RunFailed, WorkbenchError

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
BROKEN = (errno.EIO, errno.EFBIG, errno.ESTALE, errno.ENOLCK)
_BY_WORDS = {os.strerror(number).lower(): number for number in (*FULL, *CLOSED, *BROKEN)}
_OS_ERROR = re.compile(r"\b(?:os error|errno) (\d+)\b", re.I)  # as Rust's and Python's libraries write it


def disk_errno(error: BaseException | None) -> int | None:
    """The number of what the disk refused, of an error or of what it was raised from; None where it is something
    else."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = error.errno if isinstance(error, OSError) else _quoted(str(error))
        if number in (*FULL, *CLOSED, *BROKEN):
            return number
        error = error.__cause__ or error.__context__
    return None


def _quoted(text: str) -> int | None:
    if match := _OS_ERROR.search(text):
        return int(match[1])
    return next((number for words, number in _BY_WORDS.items() if words in text.lower()), None)


def disk_sentence(number: int, place: Path | str, *, then: str = "") -> str:
    """What the disk of a place refused, and what to do; ``then``: what happens after that."""
    if number in FULL:
        return f"The disk of {place} is full; free some space" + (f", and {then}." if then else ".")
    if number in CLOSED:
        return (
            f"{place} cannot be written ({os.strerror(number)}); choose another place (--out, or WORKBENCH_CACHE for "
            f"all)."
        )
    return f"The disk of {place} failed ({os.strerror(number)}); choose another place (--out, or WORKBENCH_CACHE)."


@contextmanager
def refusals_as_sentences(place: Path | str) -> Iterator[None]:
    """What the disk refuses while this is open becomes one sentence, whoever says it; a path that no system takes, bad
    input."""
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"{place} cannot be a folder to write into: {error.strerror}.") from None
        number = disk_errno(error)
        if number is None:
            raise
        raise RunFailed(disk_sentence(number, place)) from error
