"""One shard of the activation store: a safetensors file whose name and header hold the checksums of what is in it.

A shard is called ``00003-<digest>.safetensors``. Its header keeps one checksum per tensor under ``__metadata__``, and
the digest in the name covers the names, types, shapes and checksums of all of them. So a reader of one tensor checks
that tensor alone, and a flipped bit anywhere is found: in the data, in the header or in the name. Any safetensors
reader opens it.

The file is written here rather than by ``safetensors.save_file``, which goes through a temporary name of its own (left
behind by a killed process) and hides the system's error number. Nothing here imports torch before a tensor is asked
for.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from workbench.core.errors import InputError, WorkbenchError
from workbench.core.files import TEMPORARY, canonical, open_plain
from workbench.core.private import opener

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"(\d{5,})-([0-9a-f]{32})\.safetensors")
CHECKSUM = "xxh3_128:"  # before the name of each tensor, in the metadata
CHUNK = 4 << 20  # bytes hashed and then written while they are still in the processor's cache

# safetensors code -> the name that numpy and torch share, and the bytes of one element
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}
CODES = {name: code for code, (name, _) in DTYPES.items()}


class DamagedShard(WorkbenchError):
    """A shard is missing or its bytes are not those that were written: ``path`` names it, ``reason`` says why."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"The stored shard {path} is damaged ({reason}).")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Spec:
    """One tensor of a shard: safetensors code of its type, shape, begin and end (bytes after the header), checksum."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int
    checksum: str


def index_of(path: Path) -> int | None:
    """The index of a shard from its file name; None for any other file."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def write(folder: Path, index: int, tensors: Mapping[str, Any]) -> Path:
    """Write ``tensors`` (torch or numpy) as shard ``index`` of ``folder``; the path of the finished file.

    The file is flushed to disk, then renamed: it is complete or absent. The folder is flushed with the manifest only:
    until then a power cut may lose the name of the last shard, but never give it other bytes. Raises InputError for
    what safetensors cannot hold and OSError, leaving nothing behind, when the system refuses (a full disk, a quota).
    """
    if not tensors:
        raise InputError(f"Shard {index} holds no tensors; give at least one.")
    for name in tensors:
        if not isinstance(name, str) or name == "__metadata__":
            raise InputError(f"A stored tensor cannot be called {name!r}.")
    raw = {name: _raw(name, value) for name, value in tensors.items()}
    # Widest elements first, as safetensors does: every tensor then starts at a multiple of its own element size.
    order = sorted(raw, key=lambda name: (-DTYPES[raw[name][0]][1], name))
    specs, begin = {}, 0
    for name in order:
        code, shape, data = raw[name]
        specs[name] = Spec(code, shape, begin, begin + data.nbytes, "0" * 32)
        begin += data.nbytes
    blank = _header(specs)
    temporary = folder / f".{index:05d}{TEMPORARY}{uuid.uuid4().hex[:12]}"
    try:
        with open(temporary, "xb", buffering=0, opener=opener) as file:
            _write_all(file, blank)
            for name in order:
                checksum = _write_hashed(file, memoryview(raw[name][2]))
                spec = specs[name]
                specs[name] = Spec(spec.code, spec.shape, spec.begin, spec.end, checksum)
            file.seek(0)
            _write_all(file, _header(specs))  # as long as the blank one: only the digits of the checksums differ
            os.fsync(file.fileno())
        path = folder / f"{index:05d}-{_digest(specs)}.safetensors"
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


class Shard:
    """A finished shard, mapped into memory. ``specs`` tells what is in it; data are read when they are asked for.

    Raises DamagedShard when the file is missing or its header, length or name do not fit together.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with open_plain(path) as file:
                status = os.fstat(file.fileno())
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= status.st_size - 8:
                    raise DamagedShard(path, "its header is cut short")
                self.specs = _parse(path, file.read(length), status.st_size - 8 - length)
                # A private mapping: writing into a tensor never reaches the file.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise DamagedShard(path, "the file is missing") from None
        except OSError as error:
            raise DamagedShard(path, f"it cannot be read: {error.strerror}") from error
        # changes when the file does; ctime cannot be set back
        self.stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self._data = np.frombuffer(mapped, dtype=np.uint8)[8 + length :]

    def check(self, names: Iterable[str] | None = None) -> None:
        """Compare the named tensors (all by default) with their checksums; raise DamagedShard on a difference."""
        for name in self.specs if names is None else names:
            spec = self.specs[name]
            if xxhash.xxh3_128_hexdigest(self._data[spec.begin : spec.end]) != spec.checksum:
                raise DamagedShard(self.path, f"the data of {name} do not match their checksum")

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, backed by the mapped file (read lazily by the system)."""
        import torch

        spec = self.specs[name]
        dtype = getattr(torch, DTYPES[spec.code][0])
        if spec.begin == spec.end:
            return torch.empty(spec.shape, dtype=dtype)
        return torch.from_numpy(self._data[spec.begin : spec.end]).view(dtype).reshape(spec.shape)


def check(path: Path) -> None:
    """Check every byte of one shard; raise DamagedShard when any is not as written."""
    Shard(path).check()


def _raw(name: str, value: Any) -> tuple[str, tuple[int, ...], np.ndarray]:
    """The safetensors code, the shape and the bytes (uint8, contiguous, little-endian) of one tensor."""
    torch = sys.modules.get("torch")  # a torch tensor exists only where torch is imported
    if torch is not None and isinstance(value, torch.Tensor):
        kind, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        if kind in CODES:
            flat = value.detach().to("cpu").contiguous().reshape(-1)
            data = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    elif isinstance(value, np.ndarray):
        kind, shape = value.dtype.name, value.shape
        if kind in CODES:
            little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
            data = little.reshape(-1).view(np.uint8)
    else:
        raise InputError(f"The store holds tensors; {name!r} is a {type(value).__name__}.")
    if kind not in CODES:
        raise InputError(f"The store cannot hold the type {kind} of {name!r}; convert it to one of {', '.join(CODES)}.")
    return CODES[kind], shape, data


def _header(specs: Mapping[str, Spec]) -> bytes:
    """The length and the JSON header of a safetensors file, padded so that the data start at a multiple of 8 bytes."""
    fields: dict[str, Any] = {"__metadata__": {CHECKSUM + name: spec.checksum for name, spec in specs.items()}}
    for name, spec in specs.items():
        fields[name] = {"dtype": spec.code, "shape": list(spec.shape), "data_offsets": [spec.begin, spec.end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parse(path: Path, text: bytes, n_bytes: int) -> dict[str, Spec]:
    """The tensors that a header announces, after checking it against the shard's name and the length of its data."""
    try:
        fields = json.loads(text)
        checksums = fields.pop("__metadata__")
        specs = {
            name: Spec(field["dtype"], tuple(field["shape"]), *field["data_offsets"], checksums[CHECKSUM + name])
            for name, field in fields.items()
        }
        sizes = [DTYPES[spec.code][1] * int(np.prod(spec.shape, dtype=np.int64)) for spec in specs.values()]
        digest = _digest(specs)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError):
        raise DamagedShard(path, "its header cannot be read") from None
    match = NAME.fullmatch(path.name)
    if match is None or match[2] != digest:
        raise DamagedShard(path, "its header does not match its name")
    end = 0
    for spec, size in zip(specs.values(), sizes):
        if (spec.begin, spec.end) != (end, end + size):
            raise DamagedShard(path, "its header does not match its name")
        end = spec.end
    if end != n_bytes:
        raise DamagedShard(path, f"it holds {n_bytes} bytes of data instead of {end}")
    return specs


def _digest(specs: Mapping[str, Spec]) -> str:
    """The checksum in the name of a shard."""
    return xxhash.xxh3_128_hexdigest(canonical([[name, s.code, s.shape, s.checksum] for name, s in specs.items()]))


def _write_hashed(file, data: memoryview) -> str:
    """Write ``data`` and return its checksum, piece by piece: memory is read once, and the disk works meanwhile."""
    total = xxhash.xxh3_128()
    for begin in range(0, len(data), CHUNK):
        piece = data[begin : begin + CHUNK]
        total.update(piece)
        _write_all(file, piece)
        if len(piece) == CHUNK and hasattr(os, "posix_fadvise"):
            # Starts the transfer to the disk now rather than at fsync: a shard is on disk a sixth sooner.
            os.posix_fadvise(file.fileno(), file.tell() - CHUNK, CHUNK, os.POSIX_FADV_DONTNEED)
    return total.hexdigest()


def _write_all(file, data: bytes | memoryview) -> None:
    """Write every byte to an unbuffered file, which may take fewer at a time."""
    data = memoryview(data)
    while data:
        data = data[file.write(data) :]
