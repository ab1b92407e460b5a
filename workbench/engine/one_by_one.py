"""Rows that are continued, and the plain way to make a step with them: the host launches one operation at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from workbench.engine.edits import Edit, apply
from workbench.engine.kv_cache import empty_cache, select_rows
from workbench.models.batching import Batch, sent
from workbench.models.devices import is_cpu
from workbench.models.model import Model
from workbench.models.running_pass import PassPositions

LOOK = 8  # steps between two looks at an accelerator

# Scores [rows, V] and the keys of the step [rows] (None: nothing is drawn) → tokens [R], and what is said of them
# [R, …].
Choose = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]


def steps_between_looks(device: torch.device) -> int:
    """How many steps are made on a device before the host looks at what they chose."""
    return 1 if is_cpu(device) else LOOK


class DecodedRows:
    """Rows being continued: their key/value cache, and what its columns hold, laid out to the end beforehand.

    batch: the prompts, padded on the left; room: how many tokens may follow; cache: the keys and values of all of
    `batch`, where it was read already."""

    def __init__(self, model: Model, batch: Batch, room: int, cache: DynamicCache | None = None):
        self.model = model
        self.cache = empty_cache(model, batch.ids.shape[1]) if cache is None else cache
        self.columns = 0 if cache is None else batch.ids.shape[1]  # that were read
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


class OneByOne:
    """Steps that the host launches one operation at a time. scores: those of the last tokens of the prompts."""

    def __init__(self, rows: DecodedRows, how: Decoding, scores: torch.Tensor):
        self.rows, self.how, self.scores = rows, how, scores
        self.chosen: list[torch.Tensor] = []
        self.found: list[torch.Tensor] = []
        self.most = steps_between_looks(scores.device)
        self._choose()

    @property
    def pending(self) -> int:
        return len(self.chosen)

    def _choose(self) -> None:
        token, found = self.how.choose(self.scores, self.rows.key())
        self.token = token.to(self.rows.ids.device)
        self.chosen.append(token)  # where `found` is, so that one wait is enough for both
        self.found.append(found)

    def step(self, alive: list[int]) -> None:
        """Make a step, edited as the texts `alive` are."""
        with apply(self.rows.model, self.how.edits(alive)):
            self.scores = self.rows.feed(self.token if self.how.sides == 1 else self.token.repeat(self.how.sides))
        self._choose()

    def look(self) -> tuple[list[list[int]], torch.Tensor]:
        """The tokens of the pending steps, and what was found [steps, rows, …]."""
        said = on_host(torch.stack(self.found), torch.stack(self.chosen))
        self.chosen, self.found = [], []
        return said

    def keep(self, places: list[int]) -> None:
        """Go on with these of the rows looked at."""
        rows = len(self.token)
        index = self.rows.select([k + side * rows for side in range(self.how.sides) for k in places])
        self.token = self.token[index[: len(places)]]


def on_host(found: torch.Tensor, chosen: torch.Tensor) -> tuple[list[list[int]], torch.Tensor]:
    """Tokens [steps, rows] and what was found in them, waited for once."""
    said = found.to("cpu", non_blocking=True)  # it is there when the tokens are, which come after it
    return chosen.tolist(), said
