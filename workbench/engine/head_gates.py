"""Causal head gating: one gate between 0 and 1 for every head, fitted by gradient descent so that wanted tokens become
likely, all heads at once.

Nam et al. 2025 (arXiv 2505.13737): gates G = σ(θ) scale the heads' outputs before the output projection; the weights
of the model are left alone. The loss is −log p of the wanted token minus λ times the clipped logits θ of the gates. A
first fit has no penalty (λ = 0); from there a fit with λ > 0 holds gates open (`kept`: a head whose gate closes all the
same interferes with the token) and one with λ < 0 closes them (`removed`: a head whose gate stays open all the same is
needed for it). Here the penalty is the mean over heads, not the sum, so that λ means the same in every model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import InputError, RunFailed
from workbench.engine.edit_sites import at_site
from workbench.engine.edits import apply, on_final_norm
from workbench.engine.passes import GRADIENT, Pass, check_prompts, with_pass
from workbench.models.batching import pad
from workbench.models.model import Model
from workbench.models.recording import ended_by, read_out_site, scores_of
from workbench.models.sites import Site

CLIP = 4.0  # |θ| beyond which the penalty pulls no further: gates of 0.018 and 0.982
START = 2.0  # θ from which the first fit starts, a gate of 0.88
RATE = 0.1  # step size of Adam


@dataclass(frozen=True, eq=False)
class Gates:
    """Gates [layers, H] of the fit without a penalty, of the one that holds them open, and of the one that closes
    them."""

    free: torch.Tensor
    kept: torch.Tensor
    removed: torch.Tensor

    @property
    def role(self) -> list[list[str]]:
        """What each head is for the wanted tokens: facilitating (open although closed by penalty), interfering (closed
        although held open), irrelevant (follows the penalty)."""
        pairs = zip(self.kept.tolist(), self.removed.tolist())
        return [
            ["interfering" if k < 0.5 else "facilitating" if r > 0.5 else "irrelevant" for k, r in zip(*rows)]
            for rows in pairs
        ]


@with_pass
def fit_gates(
    model: Model,
    ids: Sequence[Sequence[int]],
    wanted: Sequence[int],
    *,
    steps: int = 100,
    weight: float = 1.0,
    seed: int = 0,
    run: Pass,
) -> Gates:
    """Gates of all heads under which `wanted` [n], a token id for each prompt, is likely as the next one; `weight`: λ.
    The same seed (which moves where the fit starts, slightly) gives the same gates.

    Raises InputError for prompts and tokens that do not fit, RunFailed where the loss is not finite."""
    model.require("heads_apart", "logits_unembedded", for_what="gates of heads")
    check_prompts(model, ids, run)
    if len(wanted) != len(ids) or not all(0 <= token < model.vocab_size for token in wanted):
        raise InputError(f"Gates need one wanted token id below {model.vocab_size} for each of the {len(ids)} prompts.")
    noise = torch.randn(model.n_layers, model.n_heads, generator=torch.Generator().manual_seed(seed))
    free = _fitted(model, ids, wanted, START + 0.1 * noise, steps, 0.0, run)
    kept, removed = (_fitted(model, ids, wanted, free, steps, sign * weight, run) for sign in (1, -1))
    return Gates(*(theta.sigmoid() for theta in (free, kept, removed)))


def _fitted(model: Model, ids, wanted, start: torch.Tensor, steps: int, weight: float, run: Pass) -> torch.Tensor:
    """θ [layers, H] after so many steps of Adam."""
    theta = start.clone()
    adam = torch.optim.Adam([theta], lr=RATE)
    for _ in range(steps):
        gates = theta.sigmoid()
        penalty = weight * (theta.abs() < CLIP) / theta.numel()  # the slope of the mean of what is clipped
        theta.grad = gate_slopes(model, ids, wanted, gates, run=run) * gates * (1 - gates) - penalty
        adam.step()
    return theta


@with_pass
def gate_slopes(
    model: Model, ids: Sequence[Sequence[int]], wanted: Sequence[int], gates: torch.Tensor, *, run: Pass
) -> torch.Tensor:
    """The gradient by every gate [layers, H] of the mean −log p of the wanted tokens, float32 on the CPU. Where all
    gates are 1 it is, to first order, what closing one alone, at every position, would take off the loss."""
    gates = gates.detach().clone().requires_grad_()
    total = torch.zeros(gates.shape)
    site = read_out_site(model, edited=on_final_norm(run.edits))

    def compute(rows: list[int]) -> None:
        batch = pad([ids[i] for i in rows], pad_id=model.pad_id, device=model.device)
        with torch.enable_grad():
            with contextlib.ExitStack() as stack:
                stack.enter_context(apply(model, run.for_prompts(rows).edits))
                for layer in range(model.n_layers):
                    gate = gates[layer][:, None]
                    at_site(model, Site("head_out", layer), lambda x, g=gate: x * g.to(x.device, x.dtype), stack)
                states = stack.enter_context(ended_by(model, site))
                model.forward(batch)  # ends where the site is seen: nothing of this block comes after it
            state = states[0].unflatten(0, batch.ids.shape) if states[0].ndim == 2 else states[0]
            scores = scores_of(model, site, state[torch.arange(len(rows)), (batch.lengths - 1).to(state.device)])
            tokens = torch.tensor([wanted[i] for i in rows], device=scores.device)
            loss = -scores.float().log_softmax(-1).gather(1, tokens[:, None]).sum() / len(ids)
            if not bool(loss.isfinite()):
                raise RunFailed(f"The loss of {model.name} under gates is NaN or infinite; use bfloat16 or float32.")
            total.add_(torch.autograd.grad(loss, gates)[0])

    for _ in run.batches([len(row) for row in ids], compute, tokens=GRADIENT):
        pass
    return total
