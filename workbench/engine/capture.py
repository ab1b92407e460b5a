"""Batched forward passes that return, stream or store any set of sites at any positions.

The plain Hugging Face model runs; hooks copy only the positions asked for, and the pass ends after the deepest site.
`stream` keeps nothing, `capture` returns tensors in the order of the prompts and, given a store, computes each shard
once and for all.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from workbench.core.errors import InputError, RunFailed
from workbench.engine.edits import Edit, apply, describe, for_prompts
from workbench.models.architecture import first_tensor, hidden_argument
from workbench.models.batching import Batch, Frame, batches, in_batches, pad
from workbench.models.model import DTYPES, Model
from workbench.models.sites import Site

if TYPE_CHECKING:
    from workbench.store.activation_store import Store

VERSION = 2  # of what a stored capture means; raise it when the same key would hold other numbers
SHARD_BYTES = 64 * 1024 * 1024

logger = logging.getLogger(__name__)

Positions = str | Sequence[int] | Sequence[Sequence[int]]


@dataclass(eq=False)
class Activations(Mapping):
    """Captured activations by site, rows in the order of the prompts.

    acts[site] is [n, …] for positions "last" and "mean", [n, k, …] for k positions, [sum of lengths, …] for "all" (then
    `rows(site, i)` is prompt i's block). … is the width, H × d_head for head_out.L, d_head for head_out.L.H."""

    tensors: dict[Site, torch.Tensor]
    lengths: list[int]
    positions: Positions

    def __getitem__(self, site: Site | str) -> torch.Tensor:
        return self.tensors[Site.parse(site)]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def rows(self, site: Site | str, prompt: int) -> torch.Tensor:
        """Every token of one prompt, [length, …]; only for positions "all"."""
        start = sum(self.lengths[:prompt])
        return self[site][start : start + self.lengths[prompt]]


class _Enough(Exception):
    """Raised from a hook once every site has been seen: the rest of the pass is not needed."""


def check_ids(model: Model, ids: Sequence[Sequence[int]]) -> None:
    """Raise InputError for no prompts, an empty one, one beyond the context, or an id outside the vocabulary."""
    if len(ids) == 0:
        raise InputError("There are no prompts to run.")
    size, limit = int(model.hf.get_input_embeddings().weight.shape[0]), model.context_length
    for row, tokens in enumerate(ids):
        if len(tokens) == 0:
            raise InputError(f"Prompt {row} has no tokens.")
        if limit is not None and len(tokens) > limit:
            raise InputError(
                f"Prompt {row} has {len(tokens)} tokens, more than the model's context of {limit}; shorten it."
            )
        if not 0 <= min(tokens) <= max(tokens) < size:
            raise InputError(f"Prompt {row} has a token id outside the model's vocabulary of {size}.")


def _selector(
    model: Model, batch: Batch, positions: Positions, indices: Sequence[int]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """How to take the wanted positions out of [B, T, …], as a copy: → [B, …], [B, k, …] or [tokens, …]."""
    frame = Frame(batch.position_ids, batch.mask, batch.position_ids)
    if isinstance(positions, str):
        if positions == "all":
            if bool(batch.mask.all()):
                return lambda x: x.flatten(0, 1).clone()
            real = batch.mask.flatten().nonzero()[:, 0]
            return lambda x: x.flatten(0, 1).index_select(0, real.to(x.device))
        if positions == "last":
            columns = frame.last_columns()
            return lambda x: x[torch.arange(len(columns), device=x.device), columns.to(x.device)]
        if positions == "mean":
            return lambda x: _masked_mean(x, batch.mask.to(x.device))
        raise InputError(f"'{positions}' is no choice of positions; use last, mean, all or a list of token positions.")
    per_row = (
        [list(positions[i]) for i in indices]
        if positions and isinstance(positions[0], Sequence)
        else [list(positions)] * len(indices)
    )
    if len({len(p) for p in per_row}) != 1:
        raise InputError("Every prompt needs the same number of positions.")
    columns = frame.columns(torch.tensor(per_row, device=batch.ids.device))
    return lambda x: x[torch.arange(len(columns), device=x.device)[:, None], columns.to(x.device)]


def _masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    x = x.float() if x.dtype != torch.float64 else x
    weight = mask.to(x.dtype).reshape(*mask.shape, *[1] * (x.ndim - 2))
    return (x * weight).sum(1) / weight.sum(1)


@contextlib.contextmanager
def _recording(
    model: Model, wanted: Sequence[Site], batch: Batch, select: Callable, keep: Callable
) -> Iterator[dict[Site, torch.Tensor]]:
    """While open, one forward pass leaves the selected activations in the yielded dict and is ended after the last of
    them."""
    seen: dict[Site, torch.Tensor] = {}
    by_module: dict[tuple, list[Site]] = {}
    for site in wanted:
        by_module.setdefault(model.module(site if site.kind != "logits" else Site("final_norm")), []).append(site)

    def note(sites: list[Site], x: torch.Tensor) -> None:
        if x.ndim == 2:  # some blocks flatten tokens
            x = x.unflatten(0, tuple(batch.ids.shape))
        heads = None
        for site in sites:
            value = x
            if site.kind == "head_out":
                heads = x.unflatten(-1, (model.n_heads, model.d_head)) if heads is None else heads
                value = heads if site.head is None else heads[..., site.head, :]
            picked = select(value)
            # "logits" is the unembedding of the selected final states only: all positions × vocabulary is never held
            seen[site] = keep(model.logits_from(picked, normed=True) if site.kind == "logits" else picked)
        if len(seen) == len(wanted):
            raise _Enough

    handles = []
    for (module, side), sites in by_module.items():
        if side == "input":
            hook = lambda _m, args, kwargs, s=sites: note(s, hidden_argument(args, kwargs))  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            hook = lambda _m, _args, output, s=sites: note(s, first_tensor(output))  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _narrowed(model: Model, wanted: Sequence[Site], batch: Batch) -> Iterator[None]:
    """While open, the last MLP runs on each prompt's last token alone, the only one whose result is read: MLPs work
    token by token.

    Not where something of that MLP is wanted or hooked, and not in blocks that read and write it through different
    modules."""
    mlp = model.parts.blocks[-1].mlp_in
    inside = any(model.module(site)[0] in set(mlp.modules()) for site in wanted if site.kind != "logits")
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in mlp.modules())
    if inside or hooked or mlp is not model.parts.blocks[-1].mlp_out:
        yield
        return
    columns = Frame(batch.position_ids, batch.mask, batch.position_ids).last_columns()
    shape = tuple(batch.ids.shape)
    narrow: list[bool] = []

    def only_last(_module, args):
        narrow[:] = [bool(args) and isinstance(args[0], torch.Tensor) and args[0].shape[:-1] == shape]
        if narrow[0]:
            return args[0][torch.arange(shape[0], device=args[0].device), columns.to(args[0].device)][:, None], *args[
                1:
            ]

    def in_place(_module, _args, output):
        if narrow[0]:
            found = first_tensor(output)
            whole = found.new_zeros(*shape, found.shape[-1])
            whole[torch.arange(shape[0], device=found.device), columns.to(found.device)] = found.reshape(
                shape[0], -1
            )  # some flatten tokens
            return whole if isinstance(output, torch.Tensor) else (whole, *output[1:])

    handles = [mlp.register_forward_pre_hook(only_last), mlp.register_forward_hook(in_place)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stream(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    edits: Sequence[Edit] = (),
    side: str = "right",
    dtype: torch.dtype | None = None,
    max_tokens: int = 8192,
    max_rows: int = 256,
    check: Callable[[], None] | None = None,
) -> Iterator[tuple[list[int], dict[Site, torch.Tensor], Batch]]:
    """Yield (row indices, {site: activations on the device}, batch) for one batch after another; nothing is kept.

    Batches hold prompts of similar length, so rows do not come in order. `dtype` None keeps the model's. Edits are
    applied during the pass, before the capture; those that differ by prompt are taken apart with the batches. Raises
    InputError for prompts or sites that do not fit the model."""
    wanted = [Site.parse(site) for site in sites]
    if not wanted:
        raise InputError("No sites were asked for.")
    for site in wanted:
        model.module(site)
    check_ids(model, ids)
    keep = (lambda x: x) if dtype is None else (lambda x: x.to(dtype))  # what was selected is a copy already
    result: dict[Site, torch.Tensor] = {}
    batch: Batch | None = None

    def step(indices: list[int]) -> None:
        nonlocal batch
        result.clear()
        batch = pad([ids[i] for i in indices], pad_id=model.pad_id, side=side, device=model.device)
        select = _selector(model, batch, positions, indices)
        narrowed = _narrowed(model, wanted, batch) if positions == "last" else contextlib.nullcontext()
        with (
            torch.no_grad(),
            apply(model, for_prompts(edits, indices)),
            narrowed,
            _recording(model, wanted, batch, select, keep) as seen,
        ):
            with contextlib.suppress(_Enough):
                model.forward(batch)
        result.update({site: seen[site] for site in wanted})

    rows = model.rows_at_once([len(row) for row in ids], max_rows)
    for indices in in_batches(ids, step, max_tokens=max_tokens, max_rows=rows, check=check):
        yield indices, dict(result), batch


def capture(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    edits: Sequence[Edit] = (),
    dtype: torch.dtype | str = torch.float32,
    store: Store | None = None,
    context=None,
    side: str = "right",
    max_tokens: int = 8192,
    max_rows: int = 256,
    engine: str = "hf",
) -> Activations:
    """Activations of `sites` at `positions` of every prompt (token ids, BOS included where wanted), on the CPU, in
    prompt order.

    `positions`: "last", "mean" (over all tokens of the prompt), "all", a list of token positions (negative = from the
    end), or one list per prompt. With a `store`, what was computed before is read, and a capture that was interrupted
    goes on where it stopped. `context` (a probe's) reports progress, counts and can cancel. `engine="nnsight"` runs the
    same capture through nnsight."""
    wanted = [Site.parse(site) for site in sites]
    options = {
        "positions": positions,
        "edits": edits,
        "dtype": dtype,
        "store": store,
        "context": context,
        "side": side,
        "engine": engine,
    }
    parts = list(shards(model, ids, wanted, max_tokens=max_tokens, max_rows=max_rows, **options))
    return _in_order(parts, wanted, [len(row) for row in ids], positions)


def shards(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    edits: Sequence[Edit] = (),
    dtype: torch.dtype | str = torch.float32,
    store: Store | None = None,
    context=None,
    side: str = "right",
    max_tokens: int = 8192,
    max_rows: int = 256,
    engine: str = "hf",
) -> Iterator[tuple[list[int], dict[Site, torch.Tensor]]]:
    """What `capture` returns, one shard after another: (rows of the shard, {site: tensor on the CPU, in the order of
    these rows}).

    Memory stays that of one shard, however many prompts there are; with a `store` a second pass only reads the disk."""
    from workbench.engine import shared_prefix

    wanted = [Site.parse(site) for site in sites]
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    check_ids(model, ids)
    if engine == "nnsight":
        from workbench.engine.nnsight import stream_nnsight as run
    elif engine == "hf":
        run = stream
    else:
        raise InputError(f"'{engine}' is not an engine; choose hf or nnsight (both run on this machine).")
    lengths = [len(row) for row in ids]
    if engine == "hf" and positions == "last" and not edits and shared_prefix.applies(model, ids):
        run = shared_prefix.stream_shared
        plan = [
            list(range(start, min(start + 4096, len(ids)))) for start in range(0, len(ids), 4096)
        ]  # packed by what they share
    else:
        plan = batches(lengths, max_tokens=max_tokens, max_rows=max_rows)
    check = getattr(context, "check", None)

    def compute(rows: list[int]) -> dict[Site, torch.Tensor]:
        chunk = [ids[i] for i in rows]
        where = (
            [positions[i] for i in rows]
            if not isinstance(positions, str) and positions and isinstance(positions[0], Sequence)
            else positions
        )
        options = {
            "positions": where,
            "edits": for_prompts(edits, rows),
            "dtype": dtype,
            "max_tokens": max_tokens,
            "max_rows": max_rows,
            "check": check,
        }
        starts = list(accumulate((lengths[i] if positions == "all" else 1 for i in rows), initial=0))
        part: dict[
            Site, torch.Tensor
        ] = {}  # filled as batches come: views of their rows, joined at the end, would hold everything twice
        for indices, found, batch in run(model, chunk, wanted, side=side, **options):
            places = [torch.arange(starts[i], starts[i + 1]) for i in indices]
            places = torch.cat(places) if places else None  # a pass over what all begin with
            for site, tensor in found.items():
                if site not in part:
                    part[site] = torch.empty((starts[-1], *tensor.shape[1:]), dtype=tensor.dtype)
                part[site][places] = tensor.cpu()
            if context is not None:
                context.count(prompts=len(indices), tokens=batch.tokens, forwards=1)
        return {site: part[site] for site in wanted}

    if store is not None:
        yield from _through_store(
            model, ids, wanted, positions, edits, dtype, side, store, lengths, compute, context, engine
        )
        return
    done = 0
    for rows in plan:
        found = compute(rows)
        done += len(rows)
        if context is not None:
            context.progress(done, len(ids), "capture")
        yield rows, found


def _split(tensor: torch.Tensor, lengths: list[int] | None) -> list[torch.Tensor]:
    return list(tensor) if lengths is None else list(tensor.split(lengths))


def _in_order(parts, wanted, lengths, positions) -> Activations:
    """Shards put together, rows in the order of the prompts."""
    tensors = {}
    for site in wanted:
        rows: list[torch.Tensor] = [None] * len(lengths)
        for indices, found in parts:
            for i, row in zip(
                indices, _split(found[site], [lengths[i] for i in indices] if positions == "all" else None)
            ):
                rows[i] = row
        tensors[site] = torch.cat(rows) if positions == "all" else torch.stack(rows)
    return Activations(tensors, lengths, positions)


def key(model: Model, ids, sites, positions, edits, dtype, side: str = "right", engine: str = "hf") -> str:
    """The store's key of a capture: changes with the weights, the exact tokens, the sites, the positions, the dtypes
    and the edits."""
    from workbench.store.activation_store import fingerprint

    where = positions if isinstance(positions, str) else [list(p) if isinstance(p, Sequence) else p for p in positions]
    return fingerprint(
        {
            "what": "capture",
            "version": VERSION,
            "model": model.fingerprint,
            "tokenizer": model.tokenizer_fingerprint,
            "model_dtype": str(model.dtype),
            "ids": [list(map(int, row)) for row in ids],
            "sites": [str(s) for s in sites],
            "positions": where,
            "dtype": str(dtype),
            "edits": describe(edits),
            "side": side,
            "engine": engine,
        }
    )


def site_size(model: Model, site: Site) -> int:
    """Numbers per token at a site."""
    if site.kind == "logits":
        return model.vocab_size
    if site.kind == "head_out":
        return model.d_head if site.head is not None else model.n_heads * model.d_head
    if site.kind == "mlp_hidden":
        weight = model.module(site)[0].weight
        return int(weight.numel() // model.width)
    return model.width


def predicted_bytes(
    model: Model, ids, sites, *, positions: Positions = "last", dtype: torch.dtype = torch.float32
) -> int:
    """Bytes that a stored capture will take, known before it starts."""
    if positions == "all":
        rows = sum(len(row) for row in ids)
    elif isinstance(positions, str):
        rows = len(ids)
    else:
        rows = len(ids) * (len(positions[0]) if positions and isinstance(positions[0], Sequence) else len(positions))
    return rows * sum(site_size(model, Site.parse(s)) for s in sites) * torch.empty((), dtype=dtype).element_size()


def _through_store(
    model, ids, wanted, positions, edits, dtype, side, store, lengths, compute, context, engine
) -> Iterator[tuple[list[int], dict[Site, torch.Tensor]]]:
    from workbench.store.activation_store import human_bytes
    from workbench.store.shards import DamagedShard

    total = predicted_bytes(model, ids, wanted, positions=positions, dtype=dtype)
    # What a shard holds follows from the lengths alone, never from the size of batches: the key does not name it, and
    # another run must find every prompt where this one put it. Rows are in the order of batches: by length.
    tokens_of = lengths if positions == "all" else [1] * len(ids)
    per_token = max(1, total // max(1, sum(tokens_of)))
    blocks: list[list[int]] = []
    size = SHARD_BYTES
    for i in sorted(range(len(ids)), key=lambda i: (lengths[i], i)):
        if size >= SHARD_BYTES:
            blocks.append([])
            size = 0
        blocks[-1].append(i)
        size += tokens_of[i] * per_token
    name = key(model, ids, wanted, positions, edits, dtype, side, engine)
    meta = {
        "model": model.name,
        "sites": [str(s) for s in wanted],
        "positions": positions if isinstance(positions, str) else "given",
        "dtype": str(dtype).removeprefix("torch."),
        "prompts": len(ids),
        "tokens": sum(map(len, ids)),
    }
    check = getattr(context, "check", None)
    given, computed = 0, False
    for _ in range(10):  # two turns repair everything, unless other processes evict or repair at the same moment
        entry = store.get(name)
        if entry is None or entry.n_shards != len(blocks):
            computed = True
            done = 0
            logger.info("Storing %s of activations in %s.", human_bytes(total), store.root)
            if context is not None:
                context.progress(0, len(ids), f"storing {human_bytes(total)} of activations")
            with store.writer(name, meta, n_shards=len(blocks), expected_bytes=total, check=check) as writer:
                for i, rows in enumerate(blocks):
                    if i not in writer.done:
                        writer.write(i, {str(s): t for s, t in compute(rows).items()})
                    elif (
                        context is not None and i >= given
                    ):  # those given out before a damaged one was met are counted already
                        context.count(cache_hits=1)
                    done += len(rows)
                    if context is not None:
                        context.progress(done, len(ids), "capture")
            continue
        try:
            with entry:
                while given < len(blocks):
                    found = _read(entry, given, wanted)
                    given += 1
                    if context is not None and not computed:
                        context.count(cache_hits=1)
                        context.progress(sum(map(len, blocks[:given])), len(ids), "capture (stored)")
                    yield blocks[given - 1], found
                    del found  # before the next shard is mapped
            return
        except DamagedShard:  # it was dropped: the writer computes it again
            continue
    raise RunFailed("The stored capture is damaged again each time it is written; the disk of the store is failing.")


def _read(entry, shard: int, wanted: Sequence[Site]) -> dict[Site, torch.Tensor]:
    found = entry.read(shard)
    return {site: found[str(site)] for site in wanted}


def logits(
    model: Model,
    ids: Sequence[Sequence[int]],
    *,
    positions: Positions = "last",
    edits: Sequence[Edit] = (),
    max_tokens: int = 8192,
    check: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Next-token scores at the chosen positions of every prompt, float32 on the CPU: [n, V] for "last", [n, k, V] for k
    positions.

    Raises RunFailed where they are NaN."""
    rows: list[torch.Tensor] = [None] * len(ids)
    for indices, found, _ in stream(
        model,
        ids,
        ["logits"],
        positions=positions,
        edits=edits,
        dtype=torch.float32,
        max_tokens=max_tokens,
        check=check,
    ):
        for i, row in zip(indices, found[Site("logits")].cpu()):
            if bool(row.isnan().any()):
                raise RunFailed(
                    f"The model {model.name} gave NaN scores for prompt {i}; use another dtype (bfloat16 or "
                    f"float32) or check its weights."
                )
            rows[i] = row
    return torch.stack(rows)


def capture_generation(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    max_new_tokens: int,
    edits: Sequence[Edit] = (),
    dtype: torch.dtype | str = torch.float32,
    max_tokens: int = 8192,
    **generation,
) -> tuple[list[list[int]], list[dict[Site, torch.Tensor]]]:
    """Greedy continuations, and the activations of the steps that chose their tokens.

    Returns (generated ids per prompt, {site: [steps, …]} per prompt): row t is what the model computed when it chose
    token t. A causal model computes the same whether it reads its own text at once or token by token, so one batched
    pass over prompt and continuation gives them all. `edits` act on every pass; further options (`stop_ids`,
    `stop_strings`, …) go to `generate.greedy`."""
    from workbench.engine.generate import greedy

    generated = greedy(model, prompts, max_new_tokens=max_new_tokens, edits=tuple(edits), **generation)
    whole = [[*prompt, *new[:-1]] for prompt, new in zip(prompts, generated)]
    acts = capture(model, whole, sites, positions="all", edits=edits, dtype=dtype, max_tokens=max_tokens)
    return generated, [{s: acts.rows(s, i)[len(prompts[i]) - 1 :] for s in acts} for i in range(len(prompts))]
