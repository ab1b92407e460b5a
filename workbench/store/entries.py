"""An entry of the store, open for reading or being written, and the lock that a reader holds on it."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError, RunFailed
from workbench.core.files import open_plain
from workbench.core.locks import NO_LOCKS, no_locks
from workbench.store import shards
from workbench.store.shards import DamagedShard

try:
    import fcntl
except ImportError:  # Windows refuses to remove a file that somebody has open, which serves the same purpose
    fcntl = None

if TYPE_CHECKING:
    import torch

    from workbench.store.activation_store import Store

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Entry:
    """A complete entry, open for reading; a context manager. It is not evicted before ``close`` or its end of life;
    tensors that were read stay valid after that."""

    def __init__(self, store: Store, folder: Path, manifest: dict[str, Any], handle):
        self.key: str = manifest["key"]
        self.meta: dict[str, Any] = manifest["meta"]
        self.n_shards: int = len(manifest["shards"])
        self.bytes: int = sum(item["bytes"] for item in manifest["shards"])
        self._store = store
        self._release = weakref.finalize(self, handle.close)
        self._paths = [folder / item["file"] for item in manifest["shards"]]

    def read(self, index: int, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """The named tensors (all by default) of one shard, on the CPU, mapped from the file; writing into one changes
        neither the file nor another read.

        Every byte is compared with its checksum when it is first read by this Store, and again when the file changed. A
        damaged shard is dropped, so that the next writer of the key computes it again, and raised as DamagedShard."""
        shard = self._checked_shard(index, names)
        return {name: shard.tensor(name) for name in (shard.specs if names is None else names)}

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor concatenated over all shards along its first dimension. Errors as for ``read``."""
        chunks = [self.read(index, [name])[name] for index in range(self.n_shards)]
        if len(chunks) == 1:
            return chunks[0]
        import torch

        return torch.cat(chunks)

    def close(self) -> None:
        """Let the entry be evicted."""
        self._release()

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _checked_shard(self, index: int, names: Sequence[str] | None) -> shards.Shard:
        path = self._paths[index]
        try:
            shard = shards.Shard(path)
            unknown = [name for name in names or () if name not in shard.specs]
            if unknown:
                raise InputError(
                    f"Shard {index} of the entry {self.key} has no {unknown[0]!r}; it has {', '.join(shard.specs)}."
                )
            stamp, sound = self._store._checked.get(path, (None, set()))
            if stamp != shard.stamp:
                stamp, sound = shard.stamp, set()
                self._store._checked[path] = (stamp, sound)
            fresh = [name for name in (shard.specs if names is None else names) if name not in sound]
            shard.check(fresh)
            sound.update(fresh)
        except DamagedShard:
            self._store._drop(path)
            raise
        return shard


class Writer:
    """An entry being written; made by ``Store.writer``."""

    def __init__(
        self, folder: Path, key: str, n_shards: int, done: set[int], damaged: list[str], *, complete: bool = False
    ):
        self.folder, self.key, self.n_shards, self.complete = folder, key, n_shards, complete
        self.done = done  # indices of the shards that need no computing
        self.damaged = damaged  # names of the shards that an earlier attempt left damaged, and that were dropped

    @property
    def missing(self) -> list[int]:
        """The indices that remain to be written."""
        return [index for index in range(self.n_shards) if index not in self.done]

    def write(self, index: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store one shard: torch tensors (or numpy arrays) by name. Its bytes are on disk when this returns.

        Raises RunFailed when the disk refuses it, leaving nothing half-written; finished shards are kept for the next
        attempt.
        """
        if index not in range(self.n_shards):
            raise ValueError(f"shard {index} of an entry of {self.n_shards}")
        if index in self.done:
            raise ValueError(f"shard {index} is stored already; compute only those in Writer.missing")
        try:
            shards.write(self.folder, index, tensors)
        except OSError as error:
            what = f"Shard {index} of {self.n_shards} could not be stored. "
            raise RunFailed(
                what + refused(error, self.folder) + " Finished shards are kept; the same run goes on from them."
            ) from error
        self.done.add(index)


@contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turn what the system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise RunFailed(refused(error, place)) from error


def refused(error: OSError, place: Path) -> str:
    """One sentence on what the system said."""
    if error.errno in FULL:
        advice = "free some space (`workbench cache gc`) or move the cache (WORKBENCH_CACHE)"
        return f"The disk of {place} is full ({error.strerror}); {advice}."
    return f"The disk of {place} refused to write ({error.strerror or error})."


def hold(path: Path, *, exclusive: bool = False):
    """Open ``path`` with a shared lock (waiting for it), or an exclusive one (not waiting). None when that is not
    possible or the file was removed while waiting. Closing the file, or the end of the process, gives the lock back."""
    try:
        file = open_plain(path)  # kept open on purpose
    except OSError:
        return None
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except OSError as error:
        # nobody can evict an entry of a store that may only be read: it is read without a lock
        if error.errno in NO_LOCKS and not exclusive and not os.access(path.parent, os.W_OK):
            return file
        file.close()
        if error.errno in NO_LOCKS:
            raise no_locks(path, error) from None
        return None
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        return None
    return file
