"""The loop of decoding: rows that are continued a token at a time, and looked at every few steps.

The device is not waited for at every step. What it chose is fed back where it is, and every few steps the host looks at
the tokens of all steps since it looked last: rows that have come to an end leave the batch then, and what they were
made to write beyond their end is dropped, so that the texts do not depend on how often anybody looks. On a CPU, where
looking costs nothing, that is every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from workbench.engine.edits import Edit, apply
from workbench.engine.endings import Texts
from workbench.engine.kv_cache import empty_cache, select_rows
from workbench.engine.sampling import check_steps
from workbench.models.batching import Batch, sent
from workbench.models.model import Model
from workbench.models.running_pass import PassPositions

LOOK = 8  # steps between two looks at an accelerator

# Scores [rows, V] and the keys of the step [rows] (None: nothing is drawn) → tokens [R], and what is said of them
# [R, …].
Choose = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]


def steps_between_looks(device: torch.device) -> int:
    """How many steps are made on a device before the host looks at what they chose."""
    return 1 if device.type == "cpu" else LOOK


class Rows:
    """Rows being continued: their key/value cache, and what its columns hold, laid out to the end beforehand.

    batch: the prompts, padded on the left; room: how many tokens may follow."""

    def __init__(self, model: Model, batch: Batch, room: int):
        self.model, self.cache = model, empty_cache(model)
        self.columns = 0  # that were read
        self.width = batch.ids.shape[1]
        self.keys: torch.Tensor | None = None  # [rows, room] int64, where something is drawn
        more = torch.arange(room)
        sizes = torch.tensor(batch.sizes)[:, None]
        self.real = torch.nn.functional.pad(batch.real, (0, room), value=True)
        positions, there = sent([sizes + more, torch.ones((len(sizes), room), dtype=torch.long)], batch.ids.device)
        self.ids = torch.nn.functional.pad(batch.ids, (0, room))
        self.mask = torch.cat([batch.mask, there.bool()], 1)
        self.positions = torch.cat([batch.position_ids, positions], 1)
        self.key_positions = torch.where(self.mask, self.positions, -1)

    def read(self, stop: int) -> torch.Tensor:
        """Run the columns up to `stop` → scores of the last of them [B, V], in the model's dtype."""
        batch, whole = self._columns(self.columns, stop), self._columns(0, stop)
        here = PassPositions(batch.position_ids, batch.mask, self.key_positions[:, :stop], whole)
        self.columns = stop
        # A cache turns the mask-free path off, so an all-real mask is only passed where the model needs one.
        return self.model.forward(batch, cache=self.cache, here=here, last_logits=1).logits[:, -1]

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        """Run one more token [B] per row → scores [B, V]."""
        self.ids[:, self.columns] = ids
        return self.read(self.columns + 1)

    def _columns(self, start: int, stop: int) -> Batch:
        ids, mask, positions, real = (t[:, start:stop] for t in (self.ids, self.mask, self.positions, self.real))
        return Batch(ids, mask, positions, "left", real)

    def key(self) -> torch.Tensor | None:
        """The keys [B] of the token that is chosen next."""
        return None if self.keys is None else self.keys[:, self.columns - self.width]

    def select(self, rows: Sequence[int]) -> torch.Tensor:
        """Go on with these rows only (or repeat them); → [k], the rows where the ids are."""
        (index,) = sent([torch.tensor(rows)], self.ids.device)
        select_rows(self.cache, index)
        self.ids, self.mask, self.positions, self.key_positions = (
            t[index] for t in (self.ids, self.mask, self.positions, self.key_positions)
        )
        self.real = self.real[list(rows)]
        self.keys = None if self.keys is None else self.keys[index.to(self.keys.device)]
        return index


@dataclass(frozen=True, eq=False)
class Decoding:
    """How rows are decoded: what chooses, what edits the rows that are named, and who is told of every step."""

    choose: Choose
    edits: Callable[[list[int]], Sequence[Edit]]
    told: Callable[[int], None]  # that this many steps are made; may raise (cancellation)
    sides: int = 1  # rows of the batch for each text: those of one side after those of the other


@torch.no_grad()
def decode(rows: Rows, scores: torch.Tensor, texts: Texts, how: Decoding) -> None:
    """Write `texts` after rows whose prompts were read, with these scores [rows, V] of their last tokens.

    Raises RunFailed for scores that are NaN or infinite."""
    model, every = rows.model, steps_between_looks(scores.device)
    steps, chosen, found = 0, [], []
    look = min(every, texts.shortest)  # beyond its room a row would come to positions that the model does not have
    while True:
        token, more = how.choose(scores, rows.key())
        token = token.to(model.device)
        chosen.append(token)
        found.append(more)
        steps += 1
        if len(chosen) == look:
            before = len(texts.alive)
            said = torch.stack(found).to("cpu", non_blocking=True)  # it is there when the tokens are, which come after
            keep = texts.take(torch.stack(chosen).tolist(), said)
            check_steps(texts.counted(), model.name)
            if not keep:
                return
            if len(keep) < before:
                index = rows.select([k + side * before for side in range(how.sides) for k in keep])
                token = token[index[: len(keep)]]
            chosen, found, look = [], [], min(every, texts.shortest)
        how.told(steps)
        with apply(model, how.edits(texts.alive)):
            scores = rows.feed(token if how.sides == 1 else token.repeat(how.sides))
