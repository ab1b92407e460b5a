"""The blocks of a model called again on the last token only, as many rows at once as there are patches.

One pass over a group of prompts of equal length records how every block is called on the last token, and what the
earlier positions left in the key/value cache. Then rows travel through the blocks: the unpatched prompts first, joined
at layer L by one copy per patch of that layer. Earlier positions cannot see the last one, so this gives exactly what
whole passes would give.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.core.errors import InputError, RunFailed
from workbench.engine.edits import Edit, apply, for_prompts
from workbench.engine.kv_cache import empty_cache, keys_and_values
from workbench.engine.layer_windows import Window, Windows
from workbench.models.batching import Batch, sent
from workbench.models.call_tape import first_tensor, hidden_argument
from workbench.models.model import Model
from workbench.models.running_pass import PassPositions, after, before, running

MAX_ROWS = 1024  # patches × prompts that travel together
PAST_BYTES = 1 << 29  # most bytes of one layer's keys and values, repeated for every row
REPLAYED = ("heads_apart", "blocks_run_once")  # what calling the blocks one by one rests on


class _Past:
    """Keys and values of all earlier positions, as the blocks ask for them: returned in front of the new ones, never
    grown."""

    is_compileable = False

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor] | None], prompt: torch.Tensor):
        self.layers, self.prompt = layers, prompt

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_args, **_kwargs):
        before = self.layers[layer_idx]
        if before is None:
            return key, value
        keys, values = (
            past[self.prompt.to(past.device)] if len(past) > 1 else past.expand(len(key), -1, -1, -1) for past in before
        )
        return torch.cat([keys, key], 2), torch.cat([values, value], 2)


@dataclass(eq=False)
class Injection:
    """Head `head` of `layer` outputs z [P, d_head] at the last position of each of P prompts."""

    layer: int
    head: int
    z: torch.Tensor


Job = Injection | Window  # what a copy of the prompts differs in, from `layer` on


@dataclass(eq=False)
class _LastToken:
    """What a pass over the last token of P prompts of equal length looked like: the calls of the blocks and what they
    read."""

    calls: list[tuple[tuple, dict]]  # of every block
    z: list[torch.Tensor]  # [P, H, d_head] of every layer
    past: list[tuple[torch.Tensor, torch.Tensor] | None]
    final: torch.Tensor  # [P, width]
    length: int


def grid(model: Model, ids, first: int = 0) -> Batch:
    """Prompts of equal length as a batch without padding; positions count from `first`."""
    (tokens,) = sent([torch.tensor(ids, dtype=torch.long)], model.device)
    position = torch.arange(first, first + tokens.shape[1], device=model.device).expand(len(ids), -1)
    return Batch(
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        position,
        "right",
        torch.ones(tokens.shape, dtype=torch.bool),
    )


@contextlib.contextmanager
def _calls(modules, keep: Callable) -> Iterator[None]:
    """While open, `keep(index, args, kwargs)` is told of every call of the modules."""
    handles = [before(m, lambda _m, a, k, i=i: keep(i, a, k)) for i, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_token(model: Model, ids, edits: Sequence[Edit]) -> _LastToken:
    """Run P prompts of equal length with a cache, watching the blocks on the last token."""
    length, blocks = len(ids[0]), model.anatomy.blocks
    layers = range(model.n_layers)
    calls: dict[int, tuple[tuple, dict]] = {}
    z: dict[int, torch.Tensor] = {}
    past: list[tuple[torch.Tensor, torch.Tensor] | None] = [None for _ in layers]
    final: list[torch.Tensor] = []

    def seen(i: int, args: tuple, kwargs: dict) -> None:
        calls[i] = (args, dict(kwargs))

    def heads(i: int, args: tuple, kwargs: dict) -> None:
        z[i] = hidden_argument(args, kwargs).reshape(len(ids), model.n_heads, model.d_head).clone()

    with apply(model, edits):
        cache, front = empty_cache(model, length), None
        if length > 1:
            front = grid(model, [row[:-1] for row in ids])
            model.forward(front, cache=cache, last_logits=True)
            read: list[Any] = cache.layers  # of whatever kinds the architecture has
            past = [None if layer.keys is None else keys_and_values(layer) for layer in read]
        end = after(blocks[-1].block, lambda _m, _a, output: final.append(first_tensor(output)[:, -1]))
        try:
            with _calls([b.block for b in blocks], seen), _calls([b.o_proj for b in blocks], heads):
                model.forward(
                    grid(model, [row[-1:] for row in ids], length - 1),
                    cache=cache,
                    past=front,
                    last_logits=True,
                )
        finally:
            end.remove()
    return _LastToken([calls[i] for i in layers], [z[i] for i in layers], past, final[-1], length)


def _replay(
    model: Model, seen: _LastToken, jobs: Sequence[Job], *, frozen: bool, edits: Sequence[Edit]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Final states of the unpatched prompts [P, width] and under each job [P, jobs, width]; jobs in the order of their
    layers.

    `frozen`: the other heads keep their outputs (only MLPs are computed again)."""
    n, first = len(seen.z[0]), jobs[0].layer
    # the first n rows are unpatched, those of each job follow: row → prompt
    prompts = torch.arange(n, device=seen.z[0].device).repeat(1 + len(jobs))
    args, kwargs = seen.calls[first]
    hidden, copies = hidden_argument(args, kwargs), 1
    windows = Windows(jobs, n, prompts.device)
    for layer in range(first, model.n_layers):
        arrived = [job for job in jobs if job.layer == layer]
        fresh = [(copies + k, job) for k, job in enumerate(arrived) if isinstance(job, Injection)]
        copies += len(arrived)
        hidden = torch.cat([hidden, hidden[:n].repeat(len(arrived), 1, 1)]) if arrived else hidden
        prompt = prompts[: len(hidden)]
        replaced = functools.partial(_injected, model, seen.z[layer] if frozen else None, fresh, n)
        with contextlib.ExitStack() as stack:
            own = for_prompts(edits, [row % n for row in range(len(hidden))]) if edits else ()
            stack.enter_context(apply(model, own))
            if frozen or fresh:
                stack.callback(before(model.o_proj(layer), replaced).remove)
            windows.hang(model, layer, len(hidden), stack)
            hidden = _block(model, seen, layer, hidden, prompt)
    final = hidden[:, -1]
    return final[:n], final[n:].unflatten(0, (len(jobs), n)).transpose(0, 1)


def _injected(
    model: Model,
    kept: torch.Tensor | None,
    fresh: Sequence[tuple[int, Injection]],
    n: int,
    _module,
    args: tuple,
    kwargs: dict,
) -> tuple[tuple, dict]:
    """The call of an output projection with what `fresh` puts into copies (by number, 0 the unpatched one) of the `n`
    prompts. `kept` [P, H, d_head]: what all other heads put out, where they are not to react."""
    x = args[0]
    z = x.reshape(len(x), model.n_heads, model.d_head)
    z = z.clone() if kept is None else kept.to(x.device).repeat(len(x) // n, 1, 1)
    if fresh:
        found = torch.stack([job.z.to(x.device, z.dtype) for _, job in fresh])  # [jobs, P, d_head]
        copy, head = sent([torch.tensor([k for k, _ in fresh]), torch.tensor([job.head for _, job in fresh])], x.device)
        z.unflatten(0, (-1, n))[copy, :, head] = found
    return (z.reshape(x.shape).to(x.dtype), *args[1:]), kwargs


def _block(model: Model, seen: _LastToken, layer: int, hidden: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Call one block on `hidden` [R, 1, width] as the recorded pass did, every per-prompt argument repeated for its
    rows."""
    args, kwargs = seen.calls[layer]
    n = len(seen.z[0])
    past = _Past(seen.past, prompt)
    old = hidden_argument(args, kwargs)

    def fit(value):
        if value is old:
            return hidden
        if isinstance(value, torch.Tensor):
            return value[prompt.to(value.device)] if n > 1 and value.ndim and value.shape[0] == n else value
        if isinstance(value, tuple):
            return tuple(fit(item) for item in value)
        return past if hasattr(value, "update") and hasattr(value, "get_seq_length") else value

    rows = len(prompt)
    position = torch.full((rows, 1), seen.length - 1, device=prompt.device)
    keys = torch.arange(seen.length, device=prompt.device).expand(rows, -1)
    with running(PassPositions(position, torch.ones_like(position, dtype=torch.bool), keys)):
        output = model.anatomy.blocks[layer].block(
            *(fit(a) for a in args), **{key: fit(value) for key, value in kwargs.items()}
        )
    return first_tensor(output)


def room(model: Model, length: int, element: int) -> int:
    """Rows that may travel together at this prompt length."""
    past = 2 * model.n_kv_heads * length * model.d_head * element
    return max(2, min(MAX_ROWS, PAST_BYTES // max(1, past)))


def check_finite(model: Model, layer: int, *states: torch.Tensor) -> None:
    """Raise RunFailed for states that are NaN or infinite: no comparison with them holds, whatever it is about."""
    if not bool(torch.stack([x.isfinite().all().to(states[0].device) for x in states]).all()):
        raise RunFailed(
            f"The activations of {model.name} in layer {layer} are NaN or infinite on these prompts; load the "
            f"model in bfloat16 or float32."
        )


def _check_replayed(model: Model, replayed: torch.Tensor, final: torch.Tensor) -> None:
    """Raise InputError where blocks that are called one by one do not give the final states of the whole pass, and
    RunFailed where either is no number; for one wait."""
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 6e-2
    # what is no number, or infinite, is not close
    if not bool((replayed - final).abs().max() < tolerance * (1e-6 + final.abs().max())):
        check_finite(model, model.n_layers - 1, replayed, final)
        raise InputError(f"The blocks of {model.architecture} cannot be called on their own; use the direct variant.")


@torch.no_grad()
def injected_states(
    model: Model, ids, jobs: Sequence[Job], *, frozen: bool = False, edits: Sequence[Edit] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Final states (before the final norm) of P prompts of equal length: unpatched [P, width], and under each job (an
    injection or a window of layers) at the last position [P, jobs, width]. `frozen`: all other heads keep their
    outputs, so that only MLPs react.

    Raises InputError when the blocks of the architecture, called on their own, do not give what the model gives."""
    model.require(*REPLAYED, for_what="blocks that are called on their own")
    seen = _last_token(model, ids, edits)
    order = sorted(range(len(jobs)), key=lambda j: jobs[j].layer)
    step = max(1, room(model, seen.length, seen.final.element_size()) // len(ids) - 1)
    patched: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), step):
        part = order[start : start + step]
        unpatched, found = _replay(model, seen, [jobs[j] for j in part], frozen=frozen, edits=edits)
        _check_replayed(model, unpatched, seen.final)
        for k, j in enumerate(part):
            patched[j] = found[:, k]
    return seen.final, torch.stack([patched[j] for j in range(len(jobs))], 1)
