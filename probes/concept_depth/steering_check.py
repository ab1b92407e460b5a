"""Steering: the probe's direction added to the site that it reads, and taken away, and what that does to the model's
answer, against random directions of the same length at the same positions.

The strength is in standard deviations: what is added is α σ u, u the direction of length 1 and σ the standard deviation
of the projection of the features on u, in that layer, over the rows that the probe was fitted on. The effect of a
direction on a text is the log-odds of the answer of class 1 against that of class 0 at +α minus the same at −α. A
direction towards class 1 that is used makes it positive.

A random direction has no sign of its own, so its effect is about 0 and says nothing of how far random directions move
answers; each is turned the way that its effect is positive on these texts before it is compared (which favours it).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from probes.concept_depth.causal import AnswerReader, adjust, p_of_one_more
from probes.concept_depth.config import Config
from probes.concept_depth.linear_probe import LinearProbes
from workbench.core.context import Context
from workbench.engine.steering import Steer
from workbench.models.model import Model
from workbench.models.sites import Site
from workbench.stats.clusters import Clusters, cluster_mean, crossed_interval, crossed_p_above

STEERING = {
    "dataset": pl.String,
    "condition": pl.String,
    "layer": pl.Int64,
    "strength": pl.Float64,
    "direction": pl.String,
    "draw": pl.Int64,
    **dict.fromkeys(("deviation", "log_odds", "log_odds_low", "log_odds_high", "up", "down"), pl.Float64),
    **dict.fromkeys(("probability", "probability_low", "probability_high"), pl.Float64),
    **dict.fromkeys(("of_random", "excess", "excess_low", "excess_high", "p", "p_adjusted"), pl.Float64),
    "n": pl.Int64,
    "rows": pl.Int64,
}


def steering_check(
    model: Model,
    name: str,
    asked: AnswerReader,
    features: Sequence[torch.Tensor],
    probes: LinearProbes,
    layers: Sequence[int],
    config: Config,
    context: Context,
) -> list[dict]:
    """What adding ±α σ of a direction to the probed site of each of `layers` does to the model's answers, for every α
    of `config.steer`: rows with the columns of STEERING but the first two, for the probe's direction and for each
    random one. features [L][n, d] are of all rows of the set, which is called `name`.

    `log_odds`: the mean effect, `up` and `down` its two parts, from the unedited model; `probability`: the same of the
    probability of the answer of class 1 among the two. In the probe's rows: `of_random`, the mean effect of random
    directions, each turned to be positive, and `excess` over it, with an interval over texts and directions; `p`: of
    the direction being one more random one, or of there being no excess, whichever is larger; adjusted over the layers
    and strengths (Benjamini and Hochberg)."""
    rows: list[dict] = []
    if not config.steer:
        return rows
    base, fitted = asked.answers(), np.setdiff1d(np.arange(len(features[0])), asked.test)
    generator = context.rng(f"steering {name}")
    for layer in layers:
        probe = probes.coef[layer]
        if float(probe.norm()) == 0:
            continue
        unit = probe / probe.norm()
        deviation = float((features[layer][fitted].double().cpu() @ unit).std(correction=0))
        drawn = torch.from_numpy(generator.standard_normal((config.random_draws, model.width)))
        directions = [("probe", 0, unit)]
        directions += [("random", draw, own / own.norm()) for draw, own in enumerate(drawn)]
        for strength in config.steer:
            effects: list[np.ndarray] = []
            for direction, draw, vector in directions:
                up, down = (
                    asked.answers(Steer(Site(config.site, layer), deviation * vector, sign * strength, asked.positions))
                    for sign in (1, -1)
                )
                effects.append(up - down)
                where = {"layer": layer, "strength": strength, "direction": direction, "draw": draw}
                rows.append(where | {"deviation": deviation} | _effect(up, down, base, asked.clusters))
            rows[-len(directions)] |= beside_random(effects[0], np.stack(effects[1:]), asked.clusters)
    adjust(rows)
    return rows


def _effect(up: np.ndarray, down: np.ndarray, base: np.ndarray, clusters: Clusters) -> dict:
    """Of the log-odds [n] of answers steered up, steered down and not at all."""
    odds = cluster_mean(up - down, clusters.index)
    chance = cluster_mean(1 / (1 + np.exp(-up)) - 1 / (1 + np.exp(-down)), clusters.index)
    return {
        "log_odds": odds.value,
        "log_odds_low": odds.low,
        "log_odds_high": odds.high,
        "up": float((up - base).mean()),
        "down": float((down - base).mean()),
        "probability": chance.value,
        "probability_low": chance.low,
        "probability_high": chance.high,
        "n": clusters.n,
        "rows": clusters.rows,
    }


def beside_random(effect: np.ndarray, random: np.ndarray, clusters: Clusters) -> dict:
    """The effect [n] of the probe's direction beside those of random ones [draws, n], each turned to be positive."""
    means = random.mean(1)
    turned = np.where(means < 0, -1.0, 1.0)[:, None] * random
    low, high = crossed_interval(effect - turned, clusters)
    return {
        "of_random": float(turned.mean()),
        "excess": float((effect - turned).mean()),
        "excess_low": low,
        "excess_high": high,
        "p": max(p_of_one_more(float(effect.mean()), means, about=0.0), crossed_p_above(effect - turned, clusters)),
    }
