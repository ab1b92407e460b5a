"""The store against plain safetensors files: reading. See ``store.py``. Run: ``python -m tests.benchmarks.store_read``.

Both sides map the same files, so nothing is read before it is used: a read here ends when every byte has been summed.
The store compares every byte with its checksum the first time.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.benchmarks.store import SCALES, capture_like, disk, interleave, row, same_bits, write_entry
from workbench.store.activation_store import Store

NAME = "store read"


def measure(device: str = "cpu", scale: str = "small") -> dict:
    """Bytes per second from the disk (the system's copy in memory dropped before each run), every byte checked and
    summed. ``details`` adds the ratios where the files are in memory already: the first, checked read of a store
    object, and its later reads, which are not checked again."""
    n_shards, n_bytes = SCALES[scale]
    tensors = capture_like(n_bytes)
    with tempfile.TemporaryDirectory(dir=disk()) as folder:
        root = Path(folder)
        agreement = same_bits(root / "agreement", tensors)
        key = write_entry(Store(root / "store"), tensors, n_shards)
        files = sorted(
            (root / "store").rglob("*.safetensors")
        )  # the same files for both: how a file was written matters
        known = Store(root / "store")

        def plain() -> None:
            for path in files:
                use(load_file(path))

        def first() -> None:
            read(Store(root / "store"), key)

        def later() -> None:
            read(known, key)

        cold = interleave({"plain": plain, "ours": first}, before=lambda: forget(files))
        warm_first = interleave({"plain": plain, "ours": first})
        warm_later = interleave({"plain": plain, "ours": later})
    result = row(NAME, "safetensors load_file", cold, n_shards * n_bytes, agreement, scale)
    for label, seconds in (("in_memory_first", warm_first), ("in_memory_later", warm_later)):
        result["details"][label] = row(NAME, "", seconds, n_shards * n_bytes, agreement, scale)["ratio"]
    return result


def read(store: Store, key: str) -> None:
    with store.get(key) as entry:
        for i in range(entry.n_shards):
            use(entry.read(i))


def use(tensors: dict[str, torch.Tensor]) -> None:
    for value in tensors.values():
        value.sum()


def forget(files: list[Path]) -> None:
    """Drop the system's copies of the files, so that the next read goes to the disk (Linux; elsewhere they stay)."""
    for path in files:
        with open(path, "rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(), indent=2))
