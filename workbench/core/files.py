"""Files that are complete or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.private import create
from workbench.core.wording import one_line

TEMPORARY = ".tmp-"  # every temporary name holds this, so that leftovers of a killed process can be told apart


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary file beside ``path``, empty and private; on success it is flushed and renamed onto ``path``, on
    error removed. ``durable``: False for what can be made again, which is not forced to the disk."""
    path = Path(path)
    # the beginning of the name tells people what it was; all of it might be too long with what comes after
    temporary = path.parent / f".{path.name[:40]}{TEMPORARY}{uuid.uuid4().hex[:12]}"
    try:
        create(temporary)
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable (where the system lets a folder be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON, two-space indent, UTF-8; NaN and infinities become null, what Unicode has no sign for ?."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode("utf-8", "replace"))


def open_plain(path: Path) -> io.BufferedReader:
    """A plain file, open for reading. OSError, as the system says it, for what is not there or cannot be opened, and
    for a folder, a pipe or a device by that name (a pipe would be waited for as long as nobody writes into it)."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number) if stat.S_ISDIR(mode) else "it is no plain file", str(path))
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path) -> bytes:
    """All bytes of a plain file; the errors are those of :func:`open_plain`."""
    with open_plain(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """The value in a JSON file. FileNotFoundError where there is nothing of that name; InputError, one sentence, for
    whatever else is no JSON: another encoding, NaN, numbers and nesting that cannot be held, a folder, a link that
    leads nowhere."""
    try:
        text = read_plain(path).decode("utf-8")
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if "\\ud" in text.lower():  # half a pair of escapes is a text that cannot be shown or written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except FileNotFoundError:
        if not os.path.lexists(path):
            raise
        raise InputError(f"{path} cannot be read: it is a link that leads nowhere.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except RecursionError:
        raise InputError(f"{path} cannot be read: it is nested too deeply.") from None
    except (ValueError, MemoryError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}.") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number that JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


def jsonable(value: Any) -> Any:
    """``value`` with tuples, paths, numpy scalars and arrays turned into what JSON knows; non-finite floats into
    None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return jsonable(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def canonical(value: Any) -> bytes:
    """The one JSON text of ``value`` (sorted keys, no spaces), for hashing."""
    return json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left under ``folder``. Only the holder of its lock may call
    this."""
    for path in folder.rglob(f".*{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def digest_file(path: Path) -> str:
    """SHA-256 of the bytes of one file, in hex."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_path(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all the files below a folder."""
    if path.is_file():
        return digest_file(path)
    total = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest_file(file)}\n".encode())
    return total.hexdigest()
