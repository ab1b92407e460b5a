"""What the Explorer shows of one prompt: tokens, head scores, attention rows, what a head writes, logit lens, and all
of it again with heads switched off.

Every function takes an `Opened` model and plain token ids and returns tables or small arrays; screens draw them. One
pass over the prompt (`read`) gives the residual stream and the head outputs from which most cards are computed without
another pass; attention rows are reduced on the device, one query or one layer at a time.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.engine import generate
from workbench.engine.edits import Edit, HeadAblation, Patch, apply
from workbench.engine.evaluation import token_losses
from workbench.engine.hf import stream
from workbench.engine.mean_head_outputs import mean_head_outputs
from workbench.engine.passes import check_ids
from workbench.engine.patching import ADDITIVE, READ_OFF, writes
from workbench.models import attention
from workbench.models.batching import pad
from workbench.models.float32 import in_float32, mean_row
from workbench.models.loading import load
from workbench.models.model import Model
from workbench.models.sites import Site

Head = tuple[int, int]

MOST_TOKENS = 512  # of a prompt: what is kept of one grows with layers × tokens × width
HOW = ("zero", "mean", "uniform", "patch")
SCORES = {
    "induction": "mean attention to the token that followed an earlier occurrence of the present token",
    "previous_token": "mean attention to the token before",
    "duplicate_token": "mean attention to earlier occurrences of the present token",
    "first_token": "mean attention to the first token (the usual resting place)",
    "entropy": "mean entropy of the attention rows, in nats",
    "copying": "logits by which the head favours the tokens it attends to over the mean of the vocabulary (first "
    "order, "
    "direct path)",
}


@dataclass(eq=False)
class Opened:
    """A model that several tabs may use: hooks belong to the model, so passes take turns."""

    model: Model
    lock: threading.RLock = field(default_factory=threading.RLock)
    mean: torch.Tensor | None = None  # head outputs over the reference texts, once they were needed


@dataclass(frozen=True)
class Switches:
    """Heads that are switched, hashable so that results can be kept by it. `donor`: token ids of the prompt to patch
    from."""

    heads: tuple[Head, ...] = ()
    how: str = "zero"
    donor: tuple[int, ...] = ()


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


def open_model(name: str, *, dtype: str = "float32", device: str | None = None) -> Opened:
    """Load a model for looking at it."""
    return Opened(load(name, dtype=dtype, device=device))


def encode(opened: Opened, text: str, *, bos: bool = True) -> tuple[int, ...]:
    """Token ids exactly as they are fed. Raises InputError for an empty prompt and one that is too long to look at."""
    ids = tuple(opened.model.encode(text, bos=bos))
    if not text or not ids:
        raise InputError("The prompt is empty: type some text.")
    if len(ids) > MOST_TOKENS:
        raise InputError(
            f"The prompt has {len(ids)} tokens; the Explorer looks at up to {MOST_TOKENS}. Shorten it, or run "
            f"a probe on it."
        )
    check_ids(opened.model, [ids])
    return ids


def unknown(opened: Opened, ids: Sequence[int]) -> int:
    """How many of the tokens stand for text that the tokenizer does not know."""
    tokenizer = opened.model.tokenizer
    other = {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    }  # some tokenizers use one token for all of these
    unk = tokenizer.unk_token_id
    return 0 if unk is None or unk in other else sum(i == unk for i in ids)


def tokens(opened: Opened, ids: Sequence[int]) -> pl.DataFrame:
    """One row per token: position, id, text (as it reads), special."""
    special = opened.model.special_ids
    return pl.DataFrame(
        {
            "position": list(range(len(ids))),  # a range would be made on the thread pool of polars, which takes longer
            "id": list(ids),
            "text": opened.model.token_strings(ids),
            "special": [i in special for i in ids],
        }
    )


# ---- switches


def edits_of(opened: Opened, switches: Switches, ids: Sequence[int]) -> tuple[Edit, ...]:
    """The edits that switch these heads on this prompt. Raises InputError for heads that do not exist or a donor that
    is missing.

    "mean" puts the mean output over the reference texts (`reference`) in place; "patch" the output on the donor prompt,
    position by position where both are equally long, otherwise aligned at their ends (the last min(T, T') tokens)."""
    model = opened.model
    if not switches.heads:
        return ()
    for layer, head in switches.heads:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise InputError(
                f"Head {layer}.{head} does not exist: {model.name} has layers 0–{model.n_layers - 1} and "
                f"heads 0–{model.n_heads - 1}."
            )
    if switches.how in ("zero", "uniform"):
        return (HeadAblation(switches.heads, switches.how),)
    if switches.how == "mean":
        return (HeadAblation(switches.heads, "mean", mean=_mean(opened)),)
    if switches.how != "patch":
        raise InputError(f"'{switches.how}' is no way to switch a head; choose {', '.join(HOW)}.")
    if not switches.donor:
        raise InputError("Patching needs a second prompt to take the head outputs from.")
    donor = read(opened, switches.donor)
    both = min(len(ids), len(switches.donor))
    where = tuple(range(len(ids) - both, len(ids)))
    return tuple(
        Patch(Site("head_out", layer, head), donor.z[layer, -both:, head], where) for layer, head in switches.heads
    )


def reference(opened: Opened) -> list[list[int]]:
    """Prompts over which the mean head outputs are taken: texts that ship with an organism, otherwise a few English
    sentences."""
    from workbench import organisms
    from workbench.core.tables import read_table

    model, texts = opened.model, list(REFERENCE)
    if model.name.startswith("organism"):
        texts = read_table(organisms.data("texts"), required=("text",), what="texts")["text"].to_list()[:64]
    rows = [model.encode(text)[: model.context_length or MOST_TOKENS] for text in texts]
    return [row for row in rows if row]


REFERENCE = (
    "The river runs past the old mill and into the sea.",
    "In 1969 two people walked on the moon for the first time.",
    "She opened the letter, read it twice, and put it back into the drawer.",
    "When the bell rang the children ran into the garden to play.",
    "Water boils at one hundred degrees, and freezes at zero.",
    "The committee will meet on Tuesday to discuss the budget for next year.",
    "He asked for bread, butter and a cup of black coffee.",
    "Most of the birds had left by the end of the month.",
)


def _mean(opened: Opened) -> torch.Tensor:
    """[layers, H, d_head], computed once per model."""
    with opened.lock:
        if opened.mean is None:
            opened.mean = mean_head_outputs(opened.model, reference(opened))
        return opened.mean


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
            "text": opened.model.token_strings(order),
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


def write_on(opened: Opened, ids: Sequence[int], switches: Switches = Switches(), *, most: int = 24) -> str:
    """The greedy continuation under the switches. A patch holds for the prompt's own positions only."""
    with opened.lock:
        edits = edits_of(opened, switches, ids)
        phase = "prefill" if switches.how == "patch" else "all"
        found = generate.greedy(opened.model, [list(ids)], max_new_tokens=most, edits=edits, edit_phase=phase)[0]
        return opened.model.decode(found)


# ---- heads


def attention_rows(opened: Opened, ids: Sequence[int], position: int, switches: Switches = Switches()) -> np.ndarray:
    """What every head attends to from one token: [layers, H, T] float32, rows summing to 1."""
    model = opened.model
    with opened.lock, torch.no_grad(), apply(model, edits_of(opened, switches, ids)):
        with attention.observe(model, lambda _, w: w[0, :, 0].cpu(), rows=[position]) as seen:
            model.forward(_batch(model, ids))
    return torch.stack([seen[layer] for layer in range(model.n_layers)]).numpy()


def largest(opened: Opened, rows: np.ndarray) -> pl.DataFrame:
    """The largest attention weight of each head in its row of `attention_rows`: layer, head, attention."""
    return _per_head(opened.model, {"attention": rows.max(-1).astype(float).ravel().tolist()})


def pattern(opened: Opened, ids: Sequence[int], layer: int, head: int, switches: Switches = Switches()) -> np.ndarray:
    """The whole attention pattern of one head, [T queries, T keys] float32."""
    model = opened.model
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
            "text": model.token_strings(ids),
            "logit": gain[ids].double().tolist(),
            "side": ["up"] * len(up.indices) + ["down"] * len(down.indices),
        }
    )


@torch.no_grad()
def direct_effects(opened: Opened, reading: Reading, token: int, position: int = -1) -> pl.DataFrame:
    """Every head's direct contribution to the logit of one token at one position: layer, head, direct_logit (mean-free,
    as in `head_writes`)."""
    model = opened.model
    final = reading.stream[-1, position]
    values = []
    with opened.lock:
        base = model.logits_from(final)
        for layer in range(model.n_layers):
            z = reading.z[layer, position].to(model.dtype)
            without = (
                final + writes(model, layer, z, -z).to(final.device).float()
            )  # [H, width]: each head removed alone
            gain = base - model.logits_from(without)
            values += (gain[:, token] - gain.mean(-1)).double().tolist()
    return _per_head(model, {"direct_logit": values})


@torch.no_grad()
def head_scores(
    opened: Opened, rows: Sequence[Sequence[int]], *, check: Callable[[], None] | None = None
) -> pl.DataFrame:
    """Live scores of every head, averaged over all tokens of `rows` (token ids) to which a score applies; see SCORES.

    A score that applies to no token (no repeated token: induction and duplicate_token) is null, and so is copying in a
    model whose heads do not each write to the stream."""
    model = opened.model
    writing = model.lacks(*ADDITIVE, *READ_OFF) is None
    totals = {name: torch.zeros(model.n_layers, model.n_heads, dtype=torch.float64) for name in SCORES}
    counts = dict.fromkeys(SCORES, 0)
    for ids in rows:
        if check is not None:
            check()
        with opened.lock:
            reading = read(opened, ids)
            marks = _marks(ids, skip_first=model.bos_id is not None and ids[0] == model.bos_id)
            used = {name: int(m.any(-1).sum()) for name, m in marks.items()}
            used |= {"entropy": len(ids) - 1, "copying": len(ids) - 1 if writing else 0}

            def reduce(layer: int, weights: torch.Tensor, marks=marks, reading=reading) -> torch.Tensor:
                w = weights[0]  # [H, T, T]
                sums = {name: (w * m.to(w.device)).sum((-1, -2)) for name, m in marks.items()}
                sums["entropy"] = attention.entropy(w)[:, 1:].sum(-1)
                sums["copying"] = _copying(model, reading, layer, w) if writing else torch.zeros(model.n_heads)
                return torch.stack([sums[name].cpu() for name in SCORES])

            with attention.observe(model, reduce, rows="all") as seen:
                model.forward(_batch(model, ids))
        for layer in range(model.n_layers):
            for name, value in zip(SCORES, seen[layer].double()):
                totals[name][layer] += value
        for name in SCORES:
            counts[name] += used[name]
    columns = {
        name: (totals[name] / counts[name]).flatten().tolist() if counts[name] else [None] * totals[name].numel()
        for name in SCORES
    }
    return _per_head(model, columns)


def _marks(ids: Sequence[int], *, skip_first: bool) -> dict[str, torch.Tensor]:
    """For each attention score the (query, key) pairs that count, [T, T] bool. A BOS in front is nobody's earlier
    occurrence."""
    T = len(ids)
    token = torch.tensor(ids)
    query, key = torch.arange(T)[:, None], torch.arange(T)[None]
    same = (token[:, None] == token[None]) & (key < query)
    if skip_first:
        same &= key > 0
    followed = torch.zeros(T, T, dtype=torch.bool)
    followed[:, 1:] = same[:, :-1]  # the key after an earlier occurrence of the query's token
    return {
        "induction": followed & (key < query),
        "previous_token": key == query - 1,
        "duplicate_token": same,
        "first_token": (key == 0) & (query > 0),
    }


def _copying(model: Model, reading: Reading, layer: int, weights: torch.Tensor) -> torch.Tensor:
    """Sum over queries of Σ_j A_ij (c_ij − mean over the vocabulary), [H]: c_ij is the first-order change of token j's
    logit at query i by what the head writes there, through the final norm. BOS as a source is left out, and so is the
    first query."""
    ids = torch.tensor(reading.ids)
    T, final = len(ids), reading.stream[-1]
    z = reading.z[layer].to(model.dtype)
    wrote = -writes(model, layer, z, -z).to(final.device, final.dtype)  # [T, H, width]
    norm, unembed = model.final_norm, model.unembed.weight
    # columns of the unembedding for the tokens of the prompt, relative to their mean over the vocabulary
    favour = unembed[ids.to(unembed.device)].float() - mean_row(unembed)  # [T, width]
    sources = weights.clone()
    if model.bos_id is not None and reading.ids[0] == model.bos_id:
        sources[..., 0] = 0
    out = []
    for head in range(wrote.shape[1]):
        dtype = torch.promote_types(unembed.dtype, torch.float32)
        through = functools.partial(in_float32, norm)
        _, moved = torch.func.jvp(through, (final.to(dtype),), (wrote[:, head].to(dtype),))  # [T, width]
        gain = moved.float() @ favour.T  # [T queries, T tokens]
        out.append((sources[head, 1:T] * gain[1:].to(sources.device)).sum())
    return torch.stack(out) * (1.0 if model.logit_scale is None else model.logit_scale)


def repeated_tokens(opened: Opened, *, length: int = 24, rows: int = 4, seed: int = 0) -> list[list[int]]:
    """Random tokens said twice (BOS in front where the model has one): on them only induction and its kin can predict
    anything."""
    model = opened.model
    generator = np.random.default_rng(seed)
    special = set(model.tokenizer.all_special_ids)
    pool = np.array([i for i in range(min(model.vocab_size, len(model.tokenizer))) if i not in special])
    front = [model.bos_id] if model.prepends_bos else []
    if model.context_length is not None:
        length = min(length, (model.context_length - len(front)) // 2)
    found = []
    for _ in range(rows):
        half = generator.choice(pool, size=length, replace=len(pool) < length).tolist()
        found.append([*front, *half, *half])
    return found


# ---- layers


@torch.no_grad()
def lens(
    opened: Opened, reading: Reading, *, layers: Sequence[int] | None = None, positions: Sequence[int] | None = None
) -> pl.DataFrame:
    """Logit lens: final norm and unembedding of the stream after each layer. One row per layer (-1: the embeddings) and
    position: the top token (id, text), its probability, and the rank (0: top) and probability of the token that really
    follows."""
    model = opened.model
    chosen = list(range(-1, model.n_layers)) if layers is None else list(layers)
    where = list(range(len(reading.ids))) if positions is None else list(positions)
    rows = []
    with opened.lock:
        for layer in chosen:
            for block in [where[i : i + 64] for i in range(0, len(where), 64)]:
                p = model.logits_from(reading.stream[layer + 1, block]).softmax(-1)  # [k, V]
                top = p.max(-1)
                follows = [reading.ids[i + 1] if i + 1 < len(reading.ids) else None for i in block]
                for j, (i, real) in enumerate(zip(block, follows)):
                    known = (
                        {}
                        if real is None
                        else {"next_probability": float(p[j, real]), "next_rank": int((p[j] > p[j, real]).sum())}
                    )
                    rows.append(
                        {
                            "layer": layer,
                            "position": i,
                            "id": int(top.indices[j]),
                            "probability": float(top.values[j]),
                            "next_probability": None,
                            "next_rank": None,
                        }
                        | known
                    )
    schema = {
        "layer": pl.Int64,
        "position": pl.Int64,
        "id": pl.Int64,
        "probability": pl.Float64,
        "next_probability": pl.Float64,
        "next_rank": pl.Int64,
    }
    frame = pl.DataFrame(rows, schema=schema)
    return frame.with_columns(pl.Series("text", model.token_strings(frame["id"].to_list())))


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


def _per_head(model: Model, columns: dict[str, list[float]]) -> pl.DataFrame:
    layer, head = np.indices((model.n_layers, model.n_heads))
    return pl.DataFrame(
        {"layer": layer.ravel(), "head": head.ravel(), **columns}, schema_overrides=dict.fromkeys(columns, pl.Float64)
    )


def perplexity(opened: Opened, ids: Sequence[int]) -> float | None:
    """Perplexity of the prompt's own tokens after the first; None for a prompt of one token."""
    if len(ids) < 2:
        return None
    with opened.lock:
        (losses,) = token_losses(opened.model, [list(ids)])
    return float(np.exp(losses.mean()))
