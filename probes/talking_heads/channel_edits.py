"""Channels as edits of the sending head: removed from its weights, held at their mean, scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from probes.talking_heads.scan import ModelHeads
from probes.talking_heads.tasks import Prompt
from workbench.core.context import Context
from workbench.engine.component_scale import ComponentScale
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


def scaled(weights: ModelHeads, channel: Channel, scale: float, about: float) -> ComponentScale:
    """The coordinate of a channel brought to about + scale · (it − about)."""
    own = weights.components[channel.layer]
    read, put = (side[channel.head, channel.component].float() for side in (own.reads, own.puts))
    return ComponentScale((channel.layer, channel.head), read, put, scale, about)


def removed(weights: ModelHeads, channel: Channel) -> ComponentScale:
    """The weight edit W_OV − s u vᵀ: what the coordinate is where the stream is zero stays."""
    return scaled(weights, channel, 0.0, at_rest(weights, channel))


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
