"""Path patching, exact and fast: what the next-token scores would be had one head said what it says on another prompt.

Every function takes prompts (`ids`), donors of the same lengths (`donors`, usually corrupted prompts) and the `tokens`
[n, k] whose scores are wanted. A head's output at the last position (z, before the output projection) is replaced by
the donor's, and

* `direct_effects`: all other heads and all MLPs keep their outputs. The patched stream is then r + Δz·W_O (through the
  post-attention norm where there is one), so all heads need one pass over the prompt, one over the donor and a matrix
  product;
* `direct_mlp_effects`: all other heads keep their outputs, the MLPs after the head are computed again;
* `total_effects`: everything after the head is computed again.

The last two run at the last position only: earlier positions cannot see it, so their keys and values are cached once.
The rows of all heads travel through the blocks as one batch that a head's row joins at the head's own layer. The final
norm, the soft-cap and the normaliser are always computed on the patched stream, never reused. (Jin et al. 2024, steps B
and C; Wang et al. 2022 for paths.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from workbench.core.errors import InputError
from workbench.engine.edits import Patch, apply, on_final_norm
from workbench.engine.hf import stream
from workbench.engine.last_token_replay import REPLAYED, Injection, Job, check_finite, injected_states, room
from workbench.engine.passes import GRADIENT, READ, Pass, check_ids, check_prompts, with_pass
from workbench.models.batching import Batch, batches, halving, pad
from workbench.models.float32 import in_float32
from workbench.models.host_copies import Resident, arrivals, arriving
from workbench.models.model import Model
from workbench.models.recording import ended_by, read_out_site, scores_of, select_positions
from workbench.models.running_pass import before as before_call
from workbench.models.sites import Site, sites

Head = tuple[int, int]
SCORES = 1 << 26  # most numbers of (rows × vocabulary) held at once
STATES = 1 << 27  # most numbers of (prompts × patches × width) held at once
ADDITIVE = ("heads_apart", "heads_add_up", "stream_adds_up")  # what direct paths rest on
READ_OFF = ("final_norm_ends_stream", "logits_unembedded")  # and scores of patched streams


@dataclass(frozen=True, eq=False)
class Effects:
    """Scores of k tokens per prompt, as they are and under m patches; float32 on the CPU.

    logits [n, k], normaliser [n] (log of the summed exponentials); patched_logits [n, m, k], patched_normaliser [n,
    m]."""

    logits: torch.Tensor
    normaliser: torch.Tensor
    patched_logits: torch.Tensor
    patched_normaliser: torch.Tensor

    def change(self, metric: str = "logprob") -> torch.Tensor:
        """Patched minus unpatched, [n, m, k]: of the log-probability ("logprob") or of the raw score ("logit")."""
        change = self.patched_logits - self.logits[:, None]
        return change if metric == "logit" else change - (self.patched_normaliser - self.normaliser[:, None])[..., None]


def check_pairs(
    model: Model, ids, donors, tokens, run: Pass, align: Sequence[Sequence[int]] | None = None
) -> torch.Tensor:
    """The tokens as a tensor [n, k]; InputError unless prompts, donors, tokens and alignments (of every prompt the
    donor's position for each of its own) fit each other and the model."""
    check_prompts(model, ids, run)
    check_ids(model, donors)
    if not len(ids) == len(donors) == len(tokens):
        raise InputError(
            f"Patching needs one donor and one set of tokens per prompt; there are {len(ids)}, {len(donors)} "
            f"and {len(tokens)}."
        )
    for row, (a, b) in enumerate(zip(ids, donors)):
        if align is not None:
            _check_alignment(align, row, len(a), len(b))
        elif len(a) != len(b):
            raise InputError(
                f"Prompt {row + 1} has {len(a)} tokens and its donor {len(b)}: they cannot be aligned; use a "
                f"donor of equal length."
            )
    tokens = torch.as_tensor(tokens, dtype=torch.long)
    if tokens.ndim != 2 or not 0 <= int(tokens.min()) <= int(tokens.max()) < model.vocab_size:
        raise InputError(f"The tokens to score must be ids below {model.vocab_size}, the same number for every prompt.")
    return tokens


def _check_alignment(align: Sequence[Sequence[int]], row: int, own: int, theirs: int) -> None:
    given = align[row] if row < len(align) else ()
    if len(given) != own or any(not 0 <= p < theirs for p in given):
        raise InputError(
            f"The alignment of prompt {row + 1} must name a position of its donor (0 to {theirs - 1}) for each of its "
            f"{own} tokens."
        )


def _heads(model: Model, heads: Sequence[Head] | None) -> list[Head]:
    chosen = model.heads() if heads is None else list(heads)
    model.check_heads(chosen)
    return chosen


def _at_last(model: Model, ids, wanted: Sequence[Site], run: Pass) -> dict[Site, torch.Tensor]:
    """Activations at the last position, in the order of `ids`, in the model's dtype and on its device."""
    parts: dict[Site, list[torch.Tensor]] = {site: [] for site in wanted}
    order: list[int] = []
    for indices, found, _ in stream(model, ids, wanted, edits=run.edits):
        order += indices
        for site in wanted:
            parts[site].append(found[site])
    if order == list(range(len(ids))):
        return {site: torch.cat(some) for site, some in parts.items()}
    place = Resident(torch.tensor(order).argsort())
    return {site: torch.cat(some)[place.on(some[0].device)] for site, some in parts.items()}


def _scores(model: Model, residual: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Final states [R, width], tokens [R, k] → their scores [R, k] and the log-normaliser [R], float32, on the device
    of the scores."""
    logits, normaliser, targets = [], [], Resident(tokens)
    for rows in torch.arange(len(residual)).split(max(1, SCORES // model.vocab_size)):
        here = slice(int(rows[0]), int(rows[-1]) + 1)
        scores = model.logits_from(residual[here])
        logits.append(scores.gather(1, targets.on(scores.device)[here]))
        normaliser.append(scores.logsumexp(-1))
    return torch.cat(logits), torch.cat(normaliser)


# ---- the direct path, in closed form


def writes(model: Model, layer: int, z: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """What layer `layer`'s attention adds to the stream beyond what it adds with z, when one head's output changes.

    z [..., H, d_head]; change [..., H, d_head], the change of each head taken alone → [..., H, width]. With a norm
    after attention (Gemma-2, OLMo-2) the heads are not additive: the norm is computed again on every patched sum.

    Raises InputError where heads have no outputs of their own, or the stream is not the sum of what is added to it."""
    model.require(*ADDITIVE, for_what="what single heads write to the residual stream", layers=[layer])
    block = model.anatomy.blocks[layer]
    wide = torch.promote_types(change.dtype, torch.float32)
    delta = torch.einsum("...hd,hdw->...hw", change.to(wide), model.W_O(layer).to(wide))
    if block.attention_writer not in block.norms.values():
        return delta
    norm = block.attention_writer
    raw = block.o_proj(z.flatten(-2))
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    patched = in_float32(norm, (raw[..., None, :] + delta).to(raw.dtype))
    return (patched - in_float32(norm, raw)[..., None, :]).to(delta.dtype)


def _check_writers(model: Model, states: dict[Site, torch.Tensor]) -> None:
    """The output projection (and post-norm) of the heads is what attention adds to the stream; otherwise refused."""
    layers, told = [], []  # of each layer: how far the two are apart at most, and how large they are
    for layer in range(model.n_layers):
        if (seen := states.get(Site("attn_out", layer))) is None:
            continue
        block = model.anatomy.blocks[layer]
        ours = block.o_proj(states[Site("head_out", layer)].flatten(-2))
        if block.attention_writer in block.norms.values():
            ours = block.attention_writer(ours)
        layers.append(layer)
        told.append(torch.stack([(ours - seen).abs().max(), seen.abs().max()]).float())
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 6e-2
    for layer, (apart, size) in zip(layers, torch.stack([two.to(told[0].device) for two in told]).cpu()):
        check_finite(model, layer, apart)  # NaN or infinite where any of the two is
        if not apart <= tolerance * (1e-6 + size):
            why = f"changes the heads' sum after the output projection of layer {layer}"
            raise InputError(f"{model.architecture} {why}; its direct paths cannot be computed in closed form.")


@with_pass
@torch.no_grad()
def direct_effects(model: Model, ids, donors, tokens, *, heads: Sequence[Head] | None = None, run: Pass) -> Effects:
    """Effects of replacing each head's last output, all other writers frozen; m = the heads given, or all of them,
    layer by layer."""
    model.require(*ADDITIVE, *READ_OFF, for_what="direct paths")
    tokens, chosen = check_pairs(model, ids, donors, tokens, run), _heads(model, heads)
    layers = sorted({layer for layer, _ in chosen})
    z_sites, final = sites("head_out", layers), Site("resid_post", model.n_layers - 1)
    order = {head: i for i, head in enumerate(chosen)}

    def compute(rows: list[int], first: bool) -> tuple[torch.Tensor, ...]:
        mine = run.for_prompts(rows)
        # the identity that the shortcut rests on is checked on the first batch
        wanted = [*z_sites, final, *(sites("attn_out", layers) if first else ())]
        states = _at_last(model, [ids[i] for i in rows], wanted, mine)
        if first:
            _check_writers(model, states)
        donor = _at_last(model, [donors[i] for i in rows], z_sites, mine)
        residual = states[final].to(torch.promote_types(states[final].dtype, torch.float32))
        patched = residual.new_empty(len(rows), len(chosen), model.width)
        for layer, site in zip(layers, z_sites):
            own = [pair for pair in chosen if pair[0] == layer]
            heads, places = _index([h for _, h in own], residual), _index([order[pair] for pair in own], residual)
            wide = torch.promote_types(states[site].dtype, torch.float32)
            added = writes(model, layer, states[site], donor[site].to(wide) - states[site].to(wide))
            patched[:, places] = residual[:, None] + added.to(residual.device)[:, heads]
        return _both(model, residual, patched, tokens[rows])

    most = max(1, STATES // (len(chosen) * model.width))
    plan = batches(
        [len(row) for row in ids], max_tokens=run.max_tokens or READ, max_rows=min(run.max_rows or most, most)
    )
    return gather(len(ids), plan, compute, run)


def direct_scores(
    model: Model, ids, layer: int, head: int, z: torch.Tensor, tokens: torch.Tensor, run: Pass
) -> tuple[torch.Tensor, ...]:
    """Scores of n prompts when one head outputs each of z [n, m, d_head] in turn, everything else frozen."""
    site, final = Site("head_out", layer), Site("resid_post", model.n_layers - 1)
    states = _at_last(model, ids, [site, final], run)
    wide = torch.promote_types(states[site].dtype, torch.float32)
    change = states[site].new_zeros(*z.shape[:2], model.n_heads, model.d_head, dtype=wide)
    change[:, :, head] = z.to(wide) - states[site][:, None, head].to(wide)
    added = writes(model, layer, states[site][:, None].expand_as(change).to(states[site].dtype), change)[:, :, head]
    residual = states[final].to(wide)
    return _both(model, residual, residual[:, None] + added.to(residual.device), tokens)


def _both(
    model: Model, residual: torch.Tensor, patched: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Scores of [n, width] and of [n, m, width] final states."""
    n, m, k = *patched.shape[:2], tokens.shape[1]
    everything = torch.cat([residual[:, None], patched], 1).flatten(0, 1)
    logits, normaliser = _scores(model, everything, tokens[:, None].expand(n, m + 1, k).flatten(0, 1))
    logits, normaliser = logits.reshape(n, m + 1, k), normaliser.reshape(n, m + 1)
    return logits[:, 0], normaliser[:, 0], logits[:, 1:], normaliser[:, 1:]


def _index(numbers: list[int], like: torch.Tensor) -> slice | torch.Tensor:
    """What picks these places of a dimension on the device of `like`; a slice where they follow each other."""
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return arriving(torch.tensor(numbers), like.device)


def gather(n: int, plan: list[list[int]], compute: Callable, run: Pass) -> Effects:
    """Run `compute(rows, first)` on every group of the plan and put the results in the order of the prompts; a group
    that runs out of memory is halved."""

    def computed() -> Iterator[tuple[list[int], dict[int, torch.Tensor]]]:
        done: list[int] = []
        for group in plan:
            for rows, found in halving(group, lambda rows: compute(rows, not done), run.check):
                done.extend(rows)
                yield rows, dict(enumerate(found))

    out: list[torch.Tensor] = []
    for rows, found in arrivals(computed()):
        if not out:
            out.extend(t.new_empty(n, *t.shape[1:]) for t in found.values())
        for whole, part in zip(out, found.values()):
            whole[rows] = part
    return Effects(*out)


# ---- everything after the head computed again, at the last position only


def injected(
    model: Model, ids, jobs: Sequence[Job], tokens: torch.Tensor, run: Pass, *, frozen: bool = False
) -> tuple[torch.Tensor, ...]:
    """Scores of P prompts of equal length, unpatched and under each job at the last position.

    → logits [P, k], normaliser [P], patched logits [P, jobs, k], patched normaliser [P, jobs]."""
    with torch.no_grad():
        return _both(model, *injected_states(model, ids, jobs, frozen=frozen, edits=run.edits), tokens)


def _recomputed(model: Model, ids, donors, tokens, heads, run: Pass, *, frozen: bool) -> Effects:
    model.require(*REPLAYED, *READ_OFF, for_what="effects of heads through later blocks")
    tokens, chosen = check_pairs(model, ids, donors, tokens, run), _heads(model, heads)
    z_sites = {layer: Site("head_out", layer) for layer in sorted({layer for layer, _ in chosen})}

    def compute(rows: list[int], _first: bool) -> tuple[torch.Tensor, ...]:
        mine, prompts = run.for_prompts(rows), [ids[i] for i in rows]
        donor = _at_last(model, [donors[i] for i in rows], list(z_sites.values()), mine)
        jobs = [Injection(layer, head, donor[z_sites[layer]][:, head]) for layer, head in chosen]

        return replayed(model, prompts, jobs, tokens[rows], mine, frozen=frozen)

    return gather(len(ids), alike(model, ids, len(chosen)), compute, run)


def alike(model: Model, ids, jobs: int) -> list[list[int]]:
    """Prompts of equal length, in groups of which so many jobs each have room in one replay."""
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(ids):
        by_length.setdefault(len(row), []).append(i)
    plan = []
    for length, rows in sorted(by_length.items()):
        size = max(1, room(model, length, 4) // (jobs + 1))
        plan += [rows[i : i + size] for i in range(0, len(rows), size)]
    return plan


def replayed(
    model: Model, ids, jobs: Sequence[Job], tokens: torch.Tensor, run: Pass, *, frozen: bool = False
) -> tuple[torch.Tensor, ...]:
    """As `injected`; where memory runs out with one prompt, its jobs are halved (prompts are halved first, by
    `gather`)."""

    def inject(some: list[Job]) -> tuple[torch.Tensor, ...]:
        return injected(model, ids, some, tokens, run, frozen=frozen)

    if len(ids) > 1:
        return inject(list(jobs))
    parts = [found for _, found in halving(jobs, inject, run.check)]
    return *parts[0][:2], *(torch.cat([part[k] for part in parts], 1) for k in (2, 3))


@with_pass
def total_effects(model: Model, ids, donors, tokens, *, heads: Sequence[Head] | None = None, run: Pass) -> Effects:
    """Effects of replacing each head's last output with nothing frozen: later heads and MLPs react to it."""
    return _recomputed(model, ids, donors, tokens, heads, run, frozen=False)


@with_pass
def direct_mlp_effects(model: Model, ids, donors, tokens, *, heads: Sequence[Head] | None = None, run: Pass) -> Effects:
    """Effects of replacing each head's last output with the other heads frozen and the MLPs computed again."""
    return _recomputed(model, ids, donors, tokens, heads, run, frozen=True)


VARIANTS: dict[str, Callable[..., Effects]] = {
    "direct": direct_effects,
    "direct_mlp": direct_mlp_effects,
    "total": total_effects,
}


# ---- gradients, and patches at other sites


@with_pass
def attribution(model: Model, ids, donors, tokens, *, metric: str = "logprob", run: Pass) -> torch.Tensor:
    """First-order estimate of `total_effects`: Δ log p ≈ ⟨∂ log p / ∂z, z* − z⟩ at the last position, [n, L·H, k]
    float32 (of the raw score for `metric="logit"`).

    One forward pass and k backward passes for all heads. The weights need no gradient: it is taken at a zero added to
    each z."""
    model.require("heads_apart", "logits_unembedded", for_what="attribution to heads")
    tokens = check_pairs(model, ids, donors, tokens, run)
    z_sites = sites("head_out", range(model.n_layers))
    held: list[torch.Tensor] = []  # of the batch at hand

    def compute(rows: list[int]) -> None:
        prompts, mine = [ids[i] for i in rows], run.for_prompts(rows)
        old, new = (_at_last(model, part, z_sites, mine) for part in (prompts, [donors[i] for i in rows]))
        change = [new[site].float() - old[site].float() for site in z_sites]
        batch, effects = pad(prompts, pad_id=model.pad_id, device=model.device), []
        with torch.enable_grad():
            leaves, scores = _last_scores(model, batch, mine)
            scores = scores if metric == "logit" else scores.log_softmax(-1)
            wanted = arriving(tokens[rows], scores.device)
            for k in range(tokens.shape[1]):
                one = scores.gather(1, wanted[:, k : k + 1]).sum()
                slopes = torch.autograd.grad(one, leaves, retain_graph=k + 1 < tokens.shape[1])
                of_heads = [(slope.reshape(d.shape).float() * d).sum(-1) for slope, d in zip(slopes, change)]
                effects.append(torch.cat([effect.to(scores.device) for effect in of_heads], 1))
        held[:] = [torch.stack(effects, -1)]

    out = torch.empty(len(ids), model.n_layers * model.n_heads, tokens.shape[1])
    done = run.batches([len(row) for row in ids], compute, tokens=GRADIENT)
    for rows, found in arrivals((rows, {0: held[0]}) for rows in done):
        out[rows] = found[0]
    return out


def _last_scores(model: Model, batch: Batch, run: Pass) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Zeros added to every layer's z at the last position, [B, H·d_head] each, and the scores there [B, V] as a
    function of them."""
    rows, at_last = len(batch.sizes), select_positions(batch, "last")
    last = torch.nn.functional.one_hot(torch.tensor(batch.sizes) - 1, batch.real.shape[1])  # padded on the right
    last = Resident(last[..., None])
    leaves: dict[int, torch.Tensor] = {}
    site = read_out_site(model, edited=on_final_norm(run.edits))

    def add(layer: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        x = args[0]
        leaves[layer] = x.new_zeros(rows, x.shape[-1]).requires_grad_()
        rowed = x.unflatten(0, batch.ids.shape) if x.ndim == 2 else x
        return ((rowed + last.on(x.device, x.dtype) * leaves[layer][:, None]).reshape(x.shape), *args[1:]), kwargs

    with contextlib.ExitStack() as stack:
        stack.enter_context(apply(model, run.edits))
        for layer in range(model.n_layers):
            handle = before_call(model.o_proj(layer), lambda _m, args, kwargs, layer=layer: add(layer, args, kwargs))
            stack.callback(handle.remove)
        states = stack.enter_context(ended_by(model, site))
        model.forward(batch)
    state = states[0].unflatten(0, batch.ids.shape) if states[0].ndim == 2 else states[0]
    return [leaves[layer] for layer in range(model.n_layers)], scores_of(model, site, at_last(state))


@with_pass
def activation_patching(
    model: Model,
    ids,
    donors,
    tokens,
    kind: str,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    head: int | None = None,
    align: Sequence[Sequence[int]] | None = None,
    run: Pass,
) -> Effects:
    """Effects of putting the donor's activation at one (layer, position) at a time, nothing frozen; m = layers ×
    positions.

    `kind`: any kind of site but logits (head_out with `head`: that head alone). Negative positions count from each
    prompt's end; None takes every position, for which all prompts must have one length. `align`: of every prompt the
    donor's position for each of its own; without it the two have one length and go position by position."""
    tokens = check_pairs(model, ids, donors, tokens, run, align)
    lengths = [len(row) for row in ids]
    if positions is None:
        if len(set(lengths)) > 1:
            raise InputError(
                "The prompts have different lengths: name the positions to patch (negative ones count from the end)."
            )
        positions = range(lengths[0])
    positions = list(positions)
    if any(not -length <= p < length for p in positions for length in lengths):
        raise InputError(f"A position to patch lies outside the shortest prompt ({min(lengths)} tokens).")
    spots = [Site(kind, layer, head) for layer in (range(model.n_layers) if layers is None else layers)]

    def compute(rows: list[int], _first: bool) -> tuple[torch.Tensor, ...]:
        (row,) = rows
        length, mine = lengths[row], run.for_prompts(rows)
        base, donor = _whole(model, ids, donors, row, spots, mine, align)
        columns = torch.tensor([p % length for p in positions])
        here = Resident(torch.nn.functional.one_hot(columns, length).bool())

        def patched(site: Site, part: slice) -> torch.Tensor:
            x = base[site]
            at = here.on(x.device)[part]
            return torch.where(at.reshape(*at.shape, *[1] * (x.ndim - 1)), donor[site], x)

        return _patched_one_by_one(model, ids[row], spots, len(positions), patched, tokens[[row]], mine)

    return gather(len(ids), [[i] for i in range(len(ids))], compute, run)


def _whole(
    model: Model, ids, donors, row: int, wanted: Sequence[Site], run: Pass, align: Sequence[Sequence[int]] | None
) -> tuple[dict[Site, torch.Tensor], dict[Site, torch.Tensor]]:
    """Activations [T, …] of every token of one prompt, and of its donor, position by position as `align` says."""
    base, donor = (
        next(stream(model, [source[row]], wanted, positions="all", edits=run.edits))[1] for source in (ids, donors)
    )
    if align is not None:
        place = Resident(torch.tensor(list(align[row])))
        donor = {site: values[place.on(values.device)] for site, values in donor.items()}
    return base, donor


def _patched_one_by_one(
    model: Model,
    row: Sequence[int],
    spots: Sequence[Site],
    n: int,
    patched: Callable[[Site, slice], torch.Tensor],
    tokens: torch.Tensor,
    run: Pass,
) -> tuple[torch.Tensor, ...]:
    """Scores of the tokens [1, k] of one prompt as it is, and with `n` patches at each of the sites in turn:
    `patched(site, part)` [p, T, …] are the activations of a site under some of its patches."""
    step, found = max(1, (run.max_tokens or READ) // len(row)), []
    for site in spots:
        for start in range(0, n, step):
            value = patched(site, slice(start, min(start + step, n)))
            many = run.for_prompts([0] * len(value))
            found.append(
                _last_of(model, row, replace(many, edits=(*many.edits, Patch(site, value))), tokens, len(value))
            )
    logits, normaliser = _last_of(model, row, run, tokens, 1)
    here = logits.device
    parts = ([part[k].to(here) for part in found] for k in (0, 1))
    return logits, normaliser, *(torch.cat(some)[None] for some in parts)


@with_pass
def head_patching(
    model: Model, ids, donors, tokens, *, align: Sequence[Sequence[int]] | None = None, run: Pass
) -> Effects:
    """Effects of putting each head's outputs on the donor, at all positions at once, in place of its own, nothing
    frozen; m = all heads, layer by layer. `align` as in `activation_patching`."""
    model.require("heads_apart", for_what="patching of heads")
    tokens = check_pairs(model, ids, donors, tokens, run, align)
    z_sites = sites("head_out", range(model.n_layers))

    def compute(rows: list[int], _first: bool) -> tuple[torch.Tensor, ...]:
        (row,) = rows
        mine = run.for_prompts(rows)
        base, donor = _whole(model, ids, donors, row, z_sites, mine, align)
        each = Resident(torch.eye(model.n_heads, dtype=torch.bool))

        def patched(site: Site, part: slice) -> torch.Tensor:  # [p, T, H, d_head]
            return torch.where(each.on(base[site].device)[part][:, None, :, None], donor[site], base[site])

        return _patched_one_by_one(model, ids[row], z_sites, model.n_heads, patched, tokens[[row]], mine)

    return gather(len(ids), [[i] for i in range(len(ids))], compute, run)


def _last_of(
    model: Model, row: Sequence[int], run: Pass, tokens: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last scores of the tokens [1, k] and log-normaliser of one prompt run `n` times, [n, k] and [n] on the device:
    edits with a value for each know which is which."""
    logits, normaliser, wanted = [], [], Resident(tokens)
    together = replace(run, max_tokens=1 << 40, max_rows=n)
    for indices, found, _ in stream(model, [row] * n, ["logits"], dtype=torch.float32, run=together):
        scores = found[Site("logits")]  # batches of equal lengths come in the order of the rows
        logits.append(scores.gather(1, wanted.on(scores.device).expand(len(indices), -1)))
        normaliser.append(scores.logsumexp(-1))
    return torch.cat(logits), torch.cat(normaliser)
