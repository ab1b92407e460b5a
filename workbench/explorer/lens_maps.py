"""Logit lens maps: what every layer would say next at every token, read off the stream or off one sub-block.

`of` says what is read: "stream" after each block, "between" a block's attention and its MLP, or what "attention" or
"mlp" alone add (through the final norm by themselves). Distances to the end are to the model's own next-token
distribution at the same token. (nostalgebraist 2020; Belrose et al. 2023 for the distance.)
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import torch

from workbench.core.errors import InputError
from workbench.explorer.opened_model import Opened, next_strings
from workbench.explorer.readings import Reading
from workbench.explorer.sub_blocks import SubBlocks
from workbench.explorer.targets import Target

OF = ("stream", "between", "attention", "mlp")
AT_ONCE = 1 << 25  # numbers of (states × vocabulary) held at once
SCHEMA = {
    "layer": pl.Int64,
    "position": pl.Int64,
    "id": pl.Int64,
    "probability": pl.Float64,
    "entropy": pl.Float64,
    "kl": pl.Float64,
    "next_probability": pl.Float64,
    "next_rank": pl.Int64,
    "target": pl.Float64,
    "target_rank": pl.Int64,
    "top": pl.List(pl.Int64),
    "top_probability": pl.List(pl.Float64),
}


@torch.no_grad()
def lens_map(
    opened: Opened,
    reading: Reading,
    *,
    of: str = "stream",
    parts: SubBlocks | None = None,
    target: Target | None = None,
    k: int = 5,
) -> pl.DataFrame:
    """One row per layer (−1: the embeddings, of the stream only) and position.

    The top token (id, text: null for a model without a tokenizer, probability), the entropy of the distribution and its
    distance to the end KL(end ‖ here), both in nats, probability and rank (0: top) of the token that really follows
    (null after the last one), the target's value (log p in nats, or a difference of logits) and its token's rank, and
    the k most likely tokens (top, top_probability).

    `parts` (`sub_blocks` over all positions) is needed for everything but the stream. Raises InputError for an unknown
    `of` and for a model whose scores are not read off its stream."""
    states, layers = lens_states(reading, of, parts)
    model = opened.model
    model.require("final_norm_ends_stream", "logits_unembedded", for_what="a logit lens")
    T = len(reading.ids)
    follows = torch.tensor([*reading.ids[1:], 0])
    columns: dict[str, list[torch.Tensor]] = {}
    step = max(1, AT_ONCE // model.vocab_size)
    with opened.lock:
        end = [_log_p(opened, block) for block in reading.stream[-1].split(step)]
        for state in states:
            start = 0
            for block, last in zip(state.split(step), end):
                found = _read(_log_p(opened, block), last, follows[start : start + len(block)], target, k)
                start += len(block)
                for name, values in found.items():
                    columns.setdefault(name, []).append(values.cpu())
    merged = {name: torch.cat(values) for name, values in columns.items()}
    frame = pl.DataFrame(
        {
            "layer": [layer for layer in layers for _ in range(T)],
            "position": [*range(T)] * len(layers),
            **{name: values.tolist() for name, values in merged.items()},
        },
        schema_overrides=SCHEMA,
    )
    absent = [name for name in SCHEMA if name not in frame.columns]
    frame = frame.with_columns(pl.lit(None, SCHEMA[name]).alias(name) for name in absent)
    known = pl.col("position") < T - 1
    frame = frame.with_columns(pl.when(known).then(pl.col(c)).alias(c) for c in ("next_probability", "next_rank"))
    ids = frame["id"].to_list()
    texts = [None] * len(ids) if model.tokenizer is None else next_strings(opened, ids)
    return frame.select(list(SCHEMA)).with_columns(pl.Series("text", texts, pl.String))


def lens_states(reading: Reading, of: str, parts: SubBlocks | None) -> tuple[torch.Tensor, list[int]]:
    """What a lens reads: states [rows, T, width] and the layer of each. Raises InputError for an unknown `of`, and for
    parts that are missing."""
    layers = len(reading.stream) - 1
    if of == "stream":
        return reading.stream, list(range(-1, layers))
    if of not in OF:
        raise InputError(f"'{of}' is nothing that a lens reads; choose {', '.join(OF)}.")
    if parts is None or len(parts.positions) != len(reading.ids):
        raise InputError(f"The lens of {of} needs what attention and MLPs add at every token of the prompt.")
    chosen: dict[str, Callable[[], torch.Tensor]] = {
        "between": lambda: reading.stream[:-1] + parts.attention,
        "attention": lambda: parts.attention,
        "mlp": lambda: parts.mlp,
    }
    return chosen[of](), list(range(layers))


def _log_p(opened: Opened, states: torch.Tensor) -> torch.Tensor:
    return opened.model.logits_from(states).log_softmax(-1)


def _read(
    log_p: torch.Tensor, end: torch.Tensor, follows: torch.Tensor, target: Target | None, k: int
) -> dict[str, torch.Tensor]:
    """The columns of some states, from their log-probabilities and those of the end [n, V]."""
    p = log_p.exp()
    top = log_p.topk(min(k, log_p.shape[-1]))
    real = log_p.gather(1, follows.to(log_p.device)[:, None])
    found = {
        "id": top.indices[:, 0],
        "probability": top.values[:, 0].exp(),
        "entropy": -torch.where(p > 0, p * log_p, 0).sum(-1),
        "kl": torch.where(end > -torch.inf, end.exp() * (end - log_p), 0).sum(-1).clamp_min(0),
        "next_probability": real[:, 0].exp(),
        "next_rank": (log_p > real).sum(-1),
        "top": top.indices,
        "top_probability": top.values.exp(),
    }
    if target is not None:
        found["target"] = target.value(log_p)
        found["target_rank"] = (log_p > log_p[:, target.token, None]).sum(-1)
    return found
