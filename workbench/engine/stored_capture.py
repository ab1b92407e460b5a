"""Captures that are kept on disk: the key under which they are found, the shards they are cut into, and going on where
an interrupted one stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.core.errors import RunFailed
from workbench.core.wording import human_bytes
from workbench.engine.edits import describe
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.models.recording import Positions, differ_by_prompt
from workbench.models.sinks import SpanMeans, beside_sinks
from workbench.models.sites import Site
from workbench.store.activation_store import Store, fingerprint
from workbench.store.shards import DamagedShard

if TYPE_CHECKING:
    from workbench.core.context import Context

VERSION = 3  # of what a stored capture means; raise it when the same key would hold other numbers
SHARD_BYTES = 64 * 1024 * 1024
# Beside the activations a shard holds which prompts they are of: their rows and lengths [m] int64, and the token ids of
# all of them one behind the other, int32. With them a capture can be read without whoever asked for it.
ROWS, LENGTHS, IDS = PROMPTS = ("prompt.rows", "prompt.lengths", "prompt.ids")

Captured = dict[Site, torch.Tensor]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be captured: of which prompts (token ids), where, and how the pass is run."""

    model: Model
    ids: Sequence[Sequence[int]]
    sites: list[Site]
    positions: Positions = "last"
    dtype: torch.dtype = torch.float32
    side: str = "right"
    engine: str = "hf"
    run: Pass = Pass()

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]

    def key(self) -> str:
        """The store's key: changes with the weights, the exact tokens, the sites, the positions, the dtypes and the
        edits."""
        where = self.positions
        if isinstance(where, SpanMeans):
            where = {"spans": [list(span) for span in where.spans], "beside_sinks": where.beside_sinks}
        elif not isinstance(where, str):
            where = [list(p) if isinstance(p, Sequence) else p for p in where]
        return fingerprint(
            {
                "what": "capture",
                "version": VERSION,
                "model": self.model.fingerprint,
                "tokenizer": self.model.tokenizer_fingerprint,
                "model_dtype": str(self.model.dtype),
                "ids": [list(map(int, row)) for row in self.ids],
                "sites": [str(site) for site in self.sites],
                "positions": where,
                "dtype": str(self.dtype),
                "edits": describe(self.run.edits),
                "side": self.side,
                "engine": self.engine,
            }
        )

    def predicted_bytes(self) -> int:
        """Bytes that the capture will take, known before it starts."""
        rows = len(self.ids)
        if self.positions == "all":
            rows = sum(self.lengths)
        elif not isinstance(self.positions, str | SpanMeans):
            rows *= len(self.positions[0]) if differ_by_prompt(self.positions) else len(self.positions)
        more = beside_sinks(self.positions)
        return rows * sum(self.model.site_size(site) + more for site in self.sites) * self.dtype.itemsize

    def blocks(self) -> list[list[int]]:
        """The rows of every shard. What a shard holds follows from the lengths alone, never from the size of batches:
        the key does not name it, and another run must find every prompt where this one put it. Rows are in the order of
        batches: by length."""
        lengths = self.lengths
        tokens = lengths if self.positions == "all" else [1] * len(lengths)
        per_token = max(1, self.predicted_bytes() // max(1, sum(tokens)))
        out: list[list[int]] = []
        size = SHARD_BYTES
        for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
            if size >= SHARD_BYTES:
                out.append([])
                size = 0
            out[-1].append(i)
            size += tokens[i] * per_token
        return out

    def about(self) -> dict[str, object]:
        """What the store's listing says of the capture."""
        return {
            "model": self.model.name,
            "sites": [str(site) for site in self.sites],
            "positions": self.positions if isinstance(self.positions, str) else "given",
            "dtype": str(self.dtype).removeprefix("torch."),
            "prompts": len(self.ids),
            "tokens": sum(self.lengths),
            "tokenizer": self.model.tokenizer_fingerprint,
        }

    def prompts(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """What a shard says of its prompts."""
        flat = [int(token) for row in rows for token in self.ids[row]]
        lengths = [len(self.ids[row]) for row in rows]
        found = (torch.tensor(list(rows)), torch.tensor(lengths), torch.tensor(flat, dtype=torch.int32))
        return dict(zip(PROMPTS, found))


def through_store(
    request: Request, store: Store, compute: Callable[[list[list[int]]], Iterator[Captured]], context: Context | None
) -> Iterator[tuple[list[int], Captured]]:
    """(rows, activations) of every shard: read where it is stored, computed and stored where it is not."""
    name, blocks, n = request.key(), request.blocks(), len(request.ids)
    given, computed = 0, False
    for _ in range(10):  # two turns repair everything, unless other processes evict or repair at the same moment
        entry = store.get(name)
        if entry is None or entry.n_shards != len(blocks):
            computed = True
            _write(request, store, name, blocks, compute, context, given)
            continue
        try:
            with entry:
                while given < len(blocks):
                    stored = entry.read(given, [str(site) for site in request.sites])
                    found = {site: stored[str(site)] for site in request.sites}
                    given += 1
                    if context is not None and not computed:
                        context.count(cache_hits=1)
                        context.progress(sum(map(len, blocks[:given])), n, "capture (stored)")
                    yield blocks[given - 1], found
                    del found, stored  # before the next shard is mapped
            return
        except DamagedShard:  # it was dropped: the writer computes it again
            continue
    raise RunFailed("The stored capture is damaged again each time it is written; the disk of the store is failing.")


def _write(
    request: Request,
    store: Store,
    name: str,
    blocks: list[list[int]],
    compute: Callable[[list[list[int]]], Iterator[Captured]],
    context: Context | None,
    given: int,
) -> None:
    """Compute and store the shards that are not there. `given`: how many were handed out before a damaged one was
    met."""
    total, done = request.predicted_bytes(), 0
    logger.info("Storing %s of activations in %s.", human_bytes(total), store.root)
    if context is not None:
        context.progress(0, len(request.ids), f"storing {human_bytes(total)} of activations")
    more = 16 * len(request.ids) + 4 * sum(request.lengths)  # what is said of the prompts
    options = {"n_shards": len(blocks), "expected_bytes": total + more, "check": request.run.check}
    with store.writer(name, request.about(), **options) as writer, ThreadPoolExecutor(1, "store") as beside:
        writing: Future[None] | None = None  # at most one shard is on its way to the disk while the next is computed
        missing = writer.missing
        computed, lacking = compute([blocks[i] for i in missing]), set(missing)
        for i, rows in enumerate(blocks):
            if i in lacking:
                found = {str(site): tensor for site, tensor in next(computed).items()}
                if writing is not None:
                    writing.result()  # what the disk refused is raised here
                writing = beside.submit(writer.write, i, found | request.prompts(rows))
                del found
            elif context is not None and i >= given:  # those given out before are counted already
                context.count(cache_hits=1)
            done += len(rows)
            if context is not None:
                context.progress(done, len(request.ids), "capture")
        if writing is not None:
            writing.result()
