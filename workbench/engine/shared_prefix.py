"""Activations of many prompts that begin alike: every shared prefix is run once.

What all prompts begin with is run first and stays in the key/value cache. The rest is merged into tries and the nodes
of each are run as one sequence, in which a token attends to its ancestors only and has its depth as position; several
make a batch. Each prompt's last token then sees exactly what it sees alone. Labelled texts in a template, pairs of
statements and few-shot prompts have three to five times fewer nodes than tokens. Where every token is wanted and not
only the last, `beginning` and `stream_after` read what all begin with (a chat template's system prompt) once, and the
rest in plain batches after it. Models for which this does not hold (ALiBi, no explicit positions, windows shorter than
a prompt, recurrent layers) are recognised, the last kind by comparing two prompts with a plain pass, and run in plain
batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.core.errors import InputError
from workbench.engine import hf
from workbench.engine.hf import Streamed
from workbench.engine.kv_cache import Cached, prefill
from workbench.engine.passes import READ, Pass, with_pass
from workbench.models.batching import ALIGNED, Batch, is_out_of_memory, pad, sent
from workbench.models.devices import is_cpu
from workbench.models.host_copies import arriving
from workbench.models.model import Model
from workbench.models.recording import Keep, Positions, converted, parse_sites, recording, select_positions
from workbench.models.running_pass import PassPositions, running
from workbench.models.sites import Site

WORTHWHILE = 0.6  # nodes per token below which the trie pays for its attention mask
NODES = {
    "cpu": 64,
    "accelerator": 512,
}  # of one pack, where two prompts have room in it: attention over a pack is quadratic in it
TOKENS = {"cpu": 1024, "accelerator": 8192}  # of one pass
LONGEST = 512  # tokens of a prompt that is run on a trie, without what all begin with
FRONT = 4  # tokens that all prompts begin with for which a pass of their own pays
SHARE = 0.1  # of all tokens, for which it pays where every token is wanted: going on from a past takes a mask


@dataclass(eq=False)
class Pack:
    """Prompts run together. rows: their numbers; tokens, depth, parent [N] of the nodes (parents first, -1 = none);
    last: each row's node."""

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
    """The prompts in packs of at most `max_nodes` nodes (one prompt at least), in lexical order, so that neighbours
    share most."""
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
    if longest - len(front(model, ids)) > LONGEST or not _in_pieces(model, longest):
        return False
    return len(ids) > 8 and nodes_per_token(ids) <= WORTHWHILE


def _in_pieces(model: Model, longest: int) -> bool:
    """Whether a token's activations depend on the tokens before it and its position only, whatever pass they are in, as
    far as the config says."""
    config = model.hf.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    varies = any(word in str(scaling) for word in ("dynamic", "longrope", "yarn"))
    once = model.facts.why_not("blocks_run_once") is None
    return (
        once
        and model.mask_free
        and not varies
        and not (window and longest > window)
        and not (model.sliding and not window)
    )


def front(model: Model, ids: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, if a pass of their own pays and the model can go on from it; at least one
    is left to each."""
    first, last = list(min(ids, key=list)), list(max(ids, key=list))
    size = min(_shared(first, last), min(map(len, ids)) - 1)
    return first[:size] if size >= FRONT and not getattr(model.hf, "_is_stateful", False) else []


@with_pass
def stream(
    model: Model,
    ids: Sequence[Sequence[int]],
    sites: Sequence[Site | str],
    *,
    positions: Positions = "last",
    side: str = "right",
    dtype: torch.dtype | None = None,
    run: Pass,
) -> Iterator[Streamed]:
    """As `workbench.engine.hf.stream`, of last tokens without edits, with shared prefixes run once; the pass over what
    all prompts begin with has no rows.

    For prompts to which `applies` says yes. Where the first packs come out wrong, or memory runs out, plain batches
    take over. Raises InputError for other positions than "last", and for edits."""
    if positions != "last" or run.edits:
        raise InputError("Shared prefixes are run once for last tokens without edits only.")
    wanted = parse_sites(model, sites)
    kind = "cpu" if is_cpu(model.device) else "accelerator"
    common = front(model, ids)
    rest = [row[len(common) :] for row in ids]
    most = _aligned(max(NODES[kind], 2 * max(map(len, rest))), len(common))
    # alike in size: little padding; the largest first: if any comes out wrong, it does
    plan = sorted(packs(rest, max_nodes=most), key=lambda pack: len(pack.tokens), reverse=True)
    begun, step, checked = None, max(1, TOKENS[kind] // most), False

    def plainly(rows: list[int]) -> Iterator[Streamed]:
        for indices, found, batch in hf.stream(model, [ids[i] for i in rows], wanted, side=side, dtype=dtype, run=run):
            yield [rows[k] for k in indices], found, batch

    if common:
        begun = prefill(model, [common], None)
        yield [], {}, begun.past
    keep = converted(dtype, copy=True)
    for start in range(0, len(plan), step):
        together = plan[start : start + step]
        rows = [row for pack in together for row in pack.rows]
        run.asked()
        try:
            found, batch = _run(model, together, begun, wanted, keep)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            yield from plainly(rows)
            continue
        if not checked and not _agrees(model, ids, rows, found, wanted):
            yield from plainly([row for pack in plan[start:] for row in pack.rows])
            return
        checked = True
        yield rows, found, batch


def _run(
    model: Model, together: Sequence[Pack], begun: Cached | None, wanted: list[Site], keep: Keep
) -> tuple[dict[Site, torch.Tensor], Batch]:
    """One pass over packs after what all begin with, one per row of the batch; padding is seen by itself (and sees the
    beginning) only."""
    device = model.device
    past = 0 if begun is None else begun.past.mask.shape[1]
    sizes = [len(pack.tokens) for pack in together]
    shape = len(together), _aligned(max(sizes), past)
    tokens, depth = torch.full(shape, model.pad_id), torch.zeros(shape, dtype=torch.long)
    sees = torch.eye(shape[1], dtype=torch.bool).repeat(len(together), 1, 1)
    for b, (pack, n) in enumerate(zip(together, sizes)):
        tokens[b, :n], depth[b, :n], sees[b, :n, :n] = torch.tensor(pack.tokens), torch.tensor(pack.depth), pack.sees()
    hidden = torch.zeros(sees.shape, dtype=model.dtype).masked_fill_(~sees, torch.finfo(model.dtype).min)
    hidden = arriving(torch.nn.functional.pad(hidden, (past, 0))[:, None], device)
    real = torch.arange(shape[1]) < torch.tensor(sizes)[:, None]
    which = torch.tensor([b for b, pack in enumerate(together) for _ in pack.rows])
    last = torch.tensor([node for pack in together for node in pack.last])
    tokens, depth, there, which, last = sent([tokens, depth + past, real.long(), which, last], device)
    keys = torch.cat([torch.arange(past, device=device).expand(len(together), -1), depth], 1)
    after = (
        {"use_cache": False}
        if begun is None
        else {"past_key_values": begun.fork(len(together)).cache, "use_cache": True}
    )
    batch = Batch(tokens, there.bool(), depth, "right", real)
    with (
        torch.no_grad(),
        running(PassPositions(depth, batch.mask, keys)),
        recording(model, wanted, batch, lambda x: x[which.to(x.device), last.to(x.device)], keep) as seen,
    ):
        model.hf(input_ids=tokens, position_ids=depth, attention_mask=hidden, **after)
    return {site: seen[site] for site in wanted}, batch


@dataclass(eq=False)
class Beginning:
    """What all prompts begin with: its tokens, their past, and their activations by site, [len(tokens), …]."""

    tokens: list[int]
    past: Cached
    found: dict[Site, torch.Tensor]


def beginning(
    model: Model, ids: Sequence[Sequence[int]], sites: Sequence[Site | str], *, size: int | None = None
) -> Beginning | None:
    """What all prompts (its first `size` tokens at most), read once; None where that does not pay or this model cannot
    go on from it."""
    wanted = parse_sites(model, sites)
    common = front(model, ids)[:size] if len(ids) > 8 else []
    if len(common) < max(FRONT, SHARE * sum(map(len, ids)) / len(ids)) or not _in_pieces(model, max(map(len, ids))):
        return None
    begun = Beginning(
        common, prefill(model, [common], None), next(hf.stream(model, [common], wanted, positions="all"))[1]
    )
    some = [min(ids, key=len), max(ids, key=len)]
    sizes = [len(row) - len(common) for row in some]
    rest, _ = _continue(model, begun, some, wanted)
    for i, row in enumerate(some):
        _, plain, _ = next(hf.stream(model, [row], wanted, positions="all"))
        if not all(_close(rest[site].split(sizes)[i], plain[site][len(common) :], model) for site in wanted):
            return None
    return begun


@with_pass
def stream_after(
    model: Model, begun: Beginning, ids: Sequence[Sequence[int]], sites: Sequence[Site | str], *, run: Pass
) -> Iterator[Streamed]:
    """As `workbench.engine.hf.stream`, of every token after those of `begun`, with which all prompts begin.

    Activations [tokens, …] and batch are of the rest of the prompts alone. Raises InputError for edits."""
    if run.edits:
        raise InputError("What all prompts begin with is read without edits; run these prompts whole.")
    wanted = parse_sites(model, sites)
    kept: list = []

    def step(indices: list[int]) -> None:
        kept[:] = _continue(model, begun, [ids[i] for i in indices], wanted)

    rest = [len(row) - len(begun.tokens) for row in ids]
    mean = sum(map(len, ids)) / len(ids)
    rows = max(1, min(256, int(2 * (run.max_tokens or READ) / mean)))  # every row takes its own copy of the past
    for indices in run.batches(rest, step, rows=rows):
        yield indices, *kept


def _continue(
    model: Model, begun: Beginning, rows: Sequence[Sequence[int]], wanted: list[Site]
) -> tuple[dict[Site, torch.Tensor], Batch]:
    """One pass over what follows the beginning: padding is on the right, where no token sees it, and counts on."""
    size = len(begun.tokens)
    batch = pad([row[size:] for row in rows], pad_id=model.pad_id, device=model.device)
    place = torch.arange(size, size + batch.ids.shape[1], device=model.device).expand_as(batch.ids)
    keys = torch.cat(
        [torch.arange(size, device=model.device).expand(len(rows), -1), torch.where(batch.mask, place, -1)], 1
    )
    past = begun.past.fork(len(rows)).cache
    with (
        torch.no_grad(),
        running(PassPositions(place, batch.mask, keys)),
        recording(model, wanted, batch, select_positions(batch, "all"), converted(None)) as seen,
    ):
        model.hf(input_ids=batch.ids, position_ids=place, past_key_values=past, use_cache=True)
    return {site: seen[site] for site in wanted}, batch


def _aligned(size: int, past: int) -> int:
    """The next size with which the number of keys, those of the past included, is a multiple of ALIGNED."""
    return -(-(size + past) // ALIGNED) * ALIGNED - past


def _agrees(model: Model, ids, rows: Sequence[int], found: dict[Site, torch.Tensor], wanted: list[Site]) -> bool:
    """Whether the first and the last prompt of a pass come out as in a plain one."""
    ends = sorted({0, len(rows) - 1})
    for indices, plain, _ in hf.stream(model, [ids[rows[k]] for k in ends], wanted, positions="last"):
        for k, i in enumerate(indices):
            if not all(_close(found[site][ends[i]], plain[site][k], model) for site in wanted):
                return False
    return True


def _close(found: torch.Tensor, plain: torch.Tensor, model: Model) -> bool:
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((found.float() - plain.float()).abs().max() <= tolerance * plain.float().abs().max().clamp(min=1e-6))
