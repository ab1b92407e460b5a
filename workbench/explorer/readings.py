"""What the Explorer shows of one prompt: head scores, attention rows, what a head writes, and all of it again with
heads and MLPs switched off.

Every function takes an `Opened` model and plain token ids and returns tables or small arrays; screens draw them. One
pass over the prompt (`read`) gives the residual stream and the head outputs from which most cards are computed without
another pass; attention rows are reduced on the device, one query or one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.engine.edits import apply
from workbench.engine.evaluation import token_losses
from workbench.engine.hf import stream
from workbench.engine.patching import ADDITIVE, READ_OFF, writes
from workbench.explorer import beside_control
from workbench.explorer.head_score_passes import CONTROLS, SCORES, attention_to, copying, favoured
from workbench.explorer.marked_pairs import marked, marked_in_twin
from workbench.explorer.opened_model import Opened, check_whole_patterns, next_strings
from workbench.explorer.reference_texts import reference
from workbench.explorer.repeated_words import SEQUENCES, said_twice, shuffled, unsaid, words
from workbench.explorer.switches import Switches, edits_of
from workbench.explorer.targets import Target
from workbench.models import attention
from workbench.models.batching import pad
from workbench.models.model import Model
from workbench.models.sites import Site

LIKELY, TEXTS = 512, 16  # words to draw from; reference texts by which they are chosen


@dataclass(eq=False)
class Reading:
    """One pass over one prompt. stream [layers + 1, T, width] (row 0: embeddings, row l + 1: after layer l), heads
    [layers, T, H, d_head] (None where heads have no outputs of their own), logits [V] after the last token; float32 on
    the model's device."""

    ids: tuple[int, ...]
    stream: torch.Tensor
    heads: torch.Tensor | None
    logits: torch.Tensor

    @property
    def z(self) -> torch.Tensor:
        """The outputs of the heads. Raises InputError where they have none of their own."""
        if self.heads is None:
            raise InputError(
                "The heads of this model are mixed before they are put out: none has an output of its own."
            )
        return self.heads


# ---- one pass over the prompt


def read(opened: Opened, ids: Sequence[int], switches: Switches = Switches()) -> Reading:
    """Run the prompt once, with the switches, and keep what the cards are computed from."""
    model = opened.model
    last = model.n_layers - 1
    after = [Site("resid_post", layer) for layer in range(model.n_layers)]
    apart = model.lacks("heads_apart") is None
    heads = [Site("head_out", layer) for layer in range(model.n_layers)] if apart else []
    read_off = model.lacks(*READ_OFF) is None
    whole = [] if read_off else [Site("logits")]
    with opened.lock:
        edits = edits_of(opened, switches, ids)
        sites = [Site("resid_pre", 0), *after, *heads, *whole]
        _, found, _ = next(iter(stream(model, [list(ids)], sites, positions="all", edits=edits, dtype=torch.float32)))
        with torch.no_grad():
            scores = model.logits_from(found[after[last]][-1]) if read_off else found[Site("logits")][-1]
    return Reading(
        tuple(ids),
        torch.stack([found[site] for site in sites[: model.n_layers + 1]]),
        torch.stack([found[site] for site in heads]) if apart else None,
        scores,
    )


def next_tokens(opened: Opened, reading: Reading, other: Reading | None = None, *, k: int = 10) -> pl.DataFrame:
    """The most likely next tokens: token, id, text, probability, and of a second reading (the same prompt, switched)
    `after`; the union of both top k, by the larger of the two. Probabilities are of the whole vocabulary."""
    before = reading.logits.softmax(-1)
    chosen = before.topk(min(k, len(before))).indices
    columns = {"probability": before}
    if other is not None:
        columns["after"] = other.logits.softmax(-1)
        chosen = torch.cat([chosen, columns["after"].topk(min(k, len(before))).indices])
    order = list(dict.fromkeys(chosen.tolist()))
    frame = pl.DataFrame(
        {
            "id": order,
            "text": next_strings(opened, order),
            **{n: c[order].double().tolist() for n, c in columns.items()},
        }
    )
    return frame.sort(pl.max_horizontal(list(columns)), descending=True, maintain_order=True).head(
        k if other is None else k + 4
    )


def shift(reading: Reading, other: Reading) -> dict[str, float]:
    """How far the next-token distribution moved: KL(before ‖ after) in nats, total variation, and whether the top token
    is the same."""
    p, q = (r.logits.double().log_softmax(-1) for r in (reading, other))
    return {
        "kl": float((p.exp() * (p - q)).sum()),
        "total_variation": float((p.exp() - q.exp()).abs().sum() / 2),
        "same_top": bool(p.argmax() == q.argmax()),
    }


# ---- heads


def attention_rows(opened: Opened, ids: Sequence[int], position: int, switches: Switches = Switches()) -> np.ndarray:
    """What every head attends to from one token: [layers, H, T] float32, rows summing to 1."""
    model = opened.model
    with opened.lock, torch.no_grad(), apply(model, edits_of(opened, switches, ids)):
        with attention.observe(model, lambda _, w: w[0, :, 0], rows=[position]) as seen:
            model.forward(_batch(model, ids))
    return attention.of_layers(seen).cpu().numpy()


def largest(opened: Opened, rows: np.ndarray) -> pl.DataFrame:
    """The largest attention weight of each head in its row of `attention_rows`: layer, head, attention."""
    return _per_head(opened.model, {"attention": rows.max(-1).astype(float).ravel().tolist()})


def pattern(opened: Opened, ids: Sequence[int], layer: int, head: int, switches: Switches = Switches()) -> np.ndarray:
    """The whole attention pattern of one head, [T queries, T keys] float32."""
    model = opened.model
    check_whole_patterns(opened, len(ids))
    with opened.lock, torch.no_grad(), apply(model, edits_of(opened, switches, ids)):
        with attention.observe(model, lambda _, w: w[0, head].cpu(), rows="all", layers=[layer]) as seen:
            model.forward(_batch(model, ids))
    return seen[layer].numpy()


def strongest(opened: Opened, ids: Sequence[int], row: np.ndarray, *, k: int = 8) -> pl.DataFrame:
    """The tokens with the most attention in a row [T]: position, text, weight."""
    order = np.argsort(-row, kind="stable")[:k]
    texts = opened.model.token_strings([ids[i] for i in order])
    return pl.DataFrame({"position": order.tolist(), "text": texts, "weight": row[order].astype(float).tolist()})


@torch.no_grad()
def head_writes(opened: Opened, reading: Reading, layer: int, head: int, position: int, *, k: int = 8) -> pl.DataFrame:
    """What a head writes into the vocabulary at one token, along the direct path: the logits with its output minus the
    logits without it, everything else as it is. id, text, logit, side ("up" for the k most raised, "down" for the k
    most lowered)."""
    model = opened.model
    with opened.lock:
        z = reading.z[layer, position].to(model.dtype)  # [H, d_head]
        change = torch.zeros_like(z)
        change[head] = -z[head]
        final = reading.stream[-1, position]
        without = final + writes(model, layer, z, change)[head].to(final.device).float()
        gain = model.logits_from(final) - model.logits_from(without)
    gain = gain - gain.mean()  # a constant over the vocabulary changes no probability
    up, down = gain.topk(min(k, len(gain))), (-gain).topk(min(k, len(gain)))
    ids = [*up.indices.tolist(), *down.indices.tolist()]
    return pl.DataFrame(
        {
            "id": ids,
            "text": next_strings(opened, ids),
            "logit": gain[ids].double().tolist(),
            "side": ["up"] * len(up.indices) + ["down"] * len(down.indices),
        }
    )


@torch.no_grad()
def direct_effects(opened: Opened, reading: Reading, target: Target, position: int = -1) -> pl.DataFrame:
    """Every head's direct effect on a target at one position: layer, head, direct_effect, the target's value (log p in
    nats, or a difference of logits) less its value without what the head writes, all else as it is."""
    model = opened.model
    final = reading.stream[-1, position]
    values = []
    with opened.lock:
        base = target.value(model.logits_from(final))
        for layer in range(model.n_layers):
            z = reading.z[layer, position].to(model.dtype)
            without = (
                final + writes(model, layer, z, -z).to(final.device).float()
            )  # [H, width]: each head removed alone
            values += (base - target.value(model.logits_from(without))).double().tolist()
    return _per_head(model, {"direct_effect": values})


def head_scores(
    opened: Opened, rows: Sequence[Sequence[int]], *, check: Callable[[], None] | None = None
) -> pl.DataFrame:
    """Live scores of every head: of each of `rows` (token ids) the mean over its tokens to which a score applies (see
    SCORES), then the mean over the rows, beside its control (see CONTROLS and `beside_control.columns`).

    A score that applies to no token (no repeated token: induction and duplicate_token) is null, and so is copying in a
    model whose heads do not each write to the stream."""
    model = opened.model
    found = []
    for i, ids in enumerate(rows):
        if check is not None:
            check()
        with opened.lock:
            found.append(_row_scores(opened, list(ids), seed=i))
    names = list(dict.fromkeys(name for one in found for name in one))
    whole = {name: np.stack([one[name] for one in found]) for name in names}
    controls = {name: whole[f"{name} control"] for name in CONTROLS}
    return _per_head(model, beside_control.columns({name: whole[name] for name in SCORES}, controls))


@torch.no_grad()
def _row_scores(opened: Opened, ids: list[int], *, seed: int) -> dict[str, np.ndarray]:
    """Scores and controls (``induction control``) of one row, [layers, H] each, NaN where one applies to no token."""
    model = opened.model
    check_whole_patterns(opened, len(ids))
    first = int(model.bos_id is not None and ids[0] == model.bos_id)
    twin = shuffled(ids, first=first, seed=seed)
    again = {f"{name} control": pairs for name, pairs in marked_in_twin(ids, twin, first=first).items()}
    reading = read(opened, ids) if model.lacks(*ADDITIVE, *READ_OFF) is None else None
    others = unsaid(ids, likely_words(opened), seed=seed) if reading is not None else None
    favour = None if reading is None else favoured(model, ids, others)

    def more(layer: int, weights: torch.Tensor) -> torch.Tensor:
        """Entropy, copying and its control, [3, H]."""
        copied = weights.new_full((2, len(weights)), torch.nan)
        copied = copied if reading is None or favour is None else copying(model, reading, favour, layer, weights)
        return torch.stack([attention.entropy(weights)[:, 1:].sum(-1).to(copied.device), *copied]) / (len(ids) - 1)

    found = attention_to(model, ids, marked(ids, first=first), more if len(ids) > 1 else None)
    found |= attention_to(model, twin, again)
    nothing = np.full((model.n_layers, model.n_heads), np.nan)
    names = [*SCORES, *(f"{name} control" for name in CONTROLS)]
    return {name: found.get(name, nothing) for name in names}


def repeated_tokens(opened: Opened, *, sequences: int = SEQUENCES, seed: int = 0) -> list[list[int]]:
    """Likely words in a random order, said twice, in sequences of several lengths (BOS in front where the model has
    one): on them only induction and its kin can predict anything."""
    return said_twice(opened.model, likely_words(opened), sequences=sequences, seed=seed)


def likely_words(opened: Opened) -> list[int]:
    """The `words` that the model itself finds likeliest, on average over every place of the reference texts: not those
    that training hardly showed it. Computed once per model."""
    with opened.lock:
        if opened.words is None:
            known = words(opened.model)
            if len(known) > LIKELY and opened.model.tokenizer is not None:
                passes = stream(opened.model, reference(opened)[:TEXTS], [Site("logits")], positions="all")
                chance = torch.stack([found[Site("logits")].float().softmax(-1).sum(0) for _, found, _ in passes])
                known = [known[i] for i in sorted(chance.sum(0).cpu()[known].topk(LIKELY).indices.tolist())]
            opened.words = known
        return opened.words


# ---- layers


def norms(reading: Reading) -> pl.DataFrame:
    """Length of the residual stream: layer (-1: the embeddings), position, norm."""
    values = reading.stream.norm(dim=-1).cpu().numpy()  # [layers + 1, T]
    layer, position = np.indices(values.shape)
    return pl.DataFrame(
        {"layer": layer.ravel() - 1, "position": position.ravel(), "norm": values.ravel().astype(float)}
    )


def output_norms(reading: Reading) -> pl.DataFrame:
    """Length of every head's output (before the output projection), mean over the tokens: layer, head, norm."""
    values = reading.z.norm(dim=-1).mean(1).cpu().numpy()
    layer, head = np.indices(values.shape)
    return pl.DataFrame({"layer": layer.ravel(), "head": head.ravel(), "norm": values.ravel().astype(float)})


# ---- pieces


def _batch(model: Model, ids: Sequence[int]):
    return pad([list(ids)], pad_id=model.pad_id, device=model.device)


def _per_head(model: Model, columns: Mapping[str, list[float] | pl.Series]) -> pl.DataFrame:
    layer, head = np.indices((model.n_layers, model.n_heads))
    plain = {name: pl.Float64 for name, values in columns.items() if not isinstance(values, pl.Series)}
    return pl.DataFrame({"layer": layer.ravel(), "head": head.ravel(), **columns}, schema_overrides=plain)


def perplexity(opened: Opened, ids: Sequence[int]) -> float | None:
    """Perplexity of the prompt's own tokens after the first; None for a prompt of one token."""
    if len(ids) < 2:
        return None
    with opened.lock:
        (losses,) = token_losses(opened.model, [list(ids)])
    return float(np.exp(losses.mean()))
