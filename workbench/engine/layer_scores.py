"""What every layer gives to chosen tokens next: final norm and unembedding of the stream after each layer (a lens), at
the end of many contexts.

Probabilities are exact: the normaliser runs over the whole vocabulary, in float32 at least, block by block, so that
contexts × layers × vocabulary is never held; the chosen tokens are read beside it. Contexts that begin alike share
their keys and values (`workbench.engine.shared_prefix`); where a model cannot be run so, a context that another one
goes on from is read in the same pass as that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.core.errors import InputError, RunFailed
from workbench.engine import hf, nnsight, shared_prefix
from workbench.engine.hf import Streamed
from workbench.engine.passes import Pass, check_ids, with_pass
from workbench.models.float32 import blocks_of
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.models.unembedding import Unembedding, unembedding_of

STATES = 2048  # that are read off together
AT_ONCE = 1 << 24  # scores that are held together
NEEDS = ("final_norm_ends_stream", "logits_unembedded")
ENGINES = {"hf": hf.stream, "nnsight": nnsight.stream}
Lens = Callable[[int, torch.Tensor], torch.Tensor]  # (layer, states [n, width] float32) -> states that are read off


@dataclass(frozen=True, eq=False)
class LayerScores:
    """What the layers say at the end of one context: `log_p` [lenses, layers, tokens asked for], and of the whole
    distribution `entropy` [lenses, layers] in nats and the most likely token `top` [lenses, layers]."""

    log_p: np.ndarray
    entropy: np.ndarray
    top: np.ndarray


def as_it_is(_layer: int, states: torch.Tensor) -> torch.Tensor:
    """The logit lens: states are read as they are."""
    return states


@with_pass
def layer_scores(
    model: Model,
    contexts: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] | None = None,
    lenses: Sequence[Lens] = (as_it_is,),
    engine: str = "hf",
    run: Pass,
) -> list[LayerScores]:
    """Log-probabilities of the tokens `wanted[i]` after `contexts[i]` (token ids), read off the stream after each of
    `layers` (default: all) through each of `lenses`.

    Final norm, logit scale and soft-cap are the model's; the last layer through `as_it_is` is the model's own
    distribution. Raises InputError for a model whose scores are not read off its stream and for tokens that it does
    not score, and RunFailed for states that are no numbers."""
    model.require(*NEEDS, for_what="a lens")
    if len(contexts) != len(wanted):
        raise InputError(f"There are {len(contexts)} contexts and {len(wanted)} lists of tokens; give one each.")
    if engine not in ENGINES:
        raise InputError(f"'{engine}' is not an engine; choose {' or '.join(ENGINES)}.")
    check_ids(model, contexts)
    outside = [token for tokens in wanted for token in tokens if not 0 <= token < model.vocab_size]
    if outside:
        raise InputError(
            f"Token {outside[0]} is looked for, and {model.name} scores {model.vocab_size} tokens; use the tokenizer "
            f"that goes with its weights."
        )
    own = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    sites = [Site("resid_post", layer) for layer in own]
    found: list[LayerScores | None] = [None] * len(contexts)
    done = 0
    for rows, states in _streamed(model, contexts, sites, engine, run):
        for index, scores in zip(rows, _read(model, states, [wanted[i] for i in rows], own, lenses, run)):
            found[index] = scores
        done += len(rows)
        run.told(done, len(contexts), "contexts")
    return [scores for scores in found if scores is not None]


def _streamed(
    model: Model, contexts: Sequence[Sequence[int]], sites: Sequence[Site], engine: str, run: Pass
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(numbers of contexts, states [n, layers, width] at their last tokens on the device), batch by batch."""
    if engine == "hf" and not run.edits and shared_prefix.applies(model, contexts):
        for rows, seen, _ in shared_prefix.stream(model, contexts, sites, positions="last", run=run):
            if rows:
                yield rows, torch.stack([_wide(seen[site]) for site in sites], 1)
        return
    stream = ENGINES[engine]
    if run.edits:  # positions of an edit may be counted from the end of a prompt: every context is one of its own
        plain: Iterator[Streamed] = stream(model, contexts, sites, positions="last", run=run)
        for rows, seen, _ in plain:
            yield rows, torch.stack([_wide(seen[site]) for site in sites], 1)
        return
    fed = longest(contexts)
    most = max(len(members) for _, members in fed)
    places = [[len(contexts[i]) - 1 for i in own] + [len(row) - 1] * (most - len(own)) for row, own in fed]
    for rows, seen, _ in stream(model, [row for row, _ in fed], sites, positions=places, run=run):
        both = torch.stack([_wide(seen[site]) for site in sites], 2)  # [B, k, layers, width]
        kept = [(b, k, i) for b, row in enumerate(rows) for k, i in enumerate(fed[row][1])]
        at = torch.tensor([(b, k) for b, k, _ in kept], device=both.device)
        yield [i for *_, i in kept], both[at[:, 0], at[:, 1]]


def _wide(states: torch.Tensor) -> torch.Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def longest(contexts: Sequence[Sequence[int]]) -> list[tuple[list[int], list[int]]]:
    """The contexts that no other goes on from, each with the numbers of those that end in it."""
    order = sorted(range(len(contexts)), key=lambda i: list(contexts[i]))
    out: list[tuple[list[int], list[int]]] = []
    for i in reversed(order):
        own = list(contexts[i])
        if out and out[-1][0][: len(own)] == own:  # what goes on from it stands next to it
            out[-1][1].append(i)
        else:
            out.append((own, [i]))
    return out


@torch.no_grad()
def _read(
    model: Model,
    states: torch.Tensor,
    wanted: Sequence[Sequence[int]],
    layers: Sequence[int],
    lenses: Sequence[Lens],
    run: Pass,
) -> Iterator[LayerScores]:
    """The scores at states [n, layers, width]."""
    union = sorted({token for tokens in wanted for token in tokens})
    column = {token: k for k, token in enumerate(union)}
    n, depth, _ = states.shape
    chosen, entropy, top = [], [], []
    for lens in lenses:
        seen = torch.stack([lens(layer, states[:, k]) for k, layer in enumerate(layers)], 1)
        for part in seen.flatten(0, 1).split(STATES):
            for store, values in zip((chosen, entropy, top), distribution(model, part, union)):
                store.append(values)
            run.asked()
    shape = (len(lenses), n, depth)
    log_p = torch.cat(chosen).view(*shape, len(union)).cpu().numpy()
    spread, best = (torch.cat(part).view(shape).cpu().numpy() for part in (entropy, top))
    if not np.isfinite(spread).all():
        raise RunFailed(f"Layers of {model.name} give states that are no numbers; load it with --dtype float32.")
    for i, tokens in enumerate(wanted):
        yield LayerScores(log_p[:, i][..., [column[token] for token in tokens]], spread[:, i], best[:, i])


@torch.no_grad()
def distribution(
    model: Model, states: torch.Tensor, tokens: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the next-token distributions that states [n, width] are read off as: log-probabilities [n, k] of `tokens`, the
    entropy [n] in nats and the most likely token [n]. All exact over the vocabulary, in float32 at least."""
    final = model.normed(states)
    matrix = unembedding_of(model)
    if matrix is None:
        return _of_whole(model, final, tokens)
    final = final.to(matrix.weight.device, matrix.dtype)
    total = _Total(len(final), final)
    for words in _blocks(matrix, len(final)):
        total.add(words.start, _scores(matrix, final, *matrix.block(words)))
    asked = torch.tensor(list(tokens), dtype=torch.long, device=final.device)
    bias = None if matrix.bias is None else matrix.bias[asked].to(matrix.dtype)
    own = _scores(matrix, final, matrix.weight[asked].to(matrix.dtype), bias)
    normaliser = total.log_sum()
    return own - normaliser[:, None], normaliser - total.mean_score(), total.top


def _scores(matrix: Unembedding, final: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return matrix.finish(torch.nn.functional.linear(final, weight, bias))


def _blocks(matrix: Unembedding, rows: int) -> list[slice]:
    """Parts of the vocabulary whose weights and whose scores of `rows` states may be held."""
    size = max(1, AT_ONCE // max(rows, 1))
    return [
        slice(start, min(start + size, block.stop))
        for block in blocks_of(matrix.weight)
        for start in range(block.start, block.stop, size)
    ]


def _of_whole(model: Model, final: torch.Tensor, tokens: Sequence[int]):
    """The same where the unembedding has to be called: all scores of some states at a time."""
    chosen, entropy, top = [], [], []
    for part in final.split(max(1, AT_ONCE // model.vocab_size)):
        log_p = model.logits_from(part, normed=True).log_softmax(-1)
        p = log_p.exp()
        chosen.append(log_p[:, list(tokens)])
        entropy.append(-torch.where(p > 0, p * log_p, 0).sum(-1))
        top.append(log_p.argmax(-1))
    return torch.cat(chosen), torch.cat(entropy), torch.cat(top)


class _Total:
    """Running sums over blocks of the vocabulary of n distributions: the highest score so far, Σ exp(s − highest) and
    Σ s exp(s − highest)."""

    def __init__(self, n: int, like: torch.Tensor):
        self.high = like.new_full((n,), -torch.inf)
        self.sum, self.weighted = like.new_zeros(n), like.new_zeros(n)
        self.top = torch.zeros(n, dtype=torch.long, device=like.device)

    def add(self, start: int, scores: torch.Tensor) -> None:
        here = scores.max(-1)
        self.top = torch.where(here.values > self.high, here.indices + start, self.top)
        high = torch.maximum(self.high, here.values)
        fade = (self.high - high).exp()
        share = (scores - high[:, None]).exp()
        self.sum = self.sum * fade + share.sum(-1)
        self.weighted = self.weighted * fade + torch.where(share > 0, share * scores, 0).sum(-1)
        self.high = high

    def log_sum(self) -> torch.Tensor:
        return self.high + self.sum.log()

    def mean_score(self) -> torch.Tensor:
        return self.weighted / self.sum
