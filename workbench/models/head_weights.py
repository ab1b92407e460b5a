"""The weights of attention heads, W_Q, W_K, W_V and W_O of each, in any architecture, as they read and write the
residual stream.

They are read off the model's own attention: every layer's attention is given unit vectors in place of its input, one
token each, and the queries, keys and values that come out are the rows of the weights. Whatever way a model stores them
(one matrix for all three, groups of heads, quantised) they are those that it computes with. A token at position 0 is
not rotated, so queries and keys are those before the rotation; `rotations` says what another position does to them.
Norms inside the attention (of queries and keys) are replaced by their linear part meanwhile, and so is, where asked,
the norm before and after it ("folding"; Elhage et al. 2021). Scales of norms depend on the state and are left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from workbench.core.errors import InputError
from workbench.models.attention import observe_projections
from workbench.models.batching import pad
from workbench.models.call_tape import hidden_argument, tape
from workbench.models.linear_norm import LinearNorm, linear_norm
from workbench.models.model import Model
from workbench.models.running_pass import after, before

ROWS = 256  # tokens that are read at once
NEEDED = ("stream_adds_up", "heads_add_up", "blocks_run_once", "attention_rows", "attention_edits")


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """Of one layer, float32 on the host, in the convention of row vectors x W: `query` [H, d, D], `key` [KV, d, D],
    `value` [KV, d, Dv], `output` [H, Dv, d], and `value_bias` [KV, Dv]: what a value is where the stream is zero.

    `centred`: whether the mean over the stream was taken off what they read and write."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    value_bias: torch.Tensor
    centred: bool = False


@torch.no_grad()
def head_weights(model: Model, *, folded: bool = True, check: Callable[[], None] | None = None) -> list[HeadWeights]:
    """The weights of every layer's heads; with `folded` they read the stream before the norm and write it after any
    norm behind the output projection, with the mean taken off where the norms of the model take it off.

    `check()` is called before every pass and may raise (cancellation). Raises InputError, with the reason, for an
    architecture whose heads cannot be read so."""
    _possible(model)
    around = [_norms_around(model, layer) for layer in range(model.n_layers)] if folded else []
    centred = any(entry is not None and entry.centred for entry, _ in around)
    query, key, value = _read(model, check)
    found = []
    for layer in range(model.n_layers):
        own = HeadWeights(
            query[layer][:, :-1], key[layer][:, :-1], value[layer][:, :-1], _output(model, layer), value[layer][:, -1]
        )
        found.append(_folded(own, *around[layer], centred) if folded else own)
    return found


@torch.no_grad()
def rotations(model: Model, offset: int, *, check: Callable[[], None] | None = None) -> list[torch.Tensor]:
    """What being `offset` tokens later does to the queries of each layer, [D, D] float64: a query x W_Q R, with x the
    state and R this matrix; the identity in models whose positions are added to the stream.

    Raises InputError as `head_weights`, and for an offset beyond the context of the model."""
    _possible(model)
    if model.context_length is not None and offset >= model.context_length:
        raise InputError(
            f"No two tokens of {model.name} are {offset} tokens apart: its context holds {model.context_length}; give "
            f"smaller offsets."
        )
    states = torch.randn(2 * model.d_head + 8, model.width, generator=torch.Generator().manual_seed(0))
    with _linear_inside(model):
        here = [_at(model, states, place, check)[0] for place in (0, offset)]
    found = []
    for start, moved in zip(*here):  # [H, rows, D] each: all heads are turned alike
        a, b = start.flatten(0, 1).double(), moved.flatten(0, 1).double()
        found.append(torch.linalg.lstsq(a, b).solution)
    return found


def _possible(model: Model) -> None:
    model.require(*NEEDED, for_what="the weights of its heads")
    if not model.attention_interface:
        raise InputError(
            f"{model.architecture} computes attention outside the interface of transformers; the weights of its heads "
            f"cannot be read."
        )


def _norms_around(model: Model, layer: int) -> tuple[LinearNorm | None, LinearNorm | None]:
    """The norm that the attention of a layer reads through, and the one that its output goes through, None for none.

    Raises InputError where attention reads something else than the stream or a norm of it."""
    block = model.anatomy.blocks[layer]
    ids = [[i % model.vocab_size for i in (1, 2, 3)]]
    modules: dict[str, nn.Module] = {"block": block.block, "attention": block.attention} | dict(block.norms)
    with tape(modules) as calls:
        model.forward(pad(ids, pad_id=model.pad_id, device=model.device))
    whole, read = calls["block"][0], calls["attention"][0].came_in
    name = next(
        (
            name
            for name in block.norms
            if any(_same(seen.came_in, whole.came_in) and _same(seen.went_out, read) for seen in calls[name])
        ),
        None,
    )
    if name is None and not _same(read, whole.came_in):
        raise InputError(
            f"The architecture {model.architecture} does not fit the weights of its heads: the attention of layer "
            f"{layer} reads neither the residual stream nor a norm of it."
        )
    entry = None if name is None else linear_norm(block.norms[name], model.width)
    leaving = None
    if block.attention_writer is not block.attention and block.attention_writer in block.norms.values():
        leaving = linear_norm(block.attention_writer, model.width)
    return entry, leaving


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1).to(a.device, a.dtype))


def _folded(own: HeadWeights, entry: LinearNorm | None, leaving: LinearNorm | None, centred: bool) -> HeadWeights:
    output = own.output.double()
    if leaving is not None:
        output = leaving.of(output)
    if centred:
        output = output - output.mean(-1, keepdim=True)
    own = replace(own, output=output.float(), centred=centred)
    if entry is None:
        return own
    bias = own.value_bias.double() + torch.einsum("d,hdv->hv", entry.constant, own.value.double())
    read = {name: entry.read(getattr(own, name).double()).float() for name in ("query", "key", "value")}
    return replace(own, **read, value_bias=bias.float())


def _output(model: Model, layer: int) -> torch.Tensor:
    """The output projection [H, Dv, d] float32 on the host, asked of the module: it may be quantised."""
    module, size = model.o_proj(layer), model.n_heads * model.d_head
    weight = next(module.parameters())
    dtype = weight.dtype if weight.dtype.is_floating_point else model.dtype
    rows = []
    for start in range(0, size, ROWS):
        unit = torch.zeros(min(ROWS, size - start), 1, size, dtype=dtype, device=weight.device)
        unit[torch.arange(len(unit)), 0, torch.arange(start, start + len(unit))] = _unit(dtype)
        none = module(torch.zeros_like(unit[:1]))
        rows.append(((module(unit).float() - none.float()) / _unit(dtype))[:, 0].cpu())
    return torch.cat(rows).unflatten(0, (model.n_heads, model.d_head))


def _unit(dtype: torch.dtype) -> float:
    """How long the vectors are that weights are read off with: long beside a bias, and a power of two."""
    return 2.0**6 if dtype == torch.float16 else 2.0**20


def _read(model: Model, check: Callable[[], None] | None) -> tuple[list[torch.Tensor], ...]:
    """Queries, keys and values of each layer [heads, d + 1, D] float32 on the host: a row for each unit vector, less
    what comes out for zero, and that itself as the last row.

    Raises InputError where they are no linear map of what attention reads."""
    with _linear_inside(model):
        none = _at(model, torch.zeros(1, model.width), 0, check)
        scale = _unit(model.dtype)
        clipped = not _in_proportion(model, scale, none, check, rows=ROWS)
        if clipped:  # queries, keys and values that are cut off at a number: vectors of length 1 stay below it
            scale = 1.0
            if not _in_proportion(model, scale, none, check, rows=model.width):
                raise InputError(
                    f"Queries, keys and values of {model.architecture} are not in proportion to what its attention "
                    f"reads (they are cut off, or rounded in half precision), so the weights of its heads cannot be "
                    f"read; try --dtype float32."
                )
        parts = [_units(model, start, scale, none, check) for start in range(0, model.width, ROWS)]
    return tuple(
        [
            torch.cat([*(part[side][layer] / scale for part in parts), none[side][layer]], 1)
            for layer in range(model.n_layers)
        ]
        for side in range(3)
    )


Sides = tuple[list[torch.Tensor], ...]


def _units(model: Model, start: int, length: float, none: Sides, check: Callable[[], None] | None) -> Sides:
    """What comes out for at most ROWS unit vectors from number `start` on, times `length`, less what does for zero."""
    states = torch.zeros(min(ROWS, model.width - start), model.width)
    states[torch.arange(len(states)), torch.arange(start, start + len(states))] = length
    found = _at(model, states, 0, check)
    return tuple([x - n for x, n in zip(side, zero)] for side, zero in zip(found, none))


def _in_proportion(model: Model, length: float, none: Sides, check: Callable[[], None] | None, *, rows: int) -> bool:
    """Whether the first unit vectors, `length` long, give twice what they give half as long."""
    close = 1e-3 if model.dtype in (torch.float32, torch.float64) else 3e-2
    for start in range(0, min(rows, model.width), ROWS):
        whole, half = (_units(model, start, size, none, check) for size in (length, length / 2))
        for side, other in zip(whole, half):
            for a, b in zip(side, other):
                if not bool((a - 2 * b).abs().max() <= close * (2 * b).abs().max()):
                    return False
    return True


def _at(
    model: Model, states: torch.Tensor, position: int, check: Callable[[], None] | None
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Queries, keys and values of each layer [heads, rows, D] float32 on the host, where every layer's attention reads
    `states` [rows, width], each a text of one token at `position`."""
    if check is not None:
        check()
    layers = range(model.n_layers)
    one = pad(
        [[1 % model.vocab_size]] * len(states),
        pad_id=0,
        side="left",
        device=model.device,
        first=[position] * len(states),
    )

    def instead(_module, args, kwargs):
        old = hidden_argument(args, kwargs)
        new = states.to(old.device, old.dtype).reshape(old.shape)
        if args and args[0] is old:
            return (new, *args[1:]), kwargs
        return args, kwargs | {next(k for k, v in kwargs.items() if v is old): new}

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(before(model.attention(layer), instead).remove)
        given = stack.enter_context(observe_projections(model, layers))
        model.forward(one, last_logits=1)
    sides = [[given[layer][side][:, :, -1].transpose(0, 1).float().cpu() for layer in layers] for side in range(3)]
    return sides[0], sides[1], sides[2]


@contextlib.contextmanager
def _linear_inside(model: Model) -> Iterator[None]:
    """While open, norms inside the attention modules are their linear part."""
    with contextlib.ExitStack() as stack:
        for layer in range(model.n_layers):
            for module in _norms_inside(model.attention(layer)):
                stack.callback(after(module, _linear(module)).remove)
        yield


def _norms_inside(attention: nn.Module) -> Sequence[nn.Module]:
    return [module for module in attention.modules() if "norm" in type(module).__name__.lower()]


def _linear(module: nn.Module) -> Callable:
    kept: dict[int, LinearNorm] = {}
    asked = False  # the norm itself is being asked what its linear part is

    def instead(_module, args, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal asked
        if asked:
            return None
        width = args[0].shape[-1]
        if width not in kept:
            asked = True
            try:
                kept[width] = linear_norm(module, width)
            finally:
                asked = False
        return kept[width].of(args[0]).to(output.dtype)

    return instead
