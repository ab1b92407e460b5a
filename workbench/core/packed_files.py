"""Files packed by gzip or Zstandard: known by how they begin, whatever they are called."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from workbench.core.errors import InputError
from workbench.core.files import read_plain

PACKED = (".gz", ".zst")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def read_unpacked(path: Path) -> bytes:
    """The bytes of a plain file, unpacked where they are packed. InputError for a file that is cut off or damaged, and
    for one that is named as packed and is not; OSError as the system raises it."""
    raw = read_plain(path)
    try:
        if raw.startswith(_GZIP):
            return gzip.decompress(raw)
        if raw.startswith(_ZSTD):
            import pyarrow as pa

            return pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read()
    except (EOFError, OSError, zlib.error):
        raise InputError(f"{path} cannot be unpacked: it is cut off or damaged; fetch or pack it again.") from None
    if raw and path.suffix.lower() in PACKED:
        raise InputError(
            f"{path} is named {path.suffix} and is not packed so (or its beginning is damaged); fetch it again, or "
            f"take that ending away."
        )
    return raw


def bare_name(path: Path) -> str:
    """The name of a file without the ending that says how it is packed: `a.jsonl.gz` is `a.jsonl`."""
    return path.stem if path.suffix.lower() in PACKED else path.name
