"""What the Explorer shows of one prompt: tokens, head scores, attention rows, what a head writes, logit lens, and all
of it again with heads switched off.

Every function takes an `Opened` model and plain token ids and returns tables or small arrays; screens draw them. One
pass over the prompt (`read`) gives the residual stream and the head outputs from which most cards are computed without
another pass; attention rows are reduced on the device, one query or one layer at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
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
from workbench.explorer import beside_control
from workbench.explorer.head_score_passes import CONTROLS, SCORES, attention_to, copying
from workbench.explorer.marked_pairs import marked, marked_in_twin
from workbench.explorer.repeated_words import SEQUENCES, said_twice, shuffled, unsaid, words
from workbench.models import attention
from workbench.models.batching import pad
from workbench.models.loading import load
from workbench.models.model import Model
from workbench.models.sites import Site

Head = tuple[int, int]

MOST_TOKENS = 512  # of a prompt: what is kept of one grows with layers × tokens × width
HOW = ("zero", "mean", "uniform", "patch")
LIKELY, TEXTS = 512, 16  # words to draw from; reference texts by which they are chosen


@dataclass(eq=False)
class Opened:
    """A model that several tabs may use: hooks belong to the model, so passes take turns."""

    model: Model
    lock: threading.RLock = field(default_factory=threading.RLock)
    mean: torch.Tensor | None = None  # head outputs over the reference texts, once they were needed
    words: list[int] | None = None  # likely ones, once they were needed


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
    first = int(model.bos_id is not None and ids[0] == model.bos_id)
    twin = shuffled(ids, first=first, seed=seed)
    again = {f"{name} control": pairs for name, pairs in marked_in_twin(ids, twin, first=first).items()}
    reading = read(opened, ids) if model.lacks(*ADDITIVE, *READ_OFF) is None else None
    others = unsaid(ids, likely_words(opened), seed=seed) if reading is not None else None

    def more(layer: int, weights: torch.Tensor) -> torch.Tensor:
        """Entropy, copying and its control, [3, H]."""
        copied = weights.new_full((2, len(weights)), torch.nan)
        copied = copied if reading is None else copying(model, reading, layer, weights, others)
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
