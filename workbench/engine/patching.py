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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import InputError
from workbench.engine.edits import Edit, Patch, apply, on_final_norm
from workbench.engine.hf import stream
from workbench.engine.last_token_replay import REPLAYED, Injection, check_finite, injected_states, room
from workbench.engine.passes import GRADIENT, READ, Pass, check_ids, check_prompts, with_pass
from workbench.models.batching import Batch, batches, halving, pad
from workbench.models.float32 import in_float32
from workbench.models.model import Model
from workbench.models.recording import ended_by, read_out_site, scores_of
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
    rows: dict[Site, list] = {site: [None] * len(ids) for site in wanted}
    for indices, found, _ in stream(model, ids, wanted, edits=run.edits):
        for site in wanted:
            for i, row in zip(indices, found[site]):
                rows[site][i] = row
    return {site: torch.stack(values) for site, values in rows.items()}


def _scores(model: Model, residual: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Final states [R, width], tokens [R, k] → their scores [R, k] and the log-normaliser [R], float32 on the CPU."""
    logits, normaliser = [], []
    for part, wanted in zip(*(t.split(max(1, SCORES // model.vocab_size)) for t in (residual, tokens))):
        scores = model.logits_from(part)
        logits.append(scores.gather(1, wanted.to(scores.device)).cpu())
        normaliser.append(scores.logsumexp(-1).cpu())
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
    for layer in range(model.n_layers):
        if (seen := states.get(Site("attn_out", layer))) is None:
            continue
        block = model.anatomy.blocks[layer]
        ours = block.o_proj(states[Site("head_out", layer)].flatten(-2))
        if block.attention_writer in block.norms.values():
            ours = block.attention_writer(ours)
        tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 6e-2
        check_finite(model, layer, ours, seen)
        if not (ours - seen).abs().max() <= tolerance * (1e-6 + seen.abs().max()):
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
            these = [(order[pair], pair[1]) for pair in chosen if pair[0] == layer]
            wide = torch.promote_types(states[site].dtype, torch.float32)
            added = writes(model, layer, states[site], donor[site].to(wide) - states[site].to(wide))
            patched[:, [i for i, _ in these]] = residual[:, None] + added[:, [h for _, h in these]].to(residual.device)
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


def gather(n: int, plan: list[list[int]], compute: Callable, run: Pass) -> Effects:
    """Run `compute(rows, first)` on every group of the plan and put the results in the order of the prompts; a group
    that runs out of memory is halved."""
    out: list[torch.Tensor] = []  # filled in place: whether it is empty says whether a group is the first
    for group in plan:
        for rows, found in halving(group, lambda rows: compute(rows, not out), run.check):
            if not out:
                out.extend(t.new_empty(n, *t.shape[1:]) for t in found)
            for whole, part in zip(out, found):
                whole[rows] = part
    return Effects(*out)


# ---- everything after the head computed again, at the last position only


def injected(
    model: Model, ids, jobs: Sequence[Injection], tokens: torch.Tensor, run: Pass, *, frozen: bool = False
) -> tuple[torch.Tensor, ...]:
    """Scores of P prompts of equal length, unpatched and under each injection at the last position.

    → logits [P, k], normaliser [P], patched logits [P, jobs, k], patched normaliser [P, jobs]."""
    with torch.no_grad():
        return _both(model, *injected_states(model, ids, jobs, frozen=frozen, edits=run.edits), tokens)


def _recomputed(model: Model, ids, donors, tokens, heads, run: Pass, *, frozen: bool) -> Effects:
    model.require(*REPLAYED, *READ_OFF, for_what="effects of heads through later blocks")
    tokens, chosen = check_pairs(model, ids, donors, tokens, run), _heads(model, heads)
    z_sites = {layer: Site("head_out", layer) for layer in sorted({layer for layer, _ in chosen})}
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(ids):
        by_length.setdefault(len(row), []).append(i)
    plan = []
    for length, rows in sorted(by_length.items()):
        size = max(1, room(model, length, 4) // (len(chosen) + 1))
        plan += [rows[i : i + size] for i in range(0, len(rows), size)]

    def compute(rows: list[int], _first: bool) -> tuple[torch.Tensor, ...]:
        mine, prompts = run.for_prompts(rows), [ids[i] for i in rows]
        donor = _at_last(model, [donors[i] for i in rows], list(z_sites.values()), mine)
        jobs = [Injection(layer, head, donor[z_sites[layer]][:, head]) for layer, head in chosen]

        def inject(some: list[Injection]) -> tuple[torch.Tensor, ...]:
            return injected(model, prompts, some, tokens[rows], mine, frozen=frozen)

        if len(rows) > 1:  # prompts are halved first, by `gather`
            return inject(jobs)
        parts = [found for _, found in halving(jobs, inject, run.check)]
        return *parts[0][:2], *(torch.cat([part[k] for part in parts], 1) for k in (2, 3))

    return gather(len(ids), plan, compute, run)


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
    out = torch.empty(len(ids), model.n_layers * model.n_heads, tokens.shape[1])

    def compute(rows: list[int]) -> None:
        prompts, mine = [ids[i] for i in rows], run.for_prompts(rows)
        old, new = (_at_last(model, part, z_sites, mine) for part in (prompts, [donors[i] for i in rows]))
        batch = pad(prompts, pad_id=model.pad_id, device=model.device)
        with torch.enable_grad():
            leaves, scores = _last_scores(model, batch, mine)
            scores = scores if metric == "logit" else scores.log_softmax(-1)
            for k in range(tokens.shape[1]):
                wanted = scores.gather(1, tokens[rows, k : k + 1].to(scores.device)).sum()
                slopes = torch.autograd.grad(wanted, leaves, retain_graph=k + 1 < tokens.shape[1])
                for layer, site in enumerate(z_sites):
                    difference = new[site].float() - old[site].float()
                    effect = (slopes[layer].reshape(difference.shape).float() * difference).sum(-1)
                    out[rows, layer * model.n_heads : (layer + 1) * model.n_heads, k] = effect.cpu()

    for _ in run.batches([len(row) for row in ids], compute, tokens=GRADIENT):
        pass
    return out


def _last_scores(model: Model, batch: Batch, run: Pass) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Zeros added to every layer's z at the last position, [B, H·d_head] each, and the scores there [B, V] as a
    function of them."""
    rows, last = len(batch.ids), batch.lengths - 1
    leaves: dict[int, torch.Tensor] = {}
    site = read_out_site(model, edited=on_final_norm(run.edits))

    def add(layer: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        x = args[0]
        leaves[layer] = x.new_zeros(rows, x.shape[-1]).requires_grad_()
        at = torch.zeros(batch.ids.shape, dtype=x.dtype, device=x.device)
        at[torch.arange(rows), last.to(x.device)] = 1
        rowed = x.unflatten(0, batch.ids.shape) if x.ndim == 2 else x
        return ((rowed + at[..., None] * leaves[layer][:, None]).reshape(x.shape), *args[1:]), kwargs

    with contextlib.ExitStack() as stack:
        stack.enter_context(apply(model, run.edits))
        for layer in range(model.n_layers):
            handle = before_call(model.o_proj(layer), lambda _m, args, kwargs, layer=layer: add(layer, args, kwargs))
            stack.callback(handle.remove)
        states = stack.enter_context(ended_by(model, site))
        model.forward(batch)
    state = states[0].unflatten(0, batch.ids.shape) if states[0].ndim == 2 else states[0]
    scores = scores_of(model, site, state[torch.arange(rows), last.to(state.device)])
    return [leaves[layer] for layer in range(model.n_layers)], scores


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
        base, donor = (
            next(stream(model, [source[row]], spots, positions="all", edits=mine.edits))[1] for source in (ids, donors)
        )
        if align is not None:
            donor = {site: values[list(align[row])] for site, values in donor.items()}
        logits, normaliser = [], []
        columns = [p % length for p in positions]
        step = max(1, (run.max_tokens or READ) // length)
        for site in spots:

            def patched(part: list[int], site: Site = site) -> torch.Tensor:
                value = base[site].expand(len(part), *base[site].shape).clone()
                value[torch.arange(len(part)), part] = donor[site][part]
                same = mine.for_prompts([0] * len(part)).edits
                return _one_batch(model, [ids[row]] * len(part), (*same, Patch(site, value, tuple(range(length)))))

            for start in range(0, len(columns), step):
                for part, found in halving(columns[start : start + step], patched, run.check):
                    logits.append(found.gather(1, tokens[[row]].expand(len(part), -1)))
                    normaliser.append(found.logsumexp(-1))
        plain = _one_batch(model, [ids[row]], mine.edits)
        return plain.gather(1, tokens[[row]]), plain.logsumexp(-1), torch.cat(logits)[None], torch.cat(normaliser)[None]

    return gather(len(ids), [[i] for i in range(len(ids))], compute, run)


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
        mine, length = run.for_prompts(rows), len(ids[row])
        base, donor = (
            next(stream(model, [source[row]], z_sites, positions="all", edits=mine.edits))[1]
            for source in (ids, donors)
        )
        logits, normaliser = [], []
        step = max(1, (run.max_tokens or READ) // length)
        for site in z_sites:
            theirs = donor[site] if align is None else donor[site][list(align[row])]

            def patched(heads: list[int], site: Site = site, theirs: torch.Tensor = theirs) -> torch.Tensor:
                value = base[site].expand(len(heads), *base[site].shape).clone()  # [n, T, H, d_head]
                for i, head in enumerate(heads):
                    value[i, :, head] = theirs[:, head]
                same = mine.for_prompts([0] * len(heads)).edits
                return _one_batch(model, [ids[row]] * len(heads), (*same, Patch(site, value, tuple(range(length)))))

            every = list(range(model.n_heads))
            for start in range(0, len(every), step):
                for part, found in halving(every[start : start + step], patched, run.check):
                    logits.append(found.gather(1, tokens[[row]].expand(len(part), -1)))
                    normaliser.append(found.logsumexp(-1))
        plain = _one_batch(model, [ids[row]], mine.edits)
        return plain.gather(1, tokens[[row]]), plain.logsumexp(-1), torch.cat(logits)[None], torch.cat(normaliser)[None]

    return gather(len(ids), [[i] for i in range(len(ids))], compute, run)


def _one_batch(model: Model, ids, edits: Sequence[Edit]) -> torch.Tensor:
    """Last logits [n, V] of prompts that share one batch, in their order (edits with one value per row need that)."""
    found = next(
        stream(model, ids, ["logits"], edits=edits, dtype=torch.float32, max_tokens=1 << 40, max_rows=len(ids))
    )
    return found[1][Site("logits")].cpu()
