"""What the store knows of its entries: one manifest each, which is the truth, and a Parquet listing derived from them.

Many processes may write entries at once, so no file is shared between entries but the listing, and that one is only
ever replaced whole, by the holder of its lock, after a look at every entry. Lost, damaged or out of date, it is made
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.files import TEMPORARY, canonical, folder_lock, write_json
from workbench.core.parquet import parquet_bytes, read_parquet
from workbench.store import shards

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 1
MANIFEST = "entry.json"
USED = "used"  # its time is the time of the last use
KEY = re.compile(r"[0-9a-f]{16,64}")
logger = logging.getLogger(__name__)


def folders(root: Path) -> list[Path]:
    """The folders of all entries of a store, complete or not."""
    entries = root / "entries"
    return sorted(path for path in entries.iterdir() if KEY.fullmatch(path.name)) if entries.is_dir() else []


def lock(root: Path, name: str, **callbacks):
    """The lock of one key, or of the listing (``index``); a context manager. See
    ``workbench.core.files.folder_lock``."""
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
        "stamp": pl.Int64,  # when the manifest was written
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
                with _replacing(path) as temporary:
                    temporary.write_bytes(parquet_bytes(new))
    except PermissionError:  # a store that this process may only read
        new = table({})
    return new


def _row(folder: Path, known: dict[str, Any] | None) -> dict[str, Any] | None:
    """The row of one entry in the listing; None when it was removed. ``known``: its row in the last listing."""
    try:
        used = folder / USED if (folder / USED).exists() else folder
        last_used = datetime.fromtimestamp(used.stat().st_mtime, UTC)
        manifest_path = folder / MANIFEST
        stamp = manifest_path.stat().st_mtime_ns if manifest_path.exists() else 0
        if known and known["complete"] and known["stamp"] == stamp:
            return known | {"last_used": last_used}
        manifest = read_manifest(folder) or {}
        sizes = [path.stat().st_size for path in shards_in(folder).values()]
    except FileNotFoundError:
        return None
    return {
        "key": folder.name,
        "complete": manifest.get("complete", False),
        "shards": len(sizes),
        "n_shards": manifest.get("n_shards"),
        "bytes": sum(sizes),
        "expected_bytes": manifest.get("expected_bytes"),
        "created": manifest.get("created"),
        "last_used": last_used,
        "meta": json.dumps(manifest.get("meta"), sort_keys=True),
        "stamp": stamp,
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an entry; None when it is absent, of another schema, or does not match its own checksum."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        checksum = manifest.pop("checksum")
        sound = checksum == hashlib.sha256(canonical(manifest)).hexdigest() and manifest["schema"] == SCHEMA
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound or manifest["key"] != folder.name:
        logger.warning("The store entry %s has a damaged or foreign %s; it is computed again.", folder.name, MANIFEST)
        return None
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest of an entry; it carries a checksum of itself. That of a complete entry is flushed to disk,
    and with it the names of all shards."""
    manifest = manifest | {"checksum": hashlib.sha256(canonical(manifest)).hexdigest()}
    if manifest["complete"]:
        write_json(folder / MANIFEST, manifest)
    else:
        with _replacing(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` at once, but is not flushed: for what can be made again."""
    temporary = path.parent / f".{path.name}{TEMPORARY}{uuid.uuid4().hex[:12]}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def shards_in(folder: Path) -> dict[int, Path]:
    """The finished shards in a folder, by index."""
    try:
        return {index: path for path in sorted(folder.iterdir()) if (index := shards.index_of(path)) is not None}
    except FileNotFoundError:
        return {}


def lacking(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a shard of a complete entry is missing or has another length."""
    try:
        return any((folder / item["file"]).stat().st_size != item["bytes"] for item in manifest["shards"])
    except OSError:
        return True
