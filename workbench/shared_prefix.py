"""Last-token activations of many prompts that begin alike: every shared prefix is run once.

What all prompts begin with is run first and stays in the key/value cache. The rest is merged into tries and the nodes of each are run as one
sequence, in which a token attends to its ancestors only and has its depth as position; several make a batch. Each prompt's last token then
sees exactly what it sees alone. Labelled texts in a template, pairs of statements and few-shot
prompts have three to five times fewer nodes than tokens. Models for which this does not hold (ALiBi, no explicit
positions, windows shorter than a prompt, recurrent layers) are recognised, the last kind by comparing two prompts with a plain pass, and
run in plain batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.batching import ALIGNED, Batch, Frame, is_out_of_memory
from workbench.capture import _Enough, _recording, stream
from workbench.models import Model
from workbench.past import Cached, prefill
from workbench.sites import Site

WORTHWHILE = 0.6  # nodes per token below which the trie pays for its attention mask
NODES = {"cpu": 64, "cuda": 512}  # of one pack, where two prompts have room in it: attention over a pack is quadratic in it
TOKENS = {"cpu": 1024, "cuda": 8192}  # of one pass
LONGEST = 512  # tokens of a prompt that is run on a trie, without what all begin with
FRONT = 4  # tokens that all prompts begin with for which a pass of their own pays


@dataclass(eq=False)
class Pack:
    """Prompts run together. rows: their numbers; tokens, depth, parent [N] of the nodes (parents first, -1 = none); last: each row's node."""

    rows: list[int]
    tokens: list[int]
    depth: list[int]
    parent: list[int]
    last: list[int]

    def sees(self) -> torch.Tensor:
        """[N, N] boolean: a node sees itself and its ancestors."""
        out = np.zeros((len(self.tokens),) * 2, dtype=bool)
        for node, parent in enumerate(self.parent):
            if parent >= 0:
                out[node] = out[parent]
            out[node, node] = True
        return torch.from_numpy(out)


def packs(ids: Sequence[Sequence[int]], *, max_nodes: int) -> list[Pack]:
    """The prompts in packs of at most `max_nodes` nodes (one prompt at least), in lexical order, so that neighbours share most."""
    out: list[Pack] = []
    path: list[int] = []  # nodes of the last prompt, in the open pack
    before: list[int] = []
    for tokens, row in sorted((list(tokens), row) for row, tokens in enumerate(ids)):
        shared = _shared(before, tokens)
        if not out or len(out[-1].tokens) + len(tokens) - shared > max_nodes:
            out.append(Pack([], [], [], [], []))
            path, shared = [], 0
        pack = out[-1]
        first, more = len(pack.tokens), len(tokens) - shared
        path = [*path[:shared], *range(first, first + more)]
        pack.tokens += tokens[shared:]
        pack.depth += range(shared, len(tokens))
        pack.parent += [path[k - 1] if k else -1 for k in range(shared, len(tokens))]
        pack.rows.append(row)
        pack.last.append(path[len(tokens) - 1])
        before = tokens
    return out


def nodes_per_token(ids: Sequence[Sequence[int]]) -> float:
    """How many different prefixes there are per token: 1 where nothing is shared."""
    rows = sorted(map(list, ids))
    return 1 - sum(map(_shared, rows, rows[1:])) / sum(map(len, rows))


def _shared(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    for k, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return k
    return min(len(a), len(b))


def applies(model: Model, ids: Sequence[Sequence[int]]) -> bool:
    """Whether these prompts gain and this model can be run on a trie, as far as its config says."""
    longest = max(len(row) for row in ids)
    if longest - len(front(model, ids)) > LONGEST:
        return False
    config = model.hf.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    varies = any(word in str(scaling) for word in ("dynamic", "longrope", "yarn"))
    if not model._mask_free or varies or (window and longest > window) or (model.sliding and not window):
        return False
    return len(ids) > 8 and nodes_per_token(ids) <= WORTHWHILE


def front(model: Model, ids: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, if a pass of their own pays and the model can go on from it; at least one is left to each."""
    first, last = list(min(ids, key=list)), list(max(ids, key=list))
    size = min(_shared(first, last), min(map(len, ids)) - 1)
    return first[:size] if size >= FRONT and not getattr(model.hf, "_is_stateful", False) else []


def stream_shared(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    dtype: torch.dtype | None = None,
    check: Callable[[], None] | None = None,
    **options,
) -> Iterator[tuple[list[int], dict[Site, torch.Tensor], Batch]]:
    """`capture.stream` of last tokens with shared prefixes run once: (row indices, {site: [m, …]}, batch) per pass; the pass over what
    all prompts begin with has no rows.

    For prompts to which `applies` says yes. `options` are those of `stream`, which takes over where the first pack comes out wrong."""
    wanted = [Site.parse(site) for site in sites]
    kind = "cuda" if model.device.type == "cuda" else "cpu"
    common = front(model, ids)
    rest = [row[len(common) :] for row in ids]
    most = _aligned(max(NODES[kind], 2 * max(map(len, rest))), len(common))
    # alike in size: little padding; the largest first: if any comes out wrong, it does
    plan = sorted(packs(rest, max_nodes=most), key=lambda pack: len(pack.tokens), reverse=True)
    begun, step, checked = None, max(1, TOKENS[kind] // most), False
    if common:
        begun = prefill(model, [common], None)
        yield [], {}, begun.past
    keep = (lambda x: x.clone()) if dtype is None else (lambda x: x.to(dtype, copy=True))
    for start in range(0, len(plan), step):
        together = plan[start : start + step]
        rows = [row for pack in together for row in pack.rows]
        if check is not None:
            check()
        try:
            found, batch = _run(model, together, begun, wanted, keep)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            for indices, found, batch in stream(model, [ids[i] for i in rows], wanted, dtype=dtype, check=check, **options):
                yield [rows[k] for k in indices], found, batch
            continue
        if not checked and not _agrees(model, ids, rows, found, wanted):
            left = [row for pack in plan[start:] for row in pack.rows]
            for indices, found, batch in stream(model, [ids[i] for i in left], wanted, dtype=dtype, check=check, **options):
                yield [left[k] for k in indices], found, batch
            return
        checked = True
        yield rows, found, batch


def _run(model: Model, together: Sequence[Pack], begun: Cached | None, wanted: list[Site], keep) -> tuple[dict[Site, torch.Tensor], Batch]:
    """One pass over packs after what all begin with, one per row of the batch; padding is seen by itself (and sees the beginning) only."""
    device = model.device
    past = 0 if begun is None else begun.past.mask.shape[1]
    sizes = [len(pack.tokens) for pack in together]
    shape = len(together), _aligned(max(sizes), past)
    tokens, depth = torch.full(shape, model.pad_id), torch.zeros(shape, dtype=torch.long)
    sees = torch.eye(shape[1], dtype=torch.bool).repeat(len(together), 1, 1)
    for b, (pack, n) in enumerate(zip(together, sizes)):
        tokens[b, :n], depth[b, :n], sees[b, :n, :n] = torch.tensor(pack.tokens), torch.tensor(pack.depth), pack.sees()
    hidden = torch.zeros(sees.shape, dtype=model.dtype).masked_fill_(~sees, torch.finfo(model.dtype).min)
    hidden = torch.nn.functional.pad(hidden, (past, 0))[:, None].to(device)
    tokens, depth, lengths = tokens.to(device), depth.to(device) + past, torch.tensor(sizes, device=device)
    keys = torch.cat([torch.arange(past, device=device).expand(len(together), -1), depth], 1)
    after = {"use_cache": False} if begun is None else {"past_key_values": begun.fork(len(together)).cache, "use_cache": True}
    batch = Batch(tokens, torch.arange(shape[1], device=device) < lengths[:, None], depth, lengths, "right")
    which = torch.tensor([b for b, pack in enumerate(together) for _ in pack.rows], device=device)
    last = torch.tensor([node for pack in together for node in pack.last], device=device)
    with torch.no_grad(), model.framed(Frame(depth, batch.mask, keys)), _recording(model, wanted, batch, lambda x: x[which.to(x.device), last.to(x.device)], keep) as seen:
        with contextlib.suppress(_Enough):
            model.hf(input_ids=tokens, position_ids=depth, attention_mask=hidden, **after)
    return {site: seen[site] for site in wanted}, batch


def _aligned(size: int, past: int) -> int:
    """The next size with which the number of keys, those of the past included, is a multiple of ALIGNED."""
    return -(-(size + past) // ALIGNED) * ALIGNED - past


def _agrees(model: Model, ids, rows: Sequence[int], found: dict[Site, torch.Tensor], wanted: list[Site]) -> bool:
    """Whether the first and the last prompt of a pass come out as in a plain one."""
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    ends = sorted({0, len(rows) - 1})
    for indices, plain, _ in stream(model, [ids[rows[k]] for k in ends], wanted, positions="last"):
        for k, i in enumerate(indices):
            for site in wanted:
                a, b = found[site][ends[i]].float(), plain[site][k].float()
                if not bool((a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-6)):
                    return False
    return True
