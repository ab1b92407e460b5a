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

from workbench.core.errors import InputError
from workbench.models import attention_weights
from workbench.models.attention_kernel import attention_mask, sdpa
from workbench.models.attention_stacks import StackedRows
from workbench.models.attention_weights import Weights, mix, pick
from workbench.models.query_rows import Queries, query_rows
from workbench.models.running_pass import after, before

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workbench.models.batching import Batch
    from workbench.models.model import Model

NAME = "workbench"
_HOOKS = "_workbench_hooks"  # the attribute of an attention module


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
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if (readers or edits) and (kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None):
        raise InputError(
            f"{type(module).__name__} adds sinks or position biases to its scores; its attention rows cannot be read "
            f"or edited here."
        )
    causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
    weigh = Weights(query, key, value, attention_mask, scaling, softcap, is_causal=causal)
    if softcap is None and not edits:
        result = sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    else:
        result = mix(weigh, edits), None
    weigh.output = result[0]
    for reader in readers:
        reader(weigh)
    return result


def _of_this_thread(hung: Sequence[tuple[int, Callable]]) -> list[Callable]:
    thread = threading.get_ident()
    return [item for owner, item in hung if owner == thread] if hung else []


AttentionInterface.register(NAME, attention_forward)
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


@contextlib.contextmanager
def observe(
    model: Model,
    reduce: Callable[[int, torch.Tensor], torch.Tensor],
    *,
    rows: Queries = "last",
    layers: Sequence[int] | None = None,
) -> Iterator[dict[int, torch.Tensor]]:
    """While open, every forward pass leaves `reduce(layer, weights)` in the yielded dict, under its layer.

    `weights` is [B, H, R, S] float32: the attention rows of the queries asked for ("last" = each sequence's last token,
    "all", or token positions), over the S key columns of the batch; padded columns have weight 0. Reduce on the device
    and return something small: argmax, mass on a span, entropy. Each forward pass overwrites what the one before
    left. Raises InputError for layers whose rows are not what the model attends with."""
    seen: dict[int, torch.Tensor] = {}

    def read(layer: int, weigh: Weights) -> None:
        seen[layer] = reduce(layer, weigh.rows(query_rows(rows, weigh.query.shape[2])))

    with _observing(model, read, reduce, rows, range(model.n_layers) if layers is None else layers, seen):
        yield seen


@contextlib.contextmanager
def observe_stacked(
    model: Model, reduce: Callable[[torch.Tensor], torch.Tensor], *, rows: Queries = "last"
) -> Iterator[dict[int, torch.Tensor]]:
    """As `observe` of all layers, whose rows are reduced together: `reduce` gets weights [n, B, H, R, S] of n layers at
    once and returns [n, ...]; it may write over the weights. Without gradients.

    A layer costs one matrix product (and the change to float32 of a model in fewer bits, and the choice of rows where
    not a stretch of them is read); the rest is launched once for all layers that are masked alike and fit into memory
    together. Of a pass that ends before the last layer some layers are missing."""
    seen: dict[int, torch.Tensor] = {}
    stacks = StackedRows(range(model.n_layers), reduce, seen)

    def read(_layer: int, weigh: Weights) -> None:
        stacks.read(_layer, weigh, query_rows(rows, weigh.query.shape[2]))

    def alone(_layer: int, weights: torch.Tensor) -> torch.Tensor:
        return reduce(weights[None])[0]

    with _observing(model, read, alone, rows, range(model.n_layers), seen):
        yield seen


@contextlib.contextmanager
def observe_scores(
    model: Model,
    reduce: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    rows: Queries = "last",
    layers: Sequence[int] | None = None,
    softmax: bool = False,
) -> Iterator[dict[int, torch.Tensor]]:
    """While open, every forward pass leaves `reduce(layer, scores, visible)` in the yielded dict, under its layer.

    `scores` [B, H, R, S] float32: the plain products of the queries asked for and every key, both after their rotation;
    neither scaled nor capped, and also of keys that the query does not see. With `softmax` they are the attention rows,
    as `observe` gives them. `visible` [B, 1 or H, R, S] bool: which keys a query sees. `reduce` is called before the
    layer is left, so an exception of its own ends the pass there. Raises InputError for architectures whose queries and
    keys do not go through our attention function."""
    wanted = range(model.n_layers) if layers is None else layers
    model.require("attention_rows", for_what="scores of queries and keys", layers=wanted)
    if not model.attention_interface:
        raise InputError(
            f"{model.architecture} does not hand its queries and keys to the attention function of transformers, so "
            f"their products cannot be read; choose a model of another architecture."
        )
    seen: dict[int, torch.Tensor] = {}

    def read(layer: int, weigh: Weights) -> None:
        at = query_rows(rows, weigh.query.shape[2])
        scores = weigh.rows(at) if softmax else weigh.products(at)
        seen[layer] = reduce(layer, scores, weigh.masking.visible(at, scores))

    with _reading(model, read, wanted):
        yield seen


@contextlib.contextmanager
def _observing(model: Model, read: Callable, reduce: Callable, rows: Queries, layers: Sequence[int], seen: dict):
    """While open, `read(layer, scores)` is told of every layer that goes through our attention function; of the others
    `reduce` is given the rows of the weights that they return."""
    model.require("attention_rows", for_what="attention rows", layers=layers)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_reading(model, read, layers))
        for layer in () if model.attention_interface else layers:
            _observe_eager(model, layer, reduce, rows, seen, stack)
        yield


def of_layers(seen: dict[int, torch.Tensor], dim: int = 0) -> torch.Tensor:
    """What was seen of each layer, in their order, stacked at `dim` on one device: one copy takes it to the host."""
    device = next(iter(seen.values())).device
    return torch.stack([seen[layer].to(device) for layer in sorted(seen)], dim)


def unexplained(model: Model, batch: Batch, layers: Sequence[int]) -> dict[int, float]:
    """How far the attention rows that readers get are from those that the model attends with: per layer, over all
    queries of `batch`, the largest distance between rows × values and the output of SDPA, as a share of the output's
    largest number.

    Empty for architectures outside the interface, whose rows are their own. Under a soft-cap there is no SDPA to
    compare with: both sides are made of the rows, and what holds them is that the logits equal those of the model's own
    attention."""
    far: dict[int, torch.Tensor] = {}

    def read(layer: int, weigh: Weights) -> None:
        assert weigh.output is not None  # readers come after it
        output = weigh.output.float()
        far[layer] = (mix(weigh).float() - output).abs().max() / output.abs().max().clamp_min(1e-30)

    with _reading(model, read, layers), torch.no_grad():
        if model.attention_interface:
            model.forward(batch)
    return {layer: float(share) for layer, share in far.items()}


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
def observe_projections(
    model: Model, layers: Sequence[int]
) -> Iterator[dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """While open, every forward pass leaves what the attention function of each of the layers was given: queries
    [B, H, Q, D] and keys [B, KV, S, D] after rotation, values [B, KV, S, Dv]; nothing for architectures outside the
    interface."""
    given: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def read(layer: int, weigh: Weights) -> None:
        given[layer] = weigh.query.detach(), weigh.key.detach(), weigh.value.detach()

    with _reading(model, read, layers):
        yield given


@contextlib.contextmanager
def _reading(model: Model, read: Callable[[int, Weights], None], layers: Sequence[int]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if model.attention_interface:
            for layer in layers:
                where = hooks_of(model.attention(layer)).readers
                stack.enter_context(hung(where, lambda weigh, layer=layer: read(layer, weigh)))
        yield


@contextlib.contextmanager
def hung(where: list, item: Callable) -> Iterator[None]:
    entry = threading.get_ident(), item
    where.append(entry)
    try:
        yield
    finally:
        where.remove(entry)


def _observe_eager(model, layer, reduce, rows, seen, stack) -> None:
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
        if weights.numel() > 4 * attention_weights.BLOCK:
            raise InputError(
                f"{model.architecture} can only be read through full attention maps, too large here "
                f"({weights.numel() * 4 >> 20} MiB a layer); use shorter prompts or smaller batches."
            )
        # a copy: what reduces it may write over it
        picked = pick(weights, query_rows(rows, weights.shape[2])).to(torch.float32, copy=True)
        seen[layer] = reduce(layer, picked)

    module = model.attention(layer)
    for handle in (before(module, ask), after(module, read)):
        stack.callback(handle.remove)


def entropy(weights: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of attention rows [..., S] → [...]."""
    return torch.special.entr(weights).sum(-1)


def mass_on(weights: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Attention mass on a set of key columns: weights [B, H, R, S], columns [B, S] bool → [B, H, R]."""
    return (weights * columns[:, None, None, :]).sum(-1)
