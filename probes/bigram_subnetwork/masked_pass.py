"""Passes of the model with masks on its weights: losses with gradients for the search, read-outs for the evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.bigram_subnetwork.bigrams import Bigrams
from probes.bigram_subnetwork.stretches import Piece
from probes.bigram_subnetwork.target_loss import cross_entropies, target_of
from workbench.engine.edits import apply, on_final_norm
from workbench.engine.hf import stream
from workbench.engine.passes import GRADIENT, Pass
from workbench.models.batching import pad
from workbench.models.block_weights import BlockWeight, compute_with
from workbench.models.host_copies import Resident, arrivals, arriving
from workbench.models.model import Model
from workbench.models.recording import ended_by, read_out_site, scores_of
from workbench.models.sites import Site

BLOCK = 1 << 25  # numbers of a block of scores


@dataclass(frozen=True, eq=False)
class BigramTask:
    """What a masked model is held to: its next-token scores, over the ids of the tokenizer, to the bigrams of the
    counts."""

    model: Model
    bigrams: Bigrams
    unigram: Resident  # [V]
    run: Pass

    @classmethod
    def of(cls, model: Model, bigrams: Bigrams, run: Pass) -> BigramTask:
        return cls(model, bigrams, Resident(torch.from_numpy(bigrams.unigram)), run)

    def site(self) -> Site:
        return read_out_site(self.model, edited=on_final_norm(self.run.edits))

    def scores(self, site: Site, states: torch.Tensor) -> torch.Tensor:
        """Next-token scores [n, V] float32 without the columns that pad the vocabulary."""
        return scores_of(self.model, site, states)[:, : self.bigrams.vocabulary]


@dataclass(frozen=True, eq=False)
class Slopes:
    """The mean cross-entropy of a batch (0-d, on the device), and its gradient by the weights that were computed with,
    by name."""

    loss: torch.Tensor
    by_weight: dict[str, torch.Tensor]


def slopes(
    task: BigramTask, batch: Sequence[Piece], computed: Mapping[str, torch.Tensor], weights: Sequence[BlockWeight]
) -> Slopes:
    """Cross-entropy with the bigrams after every token of a batch, with the tensors `computed` in place of the
    weights, and its gradient by them. Batches that do not fit in memory are taken apart; gradients add up."""
    model, site = task.model, task.site()
    leaves = {name: value.detach().requires_grad_() for name, value in computed.items()}
    tokens = sum(len(piece.ids) for piece in batch)
    total = torch.zeros((), device=model.device)
    summed: dict[str, torch.Tensor] = {}

    def compute(rows: list[int]) -> None:
        padded = pad([batch[i].ids for i in rows], pad_id=model.pad_id, device=model.device)
        with torch.enable_grad():
            with contextlib.ExitStack() as stack:
                stack.enter_context(apply(model, task.run.edits))
                compute_with(weights, lambda own: leaves[own.name], stack)
                states = stack.enter_context(ended_by(model, site))
                model.forward(padded)
            state = states[0].reshape(-1, states[0].shape[-1])
            real = torch.from_numpy(np.flatnonzero(np.asarray(padded.real).reshape(-1)))
            scores = task.scores(site, state.index_select(0, arriving(real, state.device)))
            target = target_of(task.bigrams, [token for i in rows for token in batch[i].ids], scores.device)
            loss = cross_entropies(scores, target, task.unigram).sum() / tokens
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        total.add_(loss.detach().to(total.device))
        for name, slope in zip(leaves, found):
            if slope is not None:
                summed[name] = slope if name not in summed else summed[name] + slope

    lengths = [len(piece.ids) for piece in batch]
    for _ in task.run.batches(lengths, compute, tokens=GRADIENT):
        pass
    return Slopes(total, {n: summed[n] if n in summed else torch.zeros_like(leaf) for n, leaf in leaves.items()})


@dataclass(frozen=True, eq=False)
class Readings:
    """Of every token that counts as a next token, stretch by stretch [n]: `surprisal` −ln p of the token, `loss` the
    cross-entropy of the scores with its bigram distribution; float64."""

    surprisal: np.ndarray
    loss: np.ndarray


def readings(task: BigramTask, pieces: Sequence[Piece], edits: Sequence = ()) -> Readings:
    """What the model, under further edits, says of the tokens of the stretches. Numbers that are not finite come back
    as they are."""
    run = Pass((*task.run.edits, *edits), task.run.max_tokens, check=task.run.check)
    site, found = task.site(), {}

    def read() -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        for rows, seen, _ in stream(task.model, [piece.ids for piece in pieces], [site], positions="all", run=run):
            yield rows, _of_batch(task, site, seen[site], [pieces[i] for i in rows])

    for rows, numbers in arrivals(read()):
        sizes = [len(pieces[i].ids) - pieces[i].first for i in rows]
        for i, surprisal, loss in zip(rows, numbers["surprisal"].split(sizes), numbers["loss"].split(sizes)):
            found[i] = (surprisal.double().numpy(), loss.double().numpy())
    return Readings(*(np.concatenate([found[i][part] for i in range(len(pieces))]) for part in (0, 1)))


def _of_batch(task: BigramTask, site: Site, states: torch.Tensor, pieces: Sequence[Piece]) -> dict[str, torch.Tensor]:
    parts = states.reshape(-1, states.shape[-1]).split([len(piece.ids) for piece in pieces])
    before = torch.cat([part[piece.first - 1 : -1] for part, piece in zip(parts, pieces)])
    contexts = [token for piece in pieces for token in piece.ids[piece.first - 1 : -1]]
    targets = torch.tensor([token for piece in pieces for token in piece.ids[piece.first :]])
    size = max(1, BLOCK // task.model.vocab_size)
    surprisal, loss = [], []
    for start in range(0, len(before), size):
        scores = task.scores(site, before[start : start + size])
        own = arriving(targets[start : start + size], scores.device)
        surprisal.append(scores.logsumexp(-1) - scores.gather(1, own[:, None])[:, 0])
        target = target_of(task.bigrams, contexts[start : start + size], scores.device)
        loss.append(cross_entropies(scores, target, task.unigram))
        task.run.asked()
    return {"surprisal": torch.cat(surprisal), "loss": torch.cat(loss)}


def surprisals_of_counts(bigrams: Bigrams, pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """−ln P of the same tokens by the bigrams and by the unigrams, [n] each; infinite where they give none."""
    contexts = np.array([token for piece in pieces for token in piece.ids[piece.first - 1 : -1]])
    targets = np.array([token for piece in pieces for token in piece.ids[piece.first :]])
    with np.errstate(divide="ignore"):
        return bigrams.surprisal(contexts, targets), -np.log(bigrams.unigram[targets])


def texts_of_tokens(pieces: Sequence[Piece]) -> np.ndarray:
    """Which text each of these tokens is of, [n]."""
    return np.concatenate([np.full(len(piece.ids) - piece.first, piece.text) for piece in pieces])
