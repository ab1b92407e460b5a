"""What the store knows of its entries: one manifest each, which is the truth, and a Parquet listing derived from them.

Many processes may write entries at once, so no file is shared between entries but the listing, and that one is only
ever replaced whole, by the holder of its lock, after a look at every entry. Lost, damaged or out of date, it is made
again.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from workbench.core.errors import InputError
from workbench.core.files import TEMPORARY, atomic, canonical
from workbench.core.locks import folder_lock
from workbench.core.parquet import parquet_bytes, read_parquet
from workbench.store import shards
from workbench.store.manifests import MANIFEST, discard, read_manifest

if TYPE_CHECKING:
    import polars as pl

USED = "used"  # its time is the time of the last use
KEY = re.compile(r"[0-9a-f]{16,64}")
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


def folders(root: Path) -> list[Path]:
    """The folders of all entries of a store, complete or not."""
    entries = root / "entries"
    return sorted(path for path in entries.iterdir() if KEY.fullmatch(path.name)) if entries.is_dir() else []


def lock(root: Path, name: str, **callbacks):
    """The lock of one key, or of the listing (``index``); a context manager. See
    ``workbench.core.locks.folder_lock``."""
    return folder_lock(root / "locks" / f"{name}.lock", **callbacks)


def listing(root: Path) -> pl.DataFrame:
    """One row per entry, most recently used first, from their manifests; brings ``index.parquet`` up to date with it.

    Only the manifests that changed since the file was written are read again."""
    import polars as pl

    schema = {
        "key": pl.String,
        "complete": pl.Boolean,
        "shards": pl.Int64,
        "n_shards": pl.Int64,
        "bytes": pl.Int64,
        "expected_bytes": pl.Int64,
        "created": pl.String,
        "last_used": pl.Datetime("us", "UTC"),
        "meta": pl.String,
        "stamp": pl.Int64,  # of the manifest and of this row
    }
    path = root / "index.parquet"

    def table(known: dict[str, dict[str, Any]]) -> pl.DataFrame:
        rows = [row for folder in folders(root) if (row := _row(folder, known.get(folder.name)))]
        return pl.DataFrame(rows, schema=schema, orient="row").sort("last_used", "key", descending=[True, False])

    if not root.is_dir():
        return pl.DataFrame(schema=schema)
    try:
        with lock(root, "index"):
            for leftover in root.glob(f".{path.name}{TEMPORARY}*"):
                leftover.unlink()
            try:
                old = read_parquet(path)
            except (OSError, InputError):  # absent or damaged
                old = None
            if old is not None and old.schema != pl.Schema(schema):
                old = None
            new = table({} if old is None else {row["key"]: row for row in old.iter_rows(named=True)})
            if old is None or not new.equals(old):
                if path.is_dir() or path.is_symlink():
                    discard(path)
                with atomic(path, durable=False) as temporary:
                    temporary.write_bytes(parquet_bytes(new))
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        new = table({})  # a store that this process may only read: reading it needs no lock
    return new


def _row(folder: Path, known: dict[str, Any] | None) -> dict[str, Any] | None:
    """The row of one entry in the listing; None when it was removed. ``known``: its row in the last listing, believed
    when its stamp fits the manifest and itself, and its bytes those that are there. ``n_shards`` is None where there is
    no manifest that can be read."""
    try:
        used = folder / USED if (folder / USED).exists() else folder
        seconds = used.lstat().st_mtime
        last_used = datetime.fromtimestamp(min(max(seconds, 0.0), 2**33), UTC)  # a clock can be set to anything
        written = (folder / MANIFEST).lstat().st_mtime_ns if (folder / MANIFEST).exists() else 0
        sizes = [path.lstat().st_size for path in shards_in(folder).values()]
        if known and known["complete"] and (known["shards"], known["bytes"]) == (len(sizes), sum(sizes)):
            row = known | {"last_used": last_used}
            if row["stamp"] == _stamp(row, written):
                return row
        manifest = read_manifest(folder) or {}
    except FileNotFoundError:
        return None
    row = {
        "key": folder.name,
        "complete": manifest.get("complete", False),
        "shards": len(sizes),
        "n_shards": manifest.get("n_shards"),
        "bytes": sum(sizes),
        "expected_bytes": manifest.get("expected_bytes"),
        "created": manifest.get("created"),
        "last_used": last_used,
        "meta": json.dumps(manifest.get("meta"), sort_keys=True),
    }
    return row | {"stamp": _stamp(row, written)}


def _stamp(row: Mapping[str, Any], written: int) -> int:
    """A digest of what a row says, but for the last use, and of when the manifest was written."""
    said = [value for name, value in sorted(row.items()) if name not in ("last_used", "stamp")]
    return xxhash.xxh3_64_intdigest(canonical([said, written])) >> 1  # a signed number of 64 bits


def shards_in(folder: Path) -> dict[int, Path]:
    """The finished shards in a folder, by index."""
    try:
        return {index: path for path in sorted(folder.iterdir()) if (index := shards.index_of(path)) is not None}
    except OSError:  # gone, or no folder at all
        return {}
