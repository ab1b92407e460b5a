"""Every component of every earlier head against every reader of every later head, from the weights alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from probes.talking_heads.config import Config
from workbench.core.context import Context
from workbench.engine.composition import (
    KINDS,
    Components,
    RandomDirections,
    component_scores,
    components,
    pair_scores,
    random_directions,
    readers,
)
from workbench.models.head_weights import HeadWeights, head_weights, rotations

SCHEMA = {
    "rank": pl.Int64,
    "source_layer": pl.Int64,
    "source_head": pl.Int64,
    "component": pl.Int64,
    "target_layer": pl.Int64,
    "target_head": pl.Int64,
    "target_heads": pl.Int64,
    "kind": pl.String,
    "score": pl.Float64,
    "z": pl.Float64,
    "z_heads": pl.Float64,
    "p_adjusted": pl.Float64,
    "is_channel": pl.Boolean,
    "null_mean": pl.Float64,
    "null_sd": pl.Float64,
    "pair_score": pl.Float64,
    "singular_value": pl.Float64,
    "share_of_head": pl.Float64,
    "gap": pl.Float64,
    "rank_in": pl.Int64,
}
COMPONENT_SCHEMA = {
    name: SCHEMA[name]
    for name in ("source_layer", "source_head", "component", "target_layer", "target_head", "kind", "singular_value")
} | {"score": pl.Float64, "z": pl.Float64, "null_mean": pl.Float64, "null_sd": pl.Float64}
TELLING = 0.05  # p from which on a test may count; larger ones cannot change the adjusted p of smaller ones
PAIRS = 12  # pairs of heads of which the table of components has every component
RATE = 0.05
TINY = 1e-9  # a spread of scores below it is rounding
DEAD = 1e-6  # singular values below it, beside the largest of the head, are rounding: their directions mean nothing
FEWEST = 8  # components of which the spread is told
NORMAL_MAD = 0.6744897501960817  # median absolute deviation of a normal variable of standard deviation 1


@dataclass(frozen=True, eq=False)
class ReaderScores:
    """The scores of all components before a later layer into its readers of one kind: `scores` [n, m] float64, n the
    earlier layers' heads' components in their order; `null`: what random directions score; `z` and `z_heads` [n, m]:
    against these, and against the components of all heads before the layer."""

    layer: int
    kind: str
    scores: np.ndarray
    null: RandomDirections
    z: np.ndarray
    z_heads: np.ndarray

    @property
    def least(self) -> np.ndarray:
        """The smaller of both z, the one where there is no other: what is no outlier of one of the nulls is none."""
        return np.fmin(self.z, self.z_heads)


@dataclass(frozen=True, eq=False)
class ModelHeads:
    """What is known of the heads of every layer."""

    heads: list[HeadWeights]
    components: list[Components]
    turned: list[list[torch.Tensor]]  # of each layer the rotations of the offsets
    width: int  # dimensions that heads write into

    @property
    def group(self) -> int:
        """Query heads that share a key and a value."""
        return len(self.heads[0].query) // len(self.heads[0].key)


def read_weights(model, config: Config, context: Context) -> ModelHeads:
    """The weights of all heads and the components of what they write."""
    heads = head_weights(model, folded=config.norms == "folded", check=context.check)
    turned: list[list[torch.Tensor]] = [[] for _ in heads]
    if set(config.offsets) != {0}:
        for offset in config.offsets:
            for own, turn in zip(turned, rotations(model, offset, check=context.check)):
                own.append(turn)
    width = model.width - int(heads[0].centred)
    return ModelHeads(heads, [components(own) for own in heads], turned, width)


def readings(weights: ModelHeads, config: Config, context: Context, device) -> Iterator[ReaderScores]:
    """Layer by layer and kind by kind, the scores into its readers."""
    writes = [own.writes.flatten(0, 1).to(device, torch.float32) for own in weights.components]
    values = [own.values for own in weights.components]
    dead = torch.cat([(v <= DEAD * v.max()).flatten() for v in values]).numpy()
    for layer in range(1, len(weights.heads)):
        for kind in KINDS:
            context.check()
            reading = readers(weights.heads[layer], kind, () if kind == "v" else weights.turned[layer])
            there = reading.to(device, torch.float32)
            found = [component_scores(own, there).cpu() for own in writes[:layer]]
            scores = torch.cat(found).double().numpy()
            scores[dead[: len(scores)]] = np.nan
            null = random_directions(
                reading, width=weights.width, draws=config.null_draws, rng=context.rng(f"null {layer} {kind}")
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                z = (scores - null.mean) / null.sd
            yield ReaderScores(layer, kind, scores, null, z, against_others(scores))


def against_others(scores: np.ndarray) -> np.ndarray:
    """How far each score [n, m] is from the median of its column, in standard deviations as the median absolute
    deviation gives them: few strong channels do not hide each other. The plain standard deviation where more than half
    of a column is one number; NaN below FEWEST scores, and where all of them are one."""
    if len(scores) < FEWEST:
        return np.full(scores.shape, np.nan)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of a reader without a score
        off = scores - np.nanmedian(scores, axis=0)
        spread = np.nanmedian(np.abs(off), axis=0) / NORMAL_MAD
        spread = np.where(spread > TINY, spread, np.nanstd(scores, axis=0))
        few = np.isfinite(scores).sum(0) < FEWEST
        return np.where((spread > TINY) & ~few, off / spread, np.nan)


def scan(weights: ModelHeads, config: Config, context: Context, device) -> dict[str, pl.DataFrame | np.ndarray]:
    """The tables `channels`, `heads` and `components`, the array `pair_scores` [3, L, H, L, H] (kind, from, to) and how
    many tests there were."""
    shape = len(weights.heads), len(weights.heads[0].query)
    pairs = np.full((3, *shape, *shape), np.nan, np.float32)
    strength = {name: np.full(shape, np.nan) for name in ("out", "in", "in_q", "in_k", "in_v")}
    rows: list[dict] = []
    p_values: list[np.ndarray] = []
    p_strong: list[np.ndarray] = []
    tested = 0
    total = len(KINDS) * (len(weights.heads) - 1)
    for number, reading in enumerate(readings(weights, config, context, device)):
        context.progress(number, total, "layers and kinds")
        tested += int(np.isfinite(reading.scores).sum())
        own = _pairs(weights, reading)
        heads = _heads_of(weights, reading.kind)
        for reader, several in enumerate(heads):
            pairs[KINDS.index(reading.kind), : reading.layer, :, reading.layer, several] = own[..., reader]
        _strengths(strength, weights, reading, heads)
        p = _telling_p(reading)
        p_values.append(p[p <= TELLING])
        strong = reading.least >= config.outlier
        p_strong.append(p[strong])
        rows += _strongest(weights, reading, own, p, config)
    context.progress(total, total, "layers and kinds")
    table, adjusted = _channel_table(rows, np.concatenate(p_values or [np.empty(0)]), tested, config)
    marked = int((adjusted(np.concatenate(p_strong)) < RATE).sum()) if p_strong else 0
    return {
        "channels": table,
        "heads": _head_table(strength),
        "components": _component_table(weights, table, config, context, device),
        "pair_scores": pairs,
        "tests": np.array([tested, marked], np.int64),
    }


def _heads_of(weights: ModelHeads, kind: str) -> list[list[int]]:
    """The query heads that each reader stands for."""
    size = 1 if kind == "q" else weights.group
    return [list(range(start, start + size)) for start in range(0, len(weights.heads[0].query), size)]


def _split(weights: ModelHeads, reading: ReaderScores) -> tuple[int, int, int]:
    heads, each = weights.components[0].values.shape
    return reading.layer, heads, each


def _pairs(weights: ModelHeads, reading: ReaderScores) -> np.ndarray:
    """Scores of whole heads, [earlier layers, H, readers]."""
    layers, heads, each = _split(weights, reading)
    values = torch.cat([own.values for own in weights.components[:layers]])
    scores = torch.from_numpy(np.nan_to_num(reading.scores)).unflatten(0, (layers * heads, each))
    return pair_scores(values, scores).unflatten(0, (layers, heads)).numpy()


def _strengths(
    strength: dict[str, np.ndarray], weights: ModelHeads, reading: ReaderScores, heads: list[list[int]]
) -> None:
    layers, count, each = _split(weights, reading)
    least = reading.least.reshape(layers, count, each, -1)
    leaving = strength["out"][:layers]
    leaving[:] = np.fmax(leaving, np.fmax.reduce(least, (2, 3)))
    arriving = np.fmax.reduce(least, (0, 1, 2))
    for reader, several in enumerate(heads):
        for name in ("in", f"in_{reading.kind}"):
            place = strength[name][reading.layer]
            place[several] = np.fmax(place[several], arriving[reader])


def _telling_p(reading: ReaderScores) -> np.ndarray:
    """p of a random direction, one-sided; NaN where it is not small enough to matter (z below 1)."""
    p = np.full(reading.scores.shape, np.nan)
    near = reading.z > 1
    columns = np.broadcast_to(np.arange(near.shape[1]), near.shape)[near]
    null = reading.null
    chosen = RandomDirections(*(part[columns] for part in (null.mean, null.sd, null.most, null.a, null.b)))
    p[near] = chosen.p_above(reading.scores[near])
    return p


def _strongest(
    weights: ModelHeads, reading: ReaderScores, pairs: np.ndarray, p: np.ndarray, config: Config
) -> list[dict]:
    """The `keep` strongest channels into the layer, and the `ablate` strongest into each of its readers."""
    layers, heads, each = _split(weights, reading)
    least = np.nan_to_num(reading.least, nan=-np.inf)
    n, m = least.shape
    first = np.argpartition(-least, min(config.ablate, n) - 1, axis=0)[: config.ablate]  # [k, m]
    chosen = {(int(i), reader) for reader in range(m) for i in first[:, reader]}
    flat = np.argpartition(-least.ravel(), min(config.keep, n * m) - 1)[: config.keep]
    chosen |= {(int(i // m), int(i % m)) for i in flat}
    order = {
        (int(i), r): k
        for r in range(m)
        for k, i in enumerate(first[np.argsort(-least[first[:, r], r], kind="stable"), r])
    }
    step = 1 if reading.kind == "q" else weights.group
    found = []
    for i, reader in sorted(chosen):
        if not np.isfinite(reading.scores[i, reader]):
            continue
        layer, head, component = i // (heads * each), i // each % heads, i % each
        values = weights.components[layer].values[head].numpy()
        beside = np.abs(np.delete(values, component) - values[component])
        found.append(
            {
                "source_layer": layer,
                "source_head": head,
                "component": component,
                "target_layer": reading.layer,
                "target_head": reader * step,
                "target_heads": step,
                "kind": reading.kind,
                "score": float(reading.scores[i, reader]),
                "z": float(reading.z[i, reader]),
                "z_heads": float(reading.z_heads[i, reader]),
                "p": float(p[i, reader]),
                "null_mean": float(reading.null.mean[reader]),
                "null_sd": float(reading.null.sd[reader]),
                "pair_score": float(pairs[layer, head, reader]),
                "singular_value": float(values[component]),
                "share_of_head": float(values[component] ** 2 / (values**2).sum()),
                "gap": float(beside.min() / values[component]) if len(beside) and values[component] else None,
                "rank_in": order.get((i, reader), -1) + 1 or None,
            }
        )
    return found


def _channel_table(
    rows: list[dict], p_values: np.ndarray, tested: int, config: Config
) -> tuple[pl.DataFrame, Callable[[np.ndarray], np.ndarray]]:
    """The rows in the order of their strength, with p adjusted over all that was tested."""
    adjusted = _adjusting(p_values, tested)
    rows = sorted(
        rows,
        key=lambda r: (
            -np.nan_to_num(np.fmin(r["z"], r["z_heads"]), nan=-np.inf),
            *(r[name] for name in ("target_layer", "target_head", "kind", "source_layer", "source_head", "component")),
        ),
    )
    kept = []
    for rank, row in enumerate(rows, 1):
        if rank > config.keep and row["rank_in"] is None:
            continue
        p = float(adjusted(np.array([row.pop("p")]))[0])
        least = np.fmin(row["z"], row["z_heads"])
        place = rank if rank <= config.keep else None  # stronger ones into other readers are not kept: not known
        kept.append(row | {"rank": place, "p_adjusted": p, "is_channel": bool(p < RATE and least >= config.outlier)})
    return pl.DataFrame(kept, schema=SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None)), adjusted


def _adjusting(p_values: np.ndarray, tested: int) -> Callable[[np.ndarray], np.ndarray]:
    """What adjusts p (Benjamini and Hochberg) over `tested` tests, of which `p_values` are all that are at most
    TELLING: exact where the adjusted p is at most TELLING, else at least the p (1 where it is not known)."""
    order = np.sort(p_values)
    if len(order):
        ranked = np.minimum(order * tested / np.arange(1, len(order) + 1), 1.0)
        adjusted = np.minimum.accumulate(ranked[::-1])[::-1]

    def of(p: np.ndarray) -> np.ndarray:
        found = np.ones(p.shape)
        known = p <= TELLING
        if known.any():
            found[known] = adjusted[np.searchsorted(order, p[known], side="right") - 1]
        return found

    return of


def _head_table(strength: dict[str, np.ndarray]) -> pl.DataFrame:
    layer, head = np.indices(strength["in"].shape)
    values = {
        f"{name}_strength": [None if np.isnan(v) else float(v) for v in strength[name].ravel()] for name in strength
    }
    floats = dict.fromkeys(values, pl.Float64)
    return pl.DataFrame(
        {"layer": layer.ravel(), "head": head.ravel(), **values},
        schema={"layer": pl.Int64, "head": pl.Int64, **floats},
    )


def _component_table(
    weights: ModelHeads, channels: pl.DataFrame, config: Config, context: Context, device
) -> pl.DataFrame:
    """Every component of the sending head, for the pairs of heads with the strongest channels."""
    pairs = channels.unique(
        ["source_layer", "source_head", "target_layer", "target_head", "kind"], keep="first", maintain_order=True
    ).head(PAIRS)
    found = []
    for row in pairs.iter_rows(named=True):
        kind, layer = row["kind"], row["target_layer"]
        turned: Sequence[torch.Tensor] = () if kind == "v" else weights.turned[layer]
        reader = row["target_head"] // row["target_heads"]
        reading = readers(weights.heads[layer], kind, turned)[reader : reader + 1]
        sender = weights.components[row["source_layer"]]
        writes = sender.writes[row["source_head"]].to(device, torch.float32)
        scores = component_scores(writes, reading.to(device, torch.float32))[:, 0].double().cpu().numpy()
        named = {name: row[name] for name in ("source_layer", "source_head", "target_layer", "target_head", "kind")}
        found += [
            named
            | {
                "component": i,
                "singular_value": float(sender.values[row["source_head"], i]),
                "score": float(score),
                "z": float((score - row["null_mean"]) / row["null_sd"]),
                "null_mean": row["null_mean"],
                "null_sd": row["null_sd"],
            }
            for i, score in enumerate(scores)
        ]
    return pl.DataFrame(found, schema=COMPONENT_SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))
