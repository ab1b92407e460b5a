"""The search for a subnetwork: continuous sparsification (Savarese et al. 2020) towards the bigram distribution.

One number m for each weight W of attention and MLP. The model computes with W σ(βm); β grows by a factor at each step,
so that σ(βm) ends at 0 or 1. The loss is the cross-entropy of the masked model with the bigrams plus λ times the mean
of σ(βm). The subnetwork are the weights with m > 0. Weights, biases, norms and embeddings stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.bigram_subnetwork.config import Config
from probes.bigram_subnetwork.correlation import pearson
from probes.bigram_subnetwork.masked_pass import BigramTask, readings, slopes, surprisals_of_counts
from probes.bigram_subnetwork.stability import is_stable
from probes.bigram_subnetwork.stretches import Piece
from workbench.core.context import Context
from workbench.core.errors import RunFailed
from workbench.engine.passes import Pass
from workbench.engine.weight_masks import WeightMask
from workbench.models.block_weights import BlockWeight

ROUNDS = 25  # in which the state of a search is kept: a kill loses 4 % of it at most
NOTES = 100  # rows of the table `search`, about
MONITORED = 16  # stretches of the search's own texts on which a row is measured
STOP = 0.01  # undecided weights, as a share of those that are kept, below which a search ends
UNDECIDED = (0.1, 0.9)
DECAY = 0.01  # AdamW's weight decay, PyTorch's default, as in the official code
COLUMNS = ("step", "loss", "penalty", "active", "undecided", "sharpness", "correlation")


@dataclass(frozen=True, eq=False)
class Searched:
    """A search at its end: masks by name of the matrix (bool, on the CPU), the loss of every step, the rows of the
    table `search`, whether it ended by itself and whether its loss was stable."""

    masks: dict[str, torch.Tensor]
    losses: np.ndarray
    rows: np.ndarray  # [notes, COLUMNS]
    settled: bool
    stable: bool


def search(
    task: BigramTask,
    weights: Sequence[BlockWeight],
    pieces: Sequence[Piece],
    config: Config,
    context: Context,
    attempt: int,
) -> Searched:
    """One search, resumed where it was stopped. Raises RunFailed where its loss is not finite."""
    loop = _Loop(task, weights, pieces, config, context, attempt)
    state = context.rounds(f"search {attempt}", min(ROUNDS, config.steps), loop.begin, loop.advance)
    masks = {
        own.name: torch.from_numpy(state["m"][start:end] > 0).reshape(own.shape)
        for own, (start, end) in zip(weights, loop.places)
    }
    losses = state["losses"]
    return Searched(masks, losses, state["rows"], bool(state["finished"]), is_stable(losses))


class _Loop:
    """The training loop of one search: its state goes from round to round as arrays, all matrices end to end."""

    def __init__(self, task, weights, pieces, config: Config, context: Context, attempt: int):
        self.task, self.weights, self.pieces = task, list(weights), list(pieces)
        self.config, self.context, self.attempt = config, context, attempt
        ends = np.cumsum([own.weight.numel() for own in self.weights])
        self.places = list(zip([0, *ends[:-1]], ends))
        self.size = int(ends[-1])
        self.every = max(1, config.steps // NOTES)
        self.bounds = [round(i * config.steps / ROUNDS) for i in range(ROUNDS + 1)]
        if config.steps < ROUNDS:
            self.bounds = list(range(config.steps + 1))
        self.monitored = self.pieces[:MONITORED]
        # float32 whatever the weights are in; of weights in float64 that
        self.dtype = torch.promote_types(task.model.dtype, torch.float32)

    def begin(self) -> dict[str, np.ndarray]:
        zeros = torch.zeros(self.size, dtype=self.dtype).numpy()
        empty = {"losses": np.zeros(0), "rows": np.zeros((0, len(COLUMNS)))}
        return {"m": zeros, "mean": zeros.copy(), "square": zeros.copy(), "finished": np.array(False)} | empty

    def advance(self, number: int, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The steps of one round."""
        first, last = self.bounds[number], self.bounds[number + 1]
        m = [self._on_device(own, state["m"][a:b]) for own, (a, b) in zip(self.weights, self.places)]
        adam = torch.optim.AdamW(m, lr=self.config.step_size, weight_decay=DECAY)
        for own, x, (a, b) in zip(self.weights, m, self.places):
            if first:
                moments = {"exp_avg": state["mean"][a:b], "exp_avg_sq": state["square"][a:b]}
                adam.state[x] = {"step": torch.tensor(float(first))}
                adam.state[x] |= {name: self._on_device(own, part) for name, part in moments.items()}
        losses, rows, settled, step = [], [], False, first
        while step < last and not settled:
            loss, penalty = self._step(step, m, adam)
            losses.append(loss)
            step += 1
            if step % self.every == 0 or step == self.config.steps:
                row, settled = self._note(step, m, loss, penalty)
                rows.append(row)
            self.context.progress(step, self.config.steps, "step")
        found = torch.stack([loss.to(losses[0].device) for loss in losses]).double().cpu().numpy()
        if not np.isfinite(found).all():
            raise RunFailed(
                f"The loss of {self.task.model.name} is NaN or infinite at step "
                f"{first + int(np.argmin(np.isfinite(found))) + 1} of the search; use bfloat16 or float32."
            )
        flat = lambda tensors: torch.cat([x.detach().reshape(-1).cpu() for x in tensors]).numpy()  # noqa: E731
        return {
            "m": flat(m),
            "mean": flat([adam.state[x]["exp_avg"] for x in m]),
            "square": flat([adam.state[x]["exp_avg_sq"] for x in m]),
            "losses": np.concatenate([state["losses"], found]),
            "rows": np.concatenate([state["rows"], np.array(rows).reshape(-1, len(COLUMNS))]),
            "finished": np.array(settled),
        }

    def _on_device(self, own: BlockWeight, part: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(part.copy()).reshape(own.shape).to(own.weight.device)

    def _step(self, step: int, m: list[torch.Tensor], adam: torch.optim.Optimizer):
        """One step of AdamW: its loss and its penalty, on the device."""
        beta = self.config.factor**step
        soft = [torch.sigmoid(beta * x) for x in m]
        computed = {own.name: (own.weight * s).to(own.weight.dtype) for own, s in zip(self.weights, soft)}
        found = slopes(self.task, self._batch(step), computed, self.weights)
        for own, x, s in zip(self.weights, m, soft):
            by_mask = found.by_weight[own.name].to(self.dtype) * own.weight + self.config.penalty / self.size
            x.grad = by_mask * beta * s * (1 - s)
        adam.step()
        penalty = self.config.penalty / self.size * sum(s.sum().to(soft[0].device) for s in soft)
        return found.loss, penalty

    def _batch(self, step: int) -> list[Piece]:
        """The stretches of a step: every one once before any twice, in an order of its own each time."""
        n, size = len(self.pieces), min(self.config.batch, len(self.pieces))
        each = max(1, n // size)
        epoch, within = divmod(step, each)
        order = self.context.rng(f"batches {self.attempt} {epoch}").permutation(n)
        chosen = [self.pieces[i] for i in order[within * size : (within + 1) * size]]
        self.context.count(prompts=len(chosen), tokens=sum(len(piece.ids) for piece in chosen), forwards=1)
        return chosen

    def _note(self, step: int, m: list[torch.Tensor], loss, penalty) -> tuple[list[float], bool]:
        """A row of the table `search`, and whether the masks have settled."""
        beta = self.config.factor ** (step - 1)  # of the step that was made
        kept, undecided, active = 0, 0, 0
        for x in m:
            s = torch.sigmoid(beta * x)
            kept += int((s > UNDECIDED[1]).sum())
            undecided += int(((s >= UNDECIDED[0]) & (s <= UNDECIDED[1])).sum())
            active += int((x > 0).sum())
        masks = {own.name: x > 0 for own, x in zip(self.weights, m)}
        said = readings(self.task, self.monitored, [WeightMask.of({n: x.cpu() for n, x in masks.items()})])
        counted, _ = surprisals_of_counts(self.task.bigrams, self.monitored)
        some = np.isfinite(counted)
        r = pearson(said.surprisal[some], counted[some])
        settled = undecided < STOP * kept or not undecided
        return [step, float(loss), float(penalty), active, undecided, beta, r], settled


def run_of(config: Config, context: Context) -> Pass:
    """How passes of this run are made."""
    return Pass(edits=tuple(context.edits), max_tokens=config.max_tokens or None, check=context.check)
