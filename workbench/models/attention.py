"""Attention rows and attention edits, computed inside the model's own forward pass.

Models run with an attention function of ours, registered with `transformers.AttentionInterface`. Without readers or
edits it is SDPA, untouched. With readers it also computes, in float32 and only for the query rows asked for, the
post-rotary attention row, hands it to a reduction on the device and keeps what the reduction returns: layers × heads ×
S × S is never held. With edits it changes what the heads attend to. Architectures that do not go through the interface
(Falcon, GPT-J) are read from the weights that their own eager attention returns, layer by layer, and refuse attention
edits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from workbench.core.errors import InputError
from workbench.models.devices import is_cpu
from workbench.models.running_pass import after, before, positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workbench.models.batching import Batch
    from workbench.models.model import Model

NAME = "workbench"
_HOOKS = "_workbench_hooks"  # the attribute of an attention module
# Rows are computed in blocks of queries so that one block of scores stays under this many numbers (256 MiB in float32).
BLOCK = 64 * 1024 * 1024


@dataclass(eq=False)
class Hooks:
    """What reads and edits one attention module; hangs on the module as `_workbench_hooks`."""

    layer: int
    # Each with the thread whose passes it is for: threads may share a model.
    readers: list[tuple[int, Callable]] = field(default_factory=list)
    # An edit gets (weights [B, H, R, S] float32, first query row, scores) and returns the weights to use instead.
    edits: list[tuple[int, Callable]] = field(default_factory=list)
    calls: int = 0
    groups: int = 0  # key/value heads, as seen in the last pass


def attach(module: nn.Module, layer: int) -> Hooks:
    """Give an attention module the place where readers and edits are hung."""
    hooks = Hooks(layer)
    setattr(module, _HOOKS, hooks)
    return hooks


def hooks_of(module: nn.Module) -> Hooks:
    """Where the readers and edits of an attention module of a loaded model are hung."""
    return getattr(module, _HOOKS)


def attention_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **kwargs):
    """The attention function: SDPA, plus the readers and edits of `module`. Shapes as in transformers: query [B, H, Q,
    D]."""
    hooks: Hooks | None = getattr(module, _HOOKS, None)
    readers, edits = (), ()
    if hooks is not None:
        hooks.calls += 1
        hooks.groups = key.shape[1]
        readers, edits = _of_this_thread(hooks.readers), _of_this_thread(hooks.edits)
    if not readers and not edits and softcap is None:
        return _sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if (readers or edits) and (kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None):
        raise InputError(
            f"{type(module).__name__} adds sinks or position biases to its scores; its attention rows cannot be read "
            f"or edited here."
        )
    causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
    weigh = Weights(query, key, value, attention_mask, scaling, softcap, is_causal=causal)
    if softcap is None and not edits:
        result = _sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    else:
        result = _mix(weigh, edits), None
    weigh.output = result[0]
    for reader in readers:
        reader(weigh)
    return result


def _of_this_thread(hung: Sequence[tuple[int, Callable]]) -> list[Callable]:
    thread = threading.get_ident()
    return [item for owner, item in hung if owner == thread] if hung else []


def _sdpa(module, query, key, value, attention_mask, *, scaling, dropout, **kwargs):
    """SDPA as transformers calls it; on a CPU, whose kernel reads grouped keys as they are, without a copy of them for
    every head."""
    groups, plain = query.shape[1] // key.shape[1], kwargs.get("position_bias") is None and kwargs.get("cache") is None
    if groups > 1 and attention_mask is not None and is_cpu(query.device) and plain:
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
        return mixed.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


@dataclass(eq=False)
class Weights:
    """Attention rows of one layer, computed on demand: rows(slice or index) → [B, H, R, S] float32, each summing to
    1."""

    query: torch.Tensor  # [B, H, Q, D], after rotation
    key: torch.Tensor  # [B, KV, S, D]
    value: torch.Tensor  # [B, KV, S, Dv]
    mask: torch.Tensor | None
    scaling: float | None
    softcap: float | None
    is_causal: bool = True
    output: torch.Tensor | None = None  # what the layer's attention gave, [B, Q, H, Dv]

    def scores(self, rows: torch.Tensor) -> torch.Tensor:
        """Masked pre-softmax scores of query rows `rows` [R] (or [B, R], one set per sequence) → [B, H, R, S]
        float32."""
        B, H, Q, D = self.query.shape
        KV, S = self.key.shape[1:3]
        take = (rows if rows.ndim == 2 else rows.expand(B, -1)).to(self.query.device)  # [B, R]
        q = self.query.gather(2, take[:, None, :, None].expand(B, H, -1, D))
        q = q.float().reshape(B, KV, H // KV, -1, D)  # query head h reads group h // (H / KV)
        scores = torch.einsum("bkgrd,bksd->bkgrs", q, self.key.float()).reshape(B, H, -1, S)
        scores *= self.scaling if self.scaling is not None else D**-0.5
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        blocked = torch.finfo(torch.float32).min
        if self.mask is None:
            if Q > 1 and self.is_causal:
                late = torch.arange(S, device=scores.device) > (take[..., None] + (S - Q))  # [B, R, S]
                scores = scores.masked_fill(late[:, None], blocked)
            return scores
        mask = self.mask[..., :S].expand(B, -1, -1, -1)
        mask = mask.gather(2, take[:, None, :, None].expand(B, mask.shape[1], -1, mask.shape[3]))
        if mask.dtype == torch.bool:
            return scores.masked_fill(~mask, blocked)
        return scores.add_(mask).clamp_min_(blocked)

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        return self.scores(rows).softmax(-1)


def _mix(weigh: Weights, edits: Sequence[Callable] = ()) -> torch.Tensor:
    """Attention output [B, Q, H, Dv] from explicit weights, in blocks of queries; used under edits and under
    soft-caps."""
    value = weigh.value
    B, H, Q, _ = weigh.query.shape
    KV, S = value.shape[1:3]
    step = max(1, BLOCK // (B * H * S))
    out = []
    for start in range(0, Q, step):
        rows = torch.arange(start, min(Q, start + step), device=value.device)
        weights = weigh.rows(rows)
        for edit in edits:
            weights = edit(weights, start, weigh)
        grouped = weights.to(value.dtype).reshape(B, KV, H // KV, len(rows), S)
        out.append(torch.einsum("bkgrs,bksd->brkgd", grouped, value).reshape(B, len(rows), H, -1))
    return torch.cat(out, dim=1)


AttentionInterface.register(NAME, attention_forward)


def attention_mask(*args, dtype: torch.dtype = torch.float32, **kwargs) -> torch.Tensor | None:
    """The mask of SDPA, None where a causal kernel needs none; on a CPU as numbers, which its kernel would make of it
    in every layer."""
    mask = sdpa_mask(*args, dtype=dtype, **kwargs)
    if mask is None or not is_cpu(mask.device):
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(
        ~mask, float("-inf")
    )  # the smallest float16 would still look visible


AttentionMaskInterface.register(NAME, attention_mask)


def install(hf: PreTrainedModel, attentions: Sequence[nn.Module], ids: torch.Tensor) -> bool:
    """Make `hf` use our attention function; True when every attention layer goes through it (seen on a pass over
    `ids`).

    When one does not, the model is put back to its eager attention, whose weights can be read."""
    distinct = {module: layer for layer, module in reversed(list(enumerate(attentions)))}  # layers may share one
    hooks = [attach(module, layer) for module, layer in distinct.items()]
    try:
        hf.set_attn_implementation(NAME)
        with torch.no_grad():
            hf(input_ids=ids, use_cache=False)
    except (ValueError, NotImplementedError, KeyError):
        pass
    if all(h.calls for h in hooks):
        return True
    hf.set_attn_implementation("eager")
    hf.config._attn_implementation = "eager"  # Falcon ignores the call above and would read a boolean mask as numbers
    return False


def query_rows(rows: str | torch.Tensor | Sequence[int], queries: int) -> torch.Tensor:
    """Column indices of the query rows asked for: "last", "all" or token positions ([R], or [B, R] one set per
    sequence)."""
    here = positions()
    device = here.position_ids.device
    if isinstance(rows, str) and rows == "all":
        return torch.arange(queries, device=device)
    if isinstance(rows, str) and rows == "last":
        return here.last_columns()[:, None]
    return here.columns(torch.as_tensor(rows, device=device))


def _rows_in_pass(rows: str | torch.Tensor | Sequence[int], queries: int) -> torch.Tensor:
    """As `query_rows`, with -1 for positions that an earlier pass has read already (a cache holds them)."""
    if isinstance(rows, str):
        return query_rows(rows, queries)
    columns, there = positions().columns_here(torch.as_tensor(rows, device=positions().position_ids.device))
    return columns.masked_fill(~there, -1)


@contextlib.contextmanager
def observe(
    model: Model,
    reduce: Callable[[int, torch.Tensor], torch.Tensor],
    *,
    rows: str | torch.Tensor | Sequence[int] = "last",
    layers: Sequence[int] | None = None,
) -> Iterator[dict[int, torch.Tensor]]:
    """While open, every forward pass leaves `reduce(layer, weights)` in the yielded dict, under its layer.

    `weights` is [B, H, R, S] float32: the attention rows of the queries asked for ("last" = each sequence's last token,
    "all", or token positions), over the S key columns of the batch; padded columns have weight 0. Reduce on the device
    and return something small: argmax, mass on a span, entropy. Each forward pass overwrites what the one before
    left. Raises InputError for layers whose rows are not what the model attends with."""
    seen: dict[int, torch.Tensor] = {}
    chosen = range(model.n_layers) if layers is None else layers
    model.require("attention_rows", for_what="attention rows", layers=chosen)
    # where the pass in progress has its tokens, and the columns found there: the same for every layer
    known: list = [None, None]

    def where(queries: int) -> torch.Tensor:
        if known[0] is not positions():
            known[:] = positions(), query_rows(rows, queries)
        return known[1]

    def reader_of(layer: int) -> Callable:
        def reader(weigh: Weights) -> None:
            seen[layer] = reduce(layer, weigh.rows(where(weigh.query.shape[2])))

        return reader

    with contextlib.ExitStack() as stack:
        for layer in chosen:
            module = model.attention(layer)
            if model.attention_interface:
                stack.enter_context(_hung(hooks_of(module).readers, reader_of(layer)))
            else:
                _observe_eager(model, module, layer, reduce, rows, seen, stack)
        yield seen


def unexplained(model: Model, batch: Batch, layers: Sequence[int]) -> dict[int, float]:
    """How far the attention rows that readers get are from those that the model attends with: per layer, over all
    queries of `batch`, the largest distance between rows × values and the output of SDPA, as a share of the output's
    largest number.

    Empty for architectures outside the interface, whose rows are their own. Under a soft-cap there is no SDPA to
    compare with: both sides are made of the rows, and what holds them is that the logits equal those of the model's own
    attention."""
    far: dict[int, float] = {}

    def read(layer: int, weigh: Weights) -> None:
        assert weigh.output is not None  # readers come after it
        output = weigh.output.float()
        far[layer] = float((_mix(weigh).float() - output).abs().max() / output.abs().max().clamp_min(1e-30))

    with _reading(model, read, layers), torch.no_grad():
        if model.attention_interface:
            model.forward(batch)
    return far


@contextlib.contextmanager
def observe_mixes(model: Model) -> Iterator[dict[int, torch.Tensor]]:
    """While open, every forward pass leaves what the attention function of each layer gave, [B, Q, H, Dv]; nothing for
    architectures outside the interface."""
    mixed: dict[int, torch.Tensor] = {}

    def read(layer: int, weigh: Weights) -> None:
        assert weigh.output is not None  # readers come after it
        mixed[layer] = weigh.output.detach().clone()

    with _reading(model, read, range(model.n_layers)):
        yield mixed


@contextlib.contextmanager
def _reading(model: Model, read: Callable[[int, Weights], None], layers: Sequence[int]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if model.attention_interface:
            for layer in layers:
                where = hooks_of(model.attention(layer)).readers
                stack.enter_context(_hung(where, lambda weigh, layer=layer: read(layer, weigh)))
        yield


@contextlib.contextmanager
def _hung(where: list, item: Callable) -> Iterator[None]:
    entry = threading.get_ident(), item
    where.append(entry)
    try:
        yield
    finally:
        where.remove(entry)


def _observe_eager(model, module, layer, reduce, rows, seen, stack) -> None:
    """The fall-back for architectures outside the interface: the weights that their eager attention returns."""

    def ask(_module, args, kwargs):
        return args, kwargs | {"output_attentions": True}

    def read(_module, args, output):
        weights = next(
            (t for t in output[1:] if isinstance(t, torch.Tensor) and t.ndim == 4 and t.shape[1] == model.n_heads), None
        )
        if weights is None:
            raise InputError(
                f"{model.architecture} does not return its attention weights; its attention rows cannot be read."
            )
        if weights.numel() > 4 * BLOCK:
            raise InputError(
                f"{model.architecture} can only be read through full attention maps, too large here "
                f"({weights.numel() * 4 >> 20} MiB a layer); use shorter prompts or smaller batches."
            )
        take = query_rows(rows, weights.shape[2])
        take = take if take.ndim == 2 else take.expand(weights.shape[0], -1)
        picked = weights.float().gather(2, take[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3]))
        seen[layer] = reduce(layer, picked)

    for handle in (before(module, ask), after(module, read)):
        stack.callback(handle.remove)


@contextlib.contextmanager
def edit(model: Model, layer: int, change: Callable[[torch.Tensor, int, Weights], torch.Tensor]) -> Iterator[None]:
    """While open, layer `layer` attends with `change(weights [B, H, R, S], first query column, scores)` instead.

    Raises InputError on architectures that do not go through the attention interface, and for layers whose rows are not
    what the model attends with."""
    model.require("attention_edits", "attention_rows", for_what="attention edits", layers=[layer])
    if not model.attention_interface:
        raise InputError(
            f"{model.architecture} computes attention outside the interface of transformers; attention edits "
            f"are not available for it."
        )
    with _hung(hooks_of(model.attention(layer)).edits, change):
        yield


def uniform(model: Model, layer: int, heads: Sequence[int]) -> contextlib.AbstractContextManager:
    """Heads attend uniformly to every key they may see (the ablation of the retrieval-head code: scores set to 0)."""
    index = list(heads)

    def change(weights: torch.Tensor, start: int, weigh: Weights) -> torch.Tensor:
        rows = torch.arange(start, start + weights.shape[2], device=weights.device)
        visible = (weigh.scores(rows)[:, index] > torch.finfo(torch.float32).min / 2).float()
        weights = weights.clone()
        weights[:, index] = visible / visible.sum(-1, keepdim=True).clamp_min(1)
        return weights

    return edit(model, layer, change)


def knock_out(
    model: Model,
    layer: int,
    *,
    queries: str | torch.Tensor | Sequence[int],
    sources: torch.Tensor | Sequence[Sequence[int]],
    heads: Sequence[int] | None = None,
) -> contextlib.AbstractContextManager:
    """Query positions cannot attend to source positions (scores −inf, rows renormalised).

    `queries`: "last", "all" or token positions; `sources`: token positions, one list per sequence of the batch (-1 =
    none). A row that loses everything it could see attends to nothing: its weights are 0."""
    index = slice(None) if heads is None else list(heads)

    def change(weights: torch.Tensor, start: int, weigh: Weights) -> torch.Tensor:
        B, _, R, S = weights.shape
        if isinstance(queries, str) and queries == "all":
            asks = torch.ones(B, R, dtype=torch.bool, device=weights.device)
        else:
            rows = _rows_in_pass(queries, weigh.query.shape[2]).to(weights.device).expand(B, -1)
            here = torch.arange(start, start + R, device=weights.device)
            asks = (rows[:, None, :] == here[:, None]).any(-1)  # [B, R]
        cut = positions().key_columns(_ragged(sources, positions().key_position.device), S).to(weights.device)  # [B, S]
        gone = asks[:, None, :, None] & cut[:, None, None, :]
        weights = weights.clone()
        kept = weights[:, index].masked_fill(gone, 0.0)
        total = kept.sum(-1, keepdim=True)
        renormed = kept / total.clamp_min(1e-30)
        faint = gone.any(-1, keepdim=True) & (total < 1e-6)
        if faint.any():  # float32 has rounded the rest of these rows away: their scores still have it
            scores = weigh.scores(torch.arange(start, start + R, device=weights.device))[:, index]
            open_ = (scores > torch.finfo(torch.float32).min / 2) & ~gone
            again = scores.masked_fill(~open_, torch.finfo(torch.float32).min).softmax(-1) * open_
            renormed = torch.where(faint, again, renormed)
        weights[:, index] = torch.where(gone.any(-1, keepdim=True), renormed, weights[:, index])
        return weights

    return edit(model, layer, change)


def _ragged(rows, device) -> torch.Tensor:
    """Lists of different lengths as one tensor, filled with -1."""
    if isinstance(rows, torch.Tensor):
        return rows.to(device)
    width = max((len(r) for r in rows), default=0)
    return torch.tensor([list(r) + [-1] * (width - len(r)) for r in rows], dtype=torch.long, device=device).reshape(
        len(rows), width
    )


def entropy(weights: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of attention rows [..., S] → [...]."""
    return torch.special.entr(weights).sum(-1)


def mass_on(weights: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Attention mass on a set of key columns: weights [B, H, R, S], columns [B, S] bool → [B, H, R]."""
    return (weights * columns[:, None, None, :]).sum(-1)
