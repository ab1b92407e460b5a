"""What a receiver looks at, and what is answered, without the channels into it: on prompts that chose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.talking_heads.channel_edits import Channel, mean_coordinates, removed, scaled
from probes.talking_heads.config import Config
from probes.talking_heads.measures import METRICS, Measured, measure, within
from probes.talking_heads.scan import DEAD, ModelHeads
from probes.talking_heads.tasks import Prompt
from workbench.core.context import Context
from workbench.engine.edits import Edit
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.stats.clusters import (
    clusters_of,
    crossed_interval,
    false_discovery,
    mean_interval,
    p_of_zero,
    share_interval,
)

Head = tuple[int, int]
SCHEMA = {
    "task": pl.String,
    "target_layer": pl.Int64,
    "target_head": pl.Int64,
    "channels": pl.String,
    "source_layer": pl.Int64,
    "source_head": pl.Int64,
    "component": pl.Int64,
    "kind": pl.String,
    "ablation": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "change": pl.Float64,
    "change_low": pl.Float64,
    "change_high": pl.Float64,
    "p_adjusted": pl.Float64,
    "beyond_random": pl.Float64,
    "beyond_random_low": pl.Float64,
    "beyond_random_high": pl.Float64,
    "draws": pl.Int64,
    "n": pl.Int64,
    "rows": pl.Int64,
}


@dataclass(frozen=True)
class Chosen:
    """Channels that are ablated together: `kinds` says which side of the receiver each goes into."""

    channels: tuple[Channel, ...]
    kinds: tuple[str, ...]

    @property
    def in_words(self) -> str:
        return ", ".join(channel.in_words for channel in self.channels)


def receivers_of(measured: Measured, config: Config) -> list[Head]:
    """The heads beyond layer 0 that attend most as the task asks, on the prompts that choose, or those given."""
    if config.chosen_receivers is not None:
        return config.chosen_receivers
    means = measured.attention.mean(0)  # [layers, H]
    order = np.argsort(-means, axis=None, kind="stable")[: config.receivers_each]
    return [(measured.layers[i // means.shape[1]], int(i % means.shape[1])) for i in order]


def channels_into(table: pl.DataFrame, receiver: Head, config: Config) -> list[Chosen]:
    """The `ablate` strongest components into the queries and keys of a receiver, by the weights alone, one by one; then
    the `together` strongest that stand out as channels at once, where there are two."""
    layer, head = receiver
    mine = (pl.col("target_layer") == layer) & pl.col("kind").is_in(["q", "k"])
    mine &= (pl.col("target_head") <= head) & (head < pl.col("target_head") + pl.col("target_heads"))
    rows = table.filter(mine).iter_rows(named=True)  # the strongest first
    found: dict[Channel, str] = {}
    marked: set[Channel] = set()
    for row in rows:
        channel = Channel(row["source_layer"], row["source_head"], row["component"])
        found.setdefault(channel, row["kind"])
        marked |= {channel} if row["is_channel"] else set()
    pairs = list(found.items())
    chosen = [Chosen((channel,), (kind,)) for channel, kind in pairs[: config.ablate]]
    first = [(channel, kind) for channel, kind in pairs if channel in marked][: config.together]
    if len(first) > 1:
        chosen.append(Chosen(tuple(c for c, _ in first), tuple(k for _, k in first)))
    return chosen


def random_sets(weights: ModelHeads, chosen: Chosen, config: Config, context: Context) -> list[tuple[Channel, ...]]:
    """Other components of the same heads, as many of each head, different in every draw; as many draws as there are.
    Those whose singular value is rounding are none: taking them away changes nothing."""
    rng = context.rng(f"random components {chosen.in_words}")
    own = set(chosen.channels)
    draws: dict[tuple[Channel, ...], None] = {}
    for _ in range(config.random_draws * 20):
        drawn: list[Channel] = []
        for layer, head in dict.fromkeys((c.layer, c.head) for c in chosen.channels):
            size = sum((c.layer, c.head) == (layer, head) for c in chosen.channels)
            values = weights.components[layer].values
            alive = (values[head] > DEAD * values.max()).nonzero()[:, 0].tolist()
            rest = [i for i in alive if Channel(layer, head, i) not in own]
            picked = rng.permutation(len(rest))[:size]
            drawn += [Channel(layer, head, rest[i]) for i in sorted(picked.tolist())]
        if len(drawn) < len(chosen.channels):
            break
        draws.setdefault(tuple(drawn), None)
        if len(draws) == config.random_draws:
            break
    return list(draws)


def ablate(
    model: Model,
    weights: ModelHeads,
    prompts: Sequence[Prompt],
    means_of: Sequence[Prompt],
    receiver: Head,
    sets: Sequence[Chosen],
    config: Config,
    context: Context,
    run: Pass,
) -> pl.DataFrame:
    """The rows of the table `ablation` of one task and receiver. The mean coordinates of the activation edit are of the
    prompts `means_of`, which chose."""
    layers = [receiver[0]]
    plain = measure(model, prompts, layers, context, run)
    rows = _rows(prompts, receiver, None, "none", [plain], plain, None)
    channels = list(dict.fromkeys(channel for one in sets for channel in one.channels))
    about = mean_coordinates(model, weights, channels, means_of, context, run) if channels else {}
    for number, chosen in enumerate(sets):
        context.progress(number, len(sets), "channels")

        def under(edit: Edit) -> Measured:
            return measure(model, prompts, layers, context, run, (edit,))

        controls = [under(removed(weights, drawn)) for drawn in random_sets(weights, chosen, config, context)]
        without = under(removed(weights, chosen.channels))
        held = under(scaled(weights, chosen.channels, 0.0, about))
        rows += _rows(prompts, receiver, chosen, "weight", [without], plain, controls)
        rows += _rows(prompts, receiver, chosen, "activation", [held], plain, controls)
        if controls:
            rows += _rows(prompts, receiver, chosen, "random", controls, plain, None)
    context.progress(len(sets), len(sets), "channels")
    return pl.DataFrame(rows, schema=SCHEMA)


def adjusted(table: pl.DataFrame) -> pl.DataFrame:
    """The table with p adjusted over all changes that were looked at."""
    p = table["p_adjusted"].fill_null(np.nan).to_numpy()
    return table.with_columns(pl.Series("p_adjusted", false_discovery(p)).fill_nan(None))


def _rows(
    prompts: Sequence[Prompt],
    receiver: Head,
    chosen: Chosen | None,
    ablation: str,
    found: Sequence[Measured],
    plain: Measured,
    controls: Sequence[Measured] | None,
) -> list[dict]:
    names = np.array([prompt.group for prompt in prompts])
    single = chosen is not None and len(chosen.channels) == 1
    rows = []
    for metric in METRICS:
        values = np.stack([one.of(metric, receiver) for one in found])  # [draws, prompts]
        before = plain.of(metric, receiver)
        told = ~np.isnan(before)
        if not told.any():
            continue
        clusters = clusters_of(names[told])
        values, before = values[:, told], before[told]
        row = {
            "task": prompts[0].task,
            "target_layer": receiver[0],
            "target_head": receiver[1],
            "channels": None if chosen is None else chosen.in_words,
            "source_layer": chosen.channels[0].layer if single else None,
            "source_head": chosen.channels[0].head if single else None,
            "component": chosen.channels[0].component if single else None,
            "kind": None if chosen is None else ", ".join(dict.fromkeys(chosen.kinds)),
            "ablation": ablation,
            "metric": metric,
            "value": float(values.mean()),
            "draws": len(found),
            "n": clusters.n,
            "rows": clusters.rows,
        }
        if len(found) > 1:
            ends = crossed_interval(values, clusters)
        else:
            ends = (share_interval if metric == "accuracy" else mean_interval)(values[0], clusters)
        ends = within(ends, metric, prompts)
        row |= {"ci_low": number(ends[0]), "ci_high": number(ends[1])}
        if ablation != "none":
            change = values - before
            ends = crossed_interval(change, clusters) if len(found) > 1 else mean_interval(change[0], clusters)
            ends = within(ends, metric, prompts, change=True)
            row |= {
                "change": float(change.mean()),
                "change_low": number(ends[0]),
                "change_high": number(ends[1]),
            }
            if ablation != "random":
                row["p_adjusted"] = number(p_of_zero(change[0], clusters))
        if controls:
            control = np.stack([one.of(metric, receiver) for one in controls])[:, told]
            beyond = values[0] - control
            ends = within(crossed_interval(beyond, clusters), metric, prompts, change=True)
            row |= {
                "beyond_random": float(beyond.mean()),
                "beyond_random_low": number(ends[0]),
                "beyond_random_high": number(ends[1]),
            }
        rows.append(row)
    return rows


def number(value) -> float | None:
    return None if np.isnan(value) else float(value)
