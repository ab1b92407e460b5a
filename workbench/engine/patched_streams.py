"""What a model writes when one residual stream of its prompt is replaced at one position after one block.

A patch puts a state [width] in place of the output of block `layer` at a position of a prompt, while the prompt is
read; what is decoded afterwards is read unpatched. Back-patching (a later state of the same position), descriptions of
a state by another prompt and random donors are all of this kind (Biran et al. 2024, arXiv 2406.12775; Ghandeharioun et
al. 2024).

Of a patched prompt everything before the position, and everything up to the block, is as it was. So each prompt is read
once; then all its patches travel through the blocks as rows of one batch, each from the block after its own and from
its position on, with the keys and values of what did not change. Decoding goes on from these keys and values, all rows
at once. The result is that of one whole pass per patch. Models whose blocks cannot be called on their own are run in
whole passes (`whole_passes`), patches of one layer and position together.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.engine.decoding import decode
from workbench.engine.draws import keys_of_steps, row_keys
from workbench.engine.edits import Edit, Patch, apply, for_prompts
from workbench.engine.endings import Ends, GrowingTexts, room_after
from workbench.engine.generate import greedy, sample
from workbench.engine.kv_cache import cache_of, feed, keys_and_values
from workbench.engine.last_token_replay import check_finite, grid
from workbench.engine.one_by_one import DecodedRows, Decoding
from workbench.engine.passes import DECODE, Pass, check_prompts, with_pass
from workbench.engine.rule import Rule
from workbench.engine.sampling import likeliest_unchecked, rows_at_once, step
from workbench.models.batching import Batch, sent
from workbench.models.call_tape import first_tensor, hidden_argument
from workbench.models.model import Model
from workbench.models.running_pass import PassPositions, after, before, running
from workbench.models.sites import Site

NEEDED = ("blocks_run_once", "final_norm_ends_stream", "logits_unembedded")  # for blocks that are called on their own
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StreamPatches:
    """N patches: row `state[i]` of `states` [M, width] takes the place of the output of block `layer[i]` at position
    `position[i]`, counted from 0, of prompt number `prompt[i]`."""

    states: torch.Tensor
    prompt: Sequence[int]
    layer: Sequence[int]
    position: Sequence[int]
    state: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt)

    def check(self, model: Model, ids: Sequence[Sequence[int]]) -> None:
        """Raise InputError for states, prompts, layers or positions that do not fit the model and its prompts."""
        n = len(self)
        if not n == len(self.layer) == len(self.position) == len(self.state):
            raise InputError("Every patch needs a prompt, a layer, a position and a state.")
        if self.states.ndim != 2 or self.states.shape[1] != model.width:
            raise InputError(f"States to patch have {model.width} numbers each for {model.name}.")
        for i in range(n):
            if not (0 <= self.prompt[i] < len(ids) and 0 <= self.state[i] < len(self.states)):
                raise InputError(f"Patch {i + 1} names a prompt or a state that is not there.")
            if not 0 <= self.layer[i] < model.n_layers:
                raise InputError(
                    f"Layer {self.layer[i]} to patch does not exist: {model.name} has layers 0–{model.n_layers - 1}."
                )
            if not 0 <= self.position[i] < len(ids[self.prompt[i]]):
                raise InputError(
                    f"Position {self.position[i]} to patch is not among the {len(ids[self.prompt[i]])} tokens of "
                    f"prompt {self.prompt[i] + 1}."
                )


@dataclass(frozen=True)
class TextDrawing:
    """How the texts are drawn: `samples` of each patch under `rule`, number m of patch i from (seed, keys[i], m); None:
    the key of a patch is its number."""

    rule: Rule
    samples: int
    seed: int
    keys: tuple[int, ...] | None = None

    def key(self, patch: int) -> int:
        return patch if self.keys is None else self.keys[patch]


@with_pass
def patched_texts(
    model: Model,
    ids: Sequence[Sequence[int]],
    patches: StreamPatches,
    *,
    max_new_tokens: int,
    drawing: TextDrawing | None = None,
    run: Pass,
) -> list[list[list[int]]]:
    """The token ids that follow each patch's prompt: of every patch a list of texts, the likeliest one or, with
    `drawing`, as many as are drawn. Texts end as those of `generate.greedy`.

    Edits of the pass act on everything. Raises InputError for patches, prompts and edits that do not fit."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; generate at least one token.")
    room = [room_after(model, len(row), max_new_tokens) for row in ids]
    check_prompts(model, ids, run, room=room)
    patches.check(model, ids)
    reason = model.lacks(*NEEDED)
    if reason is None and not model.mask_free:  # what biases its attention is made for a batch, not for rows
        reason = f"{model.architecture} makes its attention from the mask of a whole batch"
    if reason is None:
        try:
            return _replayed(model, ids, patches, max_new_tokens, drawing, run)
        except _NotTheSame as error:
            reason = str(error)
    logger.debug("patches of %s are run in whole passes: %s", model.name, reason)
    return whole_passes(model, ids, patches, max_new_tokens=max_new_tokens, drawing=drawing, run=run)


class _NotTheSame(Exception):
    """Blocks that are called one by one do not give what the model gives."""


def _replayed(
    model: Model,
    ids: Sequence[Sequence[int]],
    patches: StreamPatches,
    most: int,
    drawing: TextDrawing | None,
    run: Pass,
) -> list[list[list[int]]]:
    """`patched_texts`, blocks called one by one. Raises _NotTheSame where that does not hold."""
    out: list[list[list[int]]] = [[] for _ in range(len(patches))]
    samples = 1 if drawing is None else drawing.samples
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(patches)):
        groups[len(ids[patches.prompt[i]])].append(i)
    done = 0
    for length in sorted(groups):
        group = sorted(groups[length], key=lambda i: (patches.prompt[i], patches.position[i], patches.layer[i], i))

        def compute(local: list[int], group: list[int] = group) -> None:
            rows = [group[k] for k in local]
            for i, texts in zip(rows, _texts_of(model, ids, patches, rows, most, drawing, run)):
                out[i] = texts

        lengths = [samples * (length + most)] * len(group)
        tokens = model.planned_tokens(DECODE, longest=length + most, caches=True)
        for rows in run.batches(lengths, compute, tokens=tokens):
            done += len(rows)
            run.told(done, len(patches), "patches")
    return out


@torch.no_grad()
def _texts_of(
    model: Model,
    ids: Sequence[Sequence[int]],
    patches: StreamPatches,
    rows: Sequence[int],
    most: int,
    drawing: TextDrawing | None,
    run: Pass,
) -> list[list[list[int]]]:
    """The texts of some patches of prompts of one length."""
    order = sorted(rows, key=lambda i: patches.layer[i])
    distinct = sorted({patches.prompt[i] for i in order})
    place = {prompt: k for k, prompt in enumerate(distinct)}
    prompts = [ids[p] for p in distinct]
    edits = for_prompts(run.edits, distinct)
    seen = _read(model, prompts, min(patches.position[i] for i in order), edits)
    final, cache = _through(model, seen, patches, order, [place[patches.prompt[i]] for i in order], edits)
    run.asked()
    batch = grid(model, [ids[patches.prompt[i]] for i in order])
    room = [room_after(model, seen.length, most)] * len(order)
    decoded = DecodedRows(model, _on_the_left(batch), max(room), cache)
    texts = _decoded(model, decoded, model.logits_from(final), room, most, drawing, order, patches, run)
    found = dict(zip(order, texts))
    return [found[i] for i in rows]


def _on_the_left(batch: Batch) -> Batch:
    return Batch(batch.ids, batch.mask, batch.position_ids, "left", batch.real)


def _decoded(
    model: Model,
    rows: DecodedRows,
    scores: torch.Tensor,
    room: list[int],
    most: int,
    drawing: TextDrawing | None,
    order: Sequence[int],
    patches: StreamPatches,
    run: Pass,
) -> list[list[list[int]]]:
    """Decode after rows that were read, with these scores [R, V] → the texts of each row."""
    prompt = [patches.prompt[i] for i in order]
    copies = 1 if drawing is None else drawing.samples
    if copies > 1:
        many = [k for k in range(len(order)) for _ in range(copies)]
        index = rows.select(many)
        scores, room, prompt = scores[index.to(scores.device)], [room[k] for k in many], [prompt[k] for k in many]
    texts = GrowingTexts(room, most, Ends.of(model, (), (), True))

    def edits(alive: list[int]) -> Sequence[Edit]:
        return for_prompts(run.edits, [prompt[k] for k in alive])

    if drawing is not None:
        key = row_keys(
            drawing.seed, [drawing.key(i) for i in order for _ in range(copies)], list(range(copies)) * len(order)
        )
        (rows.keys,) = sent([keys_of_steps(key, max(room))], scores.device)
    block = rows_at_once(scores.device, scores.shape[1])

    def choose(scores: torch.Tensor, keys: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return likeliest_unchecked(scores) if drawing is None else step(scores, drawing.rule, keys=keys, rows=block)

    decode(rows, scores, texts, Decoding(choose, edits, lambda _: run.asked()))
    return [texts.written[k : k + copies] for k in range(0, len(texts.written), copies)]


# ---- prompts read once, and their patches sent through the blocks


@dataclass(eq=False)
class _Seen:
    """A pass over the columns from `first` on of P prompts of one length: how each block was called, the keys and
    values [P, KV, length, D] of every layer, and the last block's output [P, columns, width]."""

    calls: list[tuple[tuple, dict]]
    whole: list[tuple[torch.Tensor, torch.Tensor]]
    final: torch.Tensor
    first: int
    length: int


def _read(model: Model, prompts: Sequence[Sequence[int]], first: int, edits: Sequence[Edit]) -> _Seen:
    """Read P prompts of one length, watching the blocks on the columns from `first` on."""
    blocks = [block.block for block in model.anatomy.blocks]
    calls: dict[int, tuple[tuple, dict]] = {}
    final: list[torch.Tensor] = []

    def seen(number: int, args: tuple, kwargs: dict) -> None:
        calls[number] = (args, dict(kwargs))

    with apply(model, edits):
        front = feed(model, [row[:first] for row in prompts], None)[0] if first else None
        cache = cache_of(()) if front is None else front.cache
        with contextlib.ExitStack() as stack:
            for number, block in enumerate(blocks):
                stack.callback(before(block, lambda _m, a, k, i=number: seen(i, a, k)).remove)
            keep = after(blocks[-1], lambda _m, _a, output: final.append(first_tensor(output).clone()))
            stack.callback(keep.remove)
            model.forward(
                grid(model, [row[first:] for row in prompts], first),
                cache=cache,
                past=None if front is None else front.past,
                last_logits=1,
            )
    layers: list[Any] = list(cache.layers)
    if len(layers) != len(blocks) or any(layer.keys is None for layer in layers):
        raise _NotTheSame(f"{model.architecture} keeps other states than keys and values of every layer")
    return _Seen(
        [calls[i] for i in range(len(blocks))],
        [keys_and_values(layer) for layer in layers],
        final[-1],
        first,
        len(prompts[0]),
    )


class _Growing:
    """Keys and values of the columns before `first`, as the blocks ask for them: returned in front of the new ones, and
    the whole of each layer is kept."""

    is_compileable = False

    def __init__(self, seen: _Seen, prompt: torch.Tensor):
        self.seen, self.prompt = seen, prompt
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def get_seq_length(self, *_args, **_kwargs) -> int:
        return self.seen.first

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_args, **_kwargs):
        if self.seen.first:
            chosen = self.prompt.to(key.device)
            past = (part[:, :, : self.seen.first].index_select(0, chosen) for part in self.seen.whole[layer_idx])
            key, value = (torch.cat([old, new], 2) for old, new in zip(past, (key, value)))
        self.kept[layer_idx] = (key, value)
        return key, value


def _through(
    model: Model,
    seen: _Seen,
    patches: StreamPatches,
    order: Sequence[int],
    prompt_of: Sequence[int],
    edits: Sequence[Edit],
) -> tuple[torch.Tensor, Any]:
    """The final states [R, width] at the last position of the patches `order`, which are in the order of their layers
    and of the prompts `prompt_of` of `seen`, and a cache of all that was read.

    The prompts themselves, unpatched, travel behind, last one first: raises _NotTheSame where they do not come out as
    the model's own pass gave them."""
    n, device = len(seen.final), seen.final.device
    layer_of = [patches.layer[i] for i in order]
    states = patches.states[torch.tensor([patches.state[i] for i in order], device=patches.states.device)]
    columns = torch.tensor([patches.position[i] - seen.first for i in order])
    prompt, columns = sent([torch.tensor(prompt_of), columns], device)
    plain = torch.arange(n - 1, -1, -1, device=device)  # the prompts as they are
    hidden = hidden_argument(*seen.calls[0])[plain]
    whole: list[tuple[torch.Tensor, torch.Tensor]] = []
    joined = 0  # patches that are on their way, in front of the prompts

    def arrivals(layer: int, into: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, int]:
        """`hidden` with the patches of block `layer` put in: copies of `into` [P, columns, width] with their states."""
        end = joined + sum(at == layer for at in layer_of[joined:])
        if end == joined:
            return hidden, joined
        mine = slice(joined, end)
        fresh = into.to(device)[prompt[mine]].clone()
        fresh[torch.arange(end - joined, device=device), columns[mine]] = states[mine].to(device, fresh.dtype)
        parts = (hidden[:joined], fresh.to(hidden.device), hidden[joined:])
        return torch.cat(parts), end

    for layer in range(model.n_layers):
        if layer:
            hidden, joined = arrivals(layer - 1, hidden_argument(*seen.calls[layer]), hidden)
        rows = torch.cat([prompt[:joined], plain])
        hidden, kept = _block(model, seen, layer, hidden, rows, edits)
        rest = prompt[joined:]
        keys, values = (
            torch.cat([mine[:joined], part.index_select(0, rest.to(part.device))])
            for mine, part in zip(kept, seen.whole[layer])
        )
        whole.append((keys, values))
    _check_unpatched(model, hidden[joined:], seen.final[plain.to(seen.final.device)])
    hidden, joined = arrivals(model.n_layers - 1, seen.final, hidden)
    return hidden[:joined, -1], cache_of(whole)


def _block(
    model: Model, seen: _Seen, layer: int, hidden: torch.Tensor, prompt: torch.Tensor, edits: Sequence[Edit]
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Call one block on `hidden` [R, columns, width] as the recorded pass did, every per-prompt argument repeated for
    its rows [R]; → its output, and the keys and values of all columns of these rows."""
    args, kwargs = seen.calls[layer]
    n, past, old = len(seen.final), _Growing(seen, prompt), hidden_argument(args, kwargs)

    def fit(value):
        if value is old:
            return hidden
        if isinstance(value, torch.Tensor):  # what has one dimension belongs to columns
            several = n > 1 and value.ndim > 1 and value.shape[0] == n
            return value[prompt.to(value.device)] if several else value
        if isinstance(value, tuple):
            return tuple(fit(item) for item in value)
        return past if hasattr(value, "update") and hasattr(value, "get_seq_length") else value

    rows = len(prompt)
    keys = torch.arange(seen.length, device=prompt.device).expand(rows, -1)
    position = keys[:, seen.first :]
    own = for_prompts(edits, prompt.tolist()) if edits else ()
    with running(PassPositions(position, torch.ones_like(position, dtype=torch.bool), keys)), apply(model, own):
        output = model.anatomy.blocks[layer].block(
            *(fit(a) for a in args), **{key: fit(value) for key, value in kwargs.items()}
        )
    if layer not in past.kept:
        raise _NotTheSame(f"block {layer} of {model.architecture} asks for no keys and values of earlier tokens")
    return first_tensor(output), past.kept[layer]


def _check_unpatched(model: Model, replayed: torch.Tensor, final: torch.Tensor) -> None:
    """Raise _NotTheSame where blocks that are called one by one do not give the final states [P, columns, width] of the
    whole pass, and RunFailed where either is no number."""
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 6e-2
    if not bool((replayed - final).abs().max() < tolerance * (1e-6 + final.abs().max())):
        check_finite(model, model.n_layers - 1, replayed, final)
        raise _NotTheSame(f"the blocks of {model.architecture} cannot be called on their own")


# ---- one whole pass for every patch


@with_pass
def whole_passes(
    model: Model,
    ids: Sequence[Sequence[int]],
    patches: StreamPatches,
    *,
    max_new_tokens: int,
    drawing: TextDrawing | None = None,
    run: Pass,
) -> list[list[list[int]]]:
    """`patched_texts` by an edit of the site resid_post: every patch reads its whole prompt."""
    patches.check(model, ids)
    out: list[list[list[int]]] = [[] for _ in range(len(patches))]
    done = 0
    for rows, edit in _edits(patches):
        prompts = [patches.prompt[i] for i in rows]
        mine = Pass((*for_prompts(run.edits, prompts), edit), run.max_tokens, run.max_rows, run.check)
        texts = [ids[p] for p in prompts]
        if drawing is None:
            found = [[text] for text in greedy(model, texts, max_new_tokens=max_new_tokens, run=mine)]
        else:
            drawn = sample(
                model,
                texts,
                samples=drawing.samples,
                max_new_tokens=max_new_tokens,
                rule=drawing.rule,
                seed=drawing.seed,
                prompt_keys=[drawing.key(i) for i in rows],
                run=mine,
            )
            found = [[drawn.tokens(k, m) for m in range(drawing.samples)] for k in range(len(rows))]
        for i, written in zip(rows, found):
            out[i] = written
        done += len(rows)
        run.told(done, len(patches), "patches")
    return out


def _edits(patches: StreamPatches) -> Iterator[tuple[list[int], Patch]]:
    """Patches of one layer and position, and the edit that makes them."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, key in enumerate(zip(patches.layer, patches.position)):
        alike[key].append(i)
    for (layer, position), rows in sorted(alike.items()):
        value = patches.states[torch.tensor([patches.state[i] for i in rows], device=patches.states.device)]
        yield rows, Patch(Site("resid_post", layer), value[:, None], positions=(position,))
