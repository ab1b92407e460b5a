"""Channels as edits of the sending heads: removed from their weights, held at their mean, scaled; and as files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from probes.talking_heads.scan import ModelHeads
from probes.talking_heads.tasks import Prompt
from workbench.core.context import Context
from workbench.core.files import atomic
from workbench.engine.component_scale import ComponentScale
from workbench.engine.head_masks import save_components
from workbench.engine.hf import stream
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.models.sites import Site


class Channel(NamedTuple):
    """A component of a head: (layer, head, number from 0)."""

    layer: int
    head: int
    component: int

    @property
    def in_words(self) -> str:
        return f"{self.layer}.{self.head}/{self.component}"


def scaled(
    weights: ModelHeads, channels: Sequence[Channel], scale: float, about: Mapping[Channel, float] | None = None
) -> ComponentScale:
    """The coordinates of channels brought to about + scale · (they − about); about what they are at rest where it is
    not given."""
    sides = [
        torch.stack([getattr(weights.components[c.layer], name)[c.head, c.component].float() for c in channels])
        for name in ("reads", "puts")
    ]
    places = tuple(at_rest(weights, c) if about is None else about[c] for c in channels)
    return ComponentScale(tuple((c.layer, c.head) for c in channels), sides[0], sides[1], scale, places)


def removed(weights: ModelHeads, channels: Sequence[Channel]) -> ComponentScale:
    """The weight edit W_OV − Σ s u vᵀ: what the coordinates are where the stream is zero stays."""
    return scaled(weights, channels, 0.0)


def at_rest(weights: ModelHeads, channel: Channel) -> float:
    """What the coordinate is by biases alone, whatever the head attends to."""
    bias = weights.heads[channel.layer].value_bias[channel.head // weights.group].double()
    return float(bias @ weights.components[channel.layer].reads[channel.head, channel.component])


@torch.no_grad()
def mean_coordinates(
    model: Model,
    weights: ModelHeads,
    channels: Sequence[Channel],
    prompts: Sequence[Prompt],
    context: Context,
    run: Pass,
) -> Mapping[Channel, float]:
    """The mean coordinate of each channel over all tokens of the prompts, each prompt counted once."""
    sites = {layer: Site("head_out", layer) for layer in sorted({channel.layer for channel in channels})}
    total = dict.fromkeys(channels, 0.0)
    for _, states, batch in stream(
        model, [list(p.ids) for p in prompts], list(sites.values()), positions="mean", dtype=torch.float32, run=run
    ):
        context.count(tokens=batch.tokens, forwards=1)
        for channel in channels:
            z = states[sites[channel.layer]][:, channel.head].double().cpu()
            total[channel] += float(
                (z @ weights.components[channel.layer].reads[channel.head, channel.component]).sum()
            )
    return {channel: one / len(prompts) for channel, one in total.items()}


def save_channels(model: Model, context: Context, task: str, edit: ComponentScale, note: str) -> None:
    """Write the cut of channels into the run folder, for `--edit`."""
    if context.out is None:
        return
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", task)[:40]
    with atomic(context.out / f"channels_{name}.json") as temporary:
        save_components(temporary, edit, note=note, model=model)
