"""Similarity of sparse non-negative rows to dense prototypes, at the cost of the entries that are there.

With S = Σ z, P = Σ p and m = Σ min(z, p) over the support of z, the generalised Jaccard (Ruzicka) similarity Σ min / Σ
max is m / (S + P − m): the same number as the dense formula, and the other measures reduce to sums over the support in
the same way (docs/methods/data-selection.md). All sums are in float64, so that neither the order of tokens nor the
batch changes a ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from workbench.core.errors import InputError
from workbench.models.devices import is_cpu

KINDS = ("jaccard", "cosine", "euclidean", "containment")
# Numbers of the dense buffer in which the tokens of some samples are summed.
BUFFER, BUFFER_ON_GPU = 32_000_000, 256_000_000
BLOCK = 8_000_000  # numbers held at once while rows are compared with several prototypes


@dataclass(eq=False)
class Rows:
    """`n` sparse rows of `width` numbers, by entries: entry e says that row[e] holds value[e] ≥ 0 at feature[e].

    An entry may be there once at most. row and feature are int64 [entries], value is floating point."""

    row: torch.Tensor
    feature: torch.Tensor
    value: torch.Tensor
    n: int
    width: int

    def dense(self) -> torch.Tensor:
        """[n, width], in the values' dtype."""
        out = self.value.new_zeros(self.n, self.width)
        out[self.row, self.feature] = self.value
        return out

    def sums(self, values: torch.Tensor | None = None) -> torch.Tensor:
        """The sum of each row (or of other numbers [entries] of the same entries), float64 [n]."""
        values = self.value if values is None else values
        return torch.zeros(self.n, dtype=torch.float64, device=values.device).index_add_(0, self.row, values.double())

    @cached_property
    def totals(self) -> torch.Tensor:
        """The sum of each row, float64 [n]."""
        return self.sums()

    def take(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(features, values) of one row."""
        own = self.row == row
        return self.feature[own], self.value[own]

    def only(self, rows: torch.Tensor) -> Rows:
        """The same, with nothing left in the other rows."""
        kept = torch.zeros(self.n, dtype=torch.bool, device=self.row.device).index_fill_(0, rows, True)[self.row]
        return Rows(self.row[kept], self.feature[kept], self.value[kept], self.n, self.width)

    def divided(self, by: torch.Tensor) -> Rows:
        """Every row i divided by by[i]."""
        return Rows(self.row, self.feature, self.value / by.to(self.value)[self.row], self.n, self.width)


def stack(blocks: Sequence[Rows]) -> Rows:
    """Blocks of rows below each other."""
    starts = [sum(block.n for block in blocks[:i]) for i in range(len(blocks))]
    row = torch.cat([block.row + start for block, start in zip(blocks, starts)])
    return Rows(
        row,
        torch.cat([p.feature for p in blocks]),
        torch.cat([p.value for p in blocks]),
        sum(p.n for p in blocks),
        blocks[0].width,
    )


def check_values(value: torch.Tensor) -> None:
    """Raise InputError unless all are finite and none is negative: min and max sums mean nothing otherwise."""
    if value.numel() and not bool(torch.isfinite(value).all()):
        raise InputError("A feature activation is NaN or infinite; load the model in float32 or bfloat16.")
    if value.numel() and float(value.min()) < 0:
        raise InputError(
            f"A feature activation is negative ({float(value.min()):.3g}); sparse rows and their similarities "
            f"need activations of at least zero, as ReLU and TopK autoencoders give them."
        )


def entries(
    value: torch.Tensor, active: torch.Tensor, column: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row, column, value) of the `active` [n, c] of some numbers [n, c], rows ascending. `column` [n, c]: where each
    stands (None: at its own column).

    The host waits for an accelerator once. Raises InputError as `check_values` does of those that are active."""
    flat, bad = active.flatten(), True
    if is_cpu(value.device):
        places = flat.nonzero()[:, 0]
    else:
        wrong = active & ~(value.isfinite() & (value >= 0))
        count, bad = torch.stack([flat.sum(), wrong.any()]).tolist()
        places = places_of(flat, count)
    kept, c = value.flatten()[places], value.shape[1]
    if bad:
        check_values(kept)
    return places // c, places % c if column is None else column.flatten()[places], kept


def places_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """The places [count] of what is True in a mask [n], ascending, where it is known how many they are: nobody waits.
    (`torch.nonzero_static` does the same where a device has it.)"""
    target = torch.where(mask, mask.cumsum(0) - 1, count)
    places = torch.empty(count + 1, dtype=torch.int64, device=mask.device)
    return places.scatter_(0, target, torch.arange(len(mask), device=mask.device))[:count]


def sum_tokens(tokens: Rows, owner: torch.Tensor, n: int, start_from: torch.Tensor | None = None) -> Rows:
    """Token rows summed by the sample that owns them (owner [tokens.n], ascending or not), from `start_from` [width] on
    where given → n rows in float64. The host waits for an accelerator once for each block of samples."""
    per = max(1, (BUFFER if is_cpu(owner.device) else BUFFER_ON_GPU) // tokens.width)
    whose = owner[tokens.row]
    blocks = []
    for start in range(0, n, per):
        size = min(per, n - start)
        mine = slice(None) if size == n else ((whose >= start) & (whose < start + size))
        buffer = (
            torch.zeros(size * tokens.width, dtype=torch.float64, device=owner.device)
            if start_from is None
            else start_from.double().repeat(size)
        )
        buffer.index_add_(0, (whose[mine] - start) * tokens.width + tokens.feature[mine], tokens.value[mine].double())
        place = buffer.nonzero()[:, 0]
        blocks.append((place // tokens.width + start, place % tokens.width, buffer[place]))
    row, feature, value = (torch.cat(column) for column in zip(*blocks))
    return Rows(row, feature, value, n, tokens.width)


def similarity(
    rows: Rows, prototypes: torch.Tensor, kind: str = "jaccard", *, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Similarity of every row to every prototype [P, width] → [n, P], computed in `dtype`; larger is more alike for
    every kind.

    "jaccard": Σ min / Σ max · "cosine" · "euclidean": minus the distance · "containment": the share Σ min / Σ p of the
    prototype that the row covers. A row and a prototype without any entry are alike (1) for jaccard; cosine with an
    empty row is 0."""
    if kind not in KINDS:
        raise InputError(f"'{kind}' is not a similarity; choose {', '.join(KINDS)}.")
    prototypes = prototypes.to(rows.value.device, dtype)
    value, least = rows.value.to(dtype), kind in ("jaccard", "containment")
    # Σ z of each row where the measure asks for it, else Σ z²
    own = rows.totals if kind == "jaccard" else None if least else rows.sums(rows.value.double() ** 2)
    own = None if own is None else own.to(value)[:, None]
    columns = []
    for p in prototypes.split(max(1, BLOCK // max(1, len(value)))):
        at = p.T.contiguous()[rows.feature]  # [entries, P]
        part = torch.minimum(at, value[:, None], out=at) if least else at.mul_(value[:, None])
        shared = value.new_zeros(rows.n, len(p)).index_add_(0, rows.row, part)
        if least:
            whole = p.sum(1) if own is None else own + p.sum(1) - shared
            score = torch.where(whole > 0, shared / whole, 1.0 if kind == "jaccard" else 0.0)
        elif kind == "cosine":
            score = (shared / (own * (p * p).sum(1)).sqrt()).nan_to_num(0.0)
        else:
            score = -(own - 2 * shared + (p * p).sum(1)).clamp(min=0).sqrt()
        columns.append(score)
    return torch.cat(columns, dim=1)


def dense_cosine(x: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Cosine of dense rows [n, d] of either sign with prototypes [P, d] → float64 [n, P]; 0 for a zero row."""
    x, prototypes = x.double(), prototypes.to(x.device, torch.float64)
    norms = x.norm(dim=1)[:, None] * prototypes.norm(dim=1)
    return torch.where(norms == 0, 0.0, x @ prototypes.T / norms)


def top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k largest of [n], best first; the earlier row where two are equal."""
    return torch.argsort(scores, descending=True, stable=True)[:k]
