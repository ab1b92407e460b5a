"""The content-addressed activation store: what was computed once is never computed again.

An entry is a folder named by the hash of everything that decides its content (weights, tokenizer, token ids, sites,
positions, dtype, edits, capture version: the caller's affair, see ``fingerprint``)::

    <root>/entries/<key>/00000-<checksum>.safetensors   the data; see workbench/store/shards.py
    <root>/entries/<key>/entry.json                      what the entry is, and whether it is complete: the truth
    <root>/entries/<key>/used                            its time is the last use; readers hold a shared lock on it
    <root>/locks/<key>.lock                              held by the one process that writes the entry
    <root>/index.parquet                                 a listing of all entries, derived from them

Every file is written under a temporary name, flushed and renamed, so a process killed at any moment leaves finished
shards, at most one temporary file, and a lock that went with it. The next writer of the key sweeps the file and
computes only the shards that are missing. Nothing here imports torch before a tensor is asked for, nor polars before a
listing is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.files import TEMPORARY, canonical, jsonable
from workbench.core.paths import cache_root
from workbench.core.private import make_folder, mark
from workbench.core.wording import human_bytes, parse_bytes
from workbench.store import shards
from workbench.store.entries import Entry, Writer, explained, hold
from workbench.store.index import KEY, READ_ONLY, USED, folders, listing, lock, shards_in
from workbench.store.manifests import (
    MANIFEST,
    SCHEMA,
    discard,
    lacking,
    read_manifest,
    require_manifest,
    write_manifest,
)
from workbench.store.shards import DamagedShard

if TYPE_CHECKING:
    import polars as pl

RESERVE = 1 << 20  # bytes left free on the disk beside an entry, for its manifest and the listing
logger = logging.getLogger(__name__)


def fingerprint(fields: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of the canonical JSON of ``fields``: the key of an entry. The order of fields does not matter.

    Raises InputError for a value that JSON cannot hold (write a Site as ``str(site)``)."""
    try:
        return hashlib.sha256(canonical(fields)).hexdigest()
    except TypeError as error:
        raise InputError(f"A store key cannot be made: {error}.") from error


def configured_budget() -> int | None:
    """Bytes of WORKBENCH_STORE_BUDGET; None where it is not set. Raises InputError for what is no size."""
    text = os.environ.get("WORKBENCH_STORE_BUDGET", "").strip()
    try:
        return parse_bytes(text) if text else None
    except InputError as error:
        raise InputError(f"The environment variable WORKBENCH_STORE_BUDGET: {error}") from None


class Store:
    """A store under ``root`` (default: ``store`` in the cache folder), which is made when the first entry is written.

    ``budget_bytes``: what all entries may take; the least recently used are evicted for new ones. None: what the
    environment variable WORKBENCH_STORE_BUDGET says (``50GB``), no limit where it is not set.
    """

    def __init__(self, root: Path | str | None = None, *, budget_bytes: int | None = None):
        self.root = Path(root) if root is not None else cache_root() / "store"
        self.budget_bytes = configured_budget() if budget_bytes is None else budget_bytes
        self._checked: dict[Path, tuple[tuple, set[str]]] = {}  # shard -> its stamp and the tensors found undamaged

    def get(self, key: str) -> Entry | None:
        """The entry ``key`` when it is complete, else None. It is not evicted while the Entry is open."""
        folder = self._folder(key)
        handle = hold(folder / USED)
        if handle is None:
            return None
        manifest = read_manifest(folder)
        if manifest is None or not manifest["complete"] or lacking(folder, manifest):
            handle.close()
            return None
        _touch(folder / USED)
        return Entry(self, folder, manifest, handle)

    @contextmanager
    def writer(
        self,
        key: str,
        meta: Mapping[str, Any],
        *,
        n_shards: int,
        expected_bytes: int,
        waiting: Callable[[], None] | None = None,
        check: Callable[[], None] | None = None,
    ) -> Iterator[Writer]:
        """Hold the lock of ``key`` and write the shards that are not in ``Writer.done``; the entry is complete when the
        block ends without an error and all of them are there.

        While another process writes the same key this one waits (the log names it, ``waiting()`` is called once,
        ``check()`` about ten times a second, and may raise to give up), and then usually finds everything done. Shards
        kept from an earlier attempt are checked byte by byte; a damaged one is named in the log and in
        ``Writer.damaged``, and dropped. An earlier attempt with another ``meta`` or ``n_shards`` is dropped whole: what
        decides which rows go into which shard belongs in ``meta``, and what changes from run to run (a date) does not.

        Raises InputError, with the numbers, when ``expected_bytes`` do not fit on the disk or in the budget.
        """
        if n_shards < 1 or expected_bytes < 0:
            raise InputError(
                f"An entry needs at least one shard and a size, not {n_shards} shards of {expected_bytes} bytes."
            )
        folder = self._folder(key)

        def told(holder: str) -> None:
            logger.warning("The store entry %s is being written by %s; waiting for it.", key, holder)
            if waiting is not None:
                waiting()

        with ExitStack() as stack:
            with explained(self.root):
                stack.enter_context(lock(self.root, key, waiting=told, check=check))
                writer = self._open_writer(folder, key, jsonable(meta), n_shards, expected_bytes)
            try:
                yield writer
                if not writer.complete and not writer.missing:
                    with explained(self.root):
                        self._complete(writer)
            finally:
                if not writer.done:
                    shutil.rmtree(folder, ignore_errors=True)

    def ls(self) -> pl.DataFrame:
        """One row per entry, most recently used first: key, complete, shards, n_shards, bytes, expected_bytes, created,
        last_used (UTC), meta (JSON). Also brings ``index.parquet`` up to date."""
        return listing(self.root).drop("stamp")

    def verify(self, *, drop: bool = False) -> pl.DataFrame:
        """Check every byte of every shard: key, shard, file, bytes, status (ok/damaged/missing), reason; and every
        manifest, with a row (without a shard) for one that is missing or cannot be read. With ``drop``, damaged shards
        and entries without a manifest are removed, so that the next run computes them again."""
        import polars as pl

        rows = []
        unreadable = self.unreadable()
        for folder in folders(self.root):
            if folder.name in unreadable:
                status, reason = unreadable[folder.name]
                path = folder / MANIFEST
                size = path.lstat().st_size if os.path.lexists(path) else 0
                rows.append((folder.name, None, str(path.relative_to(self.root)), size, status, reason))
                if drop:
                    self._remove(folder.name)
                continue
            manifest = read_manifest(folder)
            listed = {item["file"] for item in manifest["shards"]} if manifest and manifest["complete"] else set()
            for name in sorted(listed | {path.name for path in shards_in(folder).values()}):
                path, status, reason = folder / name, "ok", None
                try:
                    shards.check(path)
                except DamagedShard as error:
                    if not folder.exists():  # evicted in the meantime
                        break
                    status, reason = "damaged" if path.exists() else "missing", error.reason
                    if drop:
                        self._drop(path)
                size = path.stat().st_size if path.exists() else 0
                rows.append(
                    (folder.name, shards.index_of(path), str(path.relative_to(self.root)), size, status, reason)
                )
        columns = {"key": pl.String, "shard": pl.Int64, "file": pl.String, "bytes": pl.Int64, "status": pl.String}
        return pl.DataFrame(rows, schema=columns | {"reason": pl.String}, orient="row")

    def unreadable(self) -> dict[str, tuple[str, str]]:
        """The entries whose manifest is missing or cannot be read, and which nobody is writing now: by key, what is
        the matter (missing/damaged) and a sentence on it. The next run that needs one computes it again."""
        found = {}
        for folder in folders(self.root):
            reason = _manifest_problem(folder)
            if reason is None:
                continue
            try:
                with lock(self.root, folder.name, check=_busy):
                    reason = _manifest_problem(folder)  # its writer may have come to an end between the two looks
            except _Busy:
                continue
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
            if reason is not None and os.path.lexists(folder):
                found[folder.name] = reason
        return found

    def gc(self, budget_bytes: int | None = None) -> pl.DataFrame:
        """Remove the leftovers of killed processes and the entries that cannot be read, then the least recently used
        entries until the rest fits ``budget_bytes`` (default: the store's budget; without one, nothing is evicted).
        Entries being read or written stay. Returns what was evicted: key, bytes."""
        for folder in folders(self.root):
            try:
                with lock(self.root, folder.name, check=_busy):
                    _sweep(folder)
            except _Busy:
                continue
        return self._evict(self.budget_bytes if budget_bytes is None else budget_bytes)

    def clear(self) -> pl.DataFrame:
        """Remove every entry that nobody is reading or writing: key, bytes."""
        return self.gc(0)

    # Everything below is the store's own business.

    def _folder(self, key: str) -> Path:
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise InputError(f"A store key is 16 to 64 hexadecimal digits, not {key!r}; make one with fingerprint().")
        return self.root / "entries" / key

    def _open_writer(self, folder: Path, key: str, meta: Any, n_shards: int, expected_bytes: int) -> Writer:
        """Take up what an earlier attempt left in ``folder``, or make it. The caller holds the lock of the key."""
        if os.path.lexists(folder) and not folder.is_dir():
            discard(folder)
        _sweep(folder)
        manifest = read_manifest(folder)
        for path in (folder / MANIFEST, folder / USED):  # whatever else has that name could not be replaced by a file
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                discard(path)
        if manifest is not None and manifest["complete"] and not lacking(folder, manifest):
            _touch(folder / USED)  # without that file it could not be held, and so not be read
            return Writer(folder, key, n_shards, set(range(n_shards)), [], complete=True)
        kept = {} if manifest is None else shards_in(folder)
        if kept and (manifest["n_shards"], canonical(manifest["meta"])) != (n_shards, canonical(meta)):
            logger.warning("The unfinished store entry %s was cut into other shards; it starts again.", key)
            kept = {}
        damaged = []
        for index, path in list(kept.items()):
            try:
                shards.check(path)
            except DamagedShard as error:
                logger.warning("%s It is computed again.", error)
                damaged.append(path.name)
                del kept[index]
        for path in folder.glob("*.safetensors"):  # what is damaged, of another cut, or there twice
            if path not in kept.values():
                discard(path)
        self._make_room(key, sum(path.stat().st_size for path in kept.values()), expected_bytes)
        make_folder(folder)
        created = manifest["created"] if manifest else datetime.now(UTC).isoformat(timespec="seconds")
        plan = {"schema": SCHEMA, "key": key, "meta": meta, "n_shards": n_shards, "expected_bytes": expected_bytes}
        plan |= {"created": created, "complete": False, "shards": []}
        if manifest != plan:
            write_manifest(folder, plan)
        _touch(folder / USED)
        return Writer(folder, key, n_shards, set(kept), damaged)

    def _make_room(self, key: str, present: int, expected: int) -> None:
        """Evict what the budget asks for; refuse an entry that the budget or the disk cannot hold."""
        if self.budget_bytes is not None:
            if expected > self.budget_bytes:
                raise InputError(
                    f"This capture takes {human_bytes(expected)}, more than the store's whole budget of "
                    f"{human_bytes(self.budget_bytes)}; raise the budget (WORKBENCH_STORE_BUDGET) or keep "
                    f"fewer sites or positions."
                )
            self._evict(self.budget_bytes - expected, spare=key)
        place = next(path for path in (self.root, *self.root.parents) if path.exists())
        free, needed = shutil.disk_usage(place).free, max(0, expected - present) + RESERVE
        if needed > free:
            raise InputError(
                f"This capture takes {human_bytes(needed)} and the disk of {self.root} has only "
                f"{human_bytes(free)}; free "
                f"some space (`workbench cache gc`), move the cache (WORKBENCH_CACHE) or keep fewer sites or positions."
            )

    def _complete(self, writer: Writer) -> None:
        manifest = read_manifest(writer.folder)
        files = [
            {"file": path.name, "bytes": path.stat().st_size} for _, path in sorted(shards_in(writer.folder).items())
        ]
        write_manifest(writer.folder, manifest | {"complete": True, "shards": files})
        writer.complete = True
        try:
            listing(self.root)
        except OSError as error:  # the listing can be made again at any time; the data are safe
            logger.warning("The listing of the store could not be written: %s.", error.strerror or error)

    def _evict(self, budget: int | None, *, spare: str | None = None) -> pl.DataFrame:
        """Remove least recently used entries, other than ``spare``, until the others take at most ``budget`` bytes."""
        entries = listing(self.root)
        entries = entries.filter(entries["key"] != spare) if spare else entries
        total, gone = int(entries["bytes"].sum()), []
        for key, size, n_shards in entries.sort("last_used").select("key", "bytes", "n_shards").iter_rows():
            # a folder without a shard goes in any case, and one that cannot be read
            if size and n_shards is not None and (budget is None or total <= budget):
                continue
            if self._remove(key):
                gone.append((key, size))
                total -= size
        if gone:
            listing(self.root)
        if budget is not None and total > budget:
            logger.warning("The store keeps %s over its budget: these entries are in use.", human_bytes(total - budget))
        return entries.select("key", "bytes").clear().vstack(_listing(gone))

    def _remove(self, key: str) -> bool:
        """Remove one entry unless somebody is reading or writing it."""
        folder = self._folder(key)
        try:
            with lock(self.root, key, check=_busy):
                handle = hold(folder / USED, exclusive=True)
                if handle is None and (folder / USED).is_file():
                    return False
                if folder.is_dir() and not folder.is_symlink():
                    discard(folder / MANIFEST)  # first: from here on the entry is not complete
                discard(folder)
                if handle is not None:
                    handle.close()
        except _Busy:
            return False
        return not os.path.lexists(folder)

    def _drop(self, path: Path) -> None:
        """Remove a damaged shard, unless it was replaced in the meantime or its entry is being written."""
        try:
            with lock(self.root, path.parent.name, check=_busy):
                try:
                    shards.check(path)
                except DamagedShard:
                    discard(path)
        except (_Busy, OSError):  # a writer checks every shard itself; a read-only store keeps what it has
            pass


class _Busy(Exception):
    """Somebody else holds the lock."""


def _busy() -> None:
    raise _Busy


def _touch(path: Path) -> None:
    """Note that an entry was used now; a store that may only be read keeps the old time."""
    try:
        mark(path)
    except OSError:
        pass


def _manifest_problem(folder: Path) -> tuple[str, str] | None:
    """What is the matter with the manifest of an entry: missing or damaged, and a sentence; None where nothing is."""
    try:
        require_manifest(folder)
    except FileNotFoundError:
        return "missing", f"The entry has no {MANIFEST}."
    except InputError as error:
        return "damaged", str(error)
    return None


def _sweep(folder: Path) -> None:
    """Remove the temporary files of a killed writer. The caller holds the lock of the entry."""
    for path in folder.glob(f".*{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def _listing(rows: list[tuple[str, int]]) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame(rows, schema={"key": pl.String, "bytes": pl.Int64}, orient="row")
