"""The store against plain safetensors files: writing.

The reference is ``safetensors.torch.save_file`` followed by fsync, one file per shard. The store does more in the same
time: it takes the lock of the entry, checks the space, hashes every byte, writes the manifest, flushes the folder and
updates the listing.
``store_read.py`` measures the way back. Run with ``python -m tests.benchmarks.store``.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from workbench.core.paths import cache_root
from workbench.store.activation_store import Store, fingerprint

NAME = "store write"
# shards of an entry and bytes of each: what a capture of a few sites makes
SCALES = {"small": (8, 32 << 20), "large": (16, 256 << 20)}
ROUNDS = 9


def measure(device: str = "cpu", scale: str = "small") -> dict:
    """Bytes per second of a finished, durable write, the store's against plain files of the same tensors."""
    n_shards, n_bytes = SCALES[scale]
    tensors = capture_like(n_bytes)
    with tempfile.TemporaryDirectory(dir=disk()) as folder:
        root = Path(folder)
        agreement = same_bits(root / "agreement", tensors)
        runs = iter(range(10**6))

        def plain() -> None:
            target = root / f"plain{next(runs)}"
            target.mkdir()
            for i in range(n_shards):
                save_synced(tensors, target / f"{i}.safetensors")

        def ours() -> None:
            write_entry(Store(root / f"store{next(runs)}"), tensors, n_shards)

        seconds = interleave({"plain": plain, "ours": ours}, after=lambda: empty(root))
    return row(NAME, "safetensors save_file + fsync", seconds, n_shards * n_bytes, agreement, scale)


def capture_like(n_bytes: int) -> dict[str, torch.Tensor]:
    """Four residual sites of width 1024 in fp32, ``n_bytes`` together."""
    rows = n_bytes // (4 * 4 * 1024)
    generator = torch.Generator().manual_seed(0)
    return {f"resid_post.{layer}": torch.randn(rows, 1024, generator=generator) for layer in range(4)}


def save_synced(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A plain safetensors file that survives a power cut."""
    save_file(tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_entry(store: Store, tensors: dict[str, torch.Tensor], n_shards: int) -> str:
    """One finished entry whose shards all hold ``tensors``; its key."""
    key = fingerprint({"benchmark": n_shards})
    n_bytes = n_shards * sum(value.nbytes for value in tensors.values())
    with store.writer(key, {"shards": n_shards}, n_shards=n_shards, expected_bytes=n_bytes) as writer:
        for i in writer.missing:
            writer.write(i, tensors)
    return key


def same_bits(root: Path, tensors: dict[str, torch.Tensor]) -> str:
    """The gate before any number: what the store, and safetensors itself, read back equals what was written."""
    store = Store(root)
    key = write_entry(store, tensors, 2)
    with store.get(key) as entry:
        for read in (entry.read(0), entry.read(1), load_file(next(root.rglob("00001-*.safetensors")))):
            if set(read) != set(tensors) or not all(torch.equal(read[name], value) for name, value in tensors.items()):
                raise AssertionError("the store returned other values than were written: no speed is reported")
    store.clear()
    return "bit for bit"


def interleave(
    variants: dict[str, Callable[[], object]],
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of ``ROUNDS`` runs of each variant, taken in turn (reversed every round) after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(ROUNDS + 1):
        for name in list(variants) if turn % 2 else list(reversed(variants)):
            before()
            start = time.perf_counter()
            variants[name]()
            took = time.perf_counter() - start
            after()
            if turn:
                seconds[name].append(took)
    return seconds


def row(name: str, reference: str, seconds: dict[str, list[float]], n_bytes: int, agreement: str, scale: str) -> dict:
    """One line of the published table, from the seconds of "plain" and "ours": medians, median of paired ratios."""
    speed = {which: n_bytes / statistics.median(took) / 1e9 for which, took in seconds.items()}
    ratios = sorted(plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"]))
    details = {"against": reference, "bytes": n_bytes, "rounds": len(ratios), "scale": scale}
    details |= {"ratio_low": round(ratios[1], 3), "ratio_high": round(ratios[-2], 3)}
    return {
        "name": name,
        "unit": "GB/s",
        "reference": round(speed["plain"], 3),
        "ours": round(speed["ours"], 3),
        "ratio": round(statistics.median(ratios), 3),
        "agreement": agreement,
        "details": details,
    }


def disk() -> Path:
    """Where the store really is: speed on another disk says nothing about it."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    return root


def empty(root: Path) -> None:
    """Remove what the last run wrote and wait until the disk is idle again."""
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    os.sync()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(), indent=2))
