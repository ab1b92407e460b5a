"""The strongest channels of a receiver, scaled together: how well the task is done at each scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from probes.talking_heads.ablation import Chosen, Head, number
from probes.talking_heads.channel_edits import scaled
from probes.talking_heads.config import Config
from probes.talking_heads.measures import METRICS, Measured, measure, within
from probes.talking_heads.scan import ModelHeads
from probes.talking_heads.tasks import Prompt
from workbench.core.context import Context
from workbench.engine.passes import Pass
from workbench.models.model import Model
from workbench.stats.clusters import clusters_of, mean_interval, share_interval

SCHEMA = {
    "task": pl.String,
    "target_layer": pl.Int64,
    "target_head": pl.Int64,
    "channels": pl.String,
    "scale": pl.Float64,
    "size": pl.Int64,
    "split": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
}


def sweep(
    model: Model,
    weights: ModelHeads,
    prompts: Sequence[Prompt],
    chooses: Sequence[bool],
    receiver: Head,
    chosen: Chosen,
    config: Config,
    context: Context,
    run: Pass,
) -> dict:
    """The table `sweep` of a task and its receiver (`size` null: all sizes together), and as `gain` what the scale that
    does best on the prompts that choose gains on the others: scale, gain, its interval, clusters and prompts."""
    scales = sorted({*config.scales, 1.0})
    half = np.array(["choosing" if c else "measured" for c in chooses])
    size = np.array([p.size for p in prompts])
    names = np.array([p.group for p in prompts])
    found: dict[float, Measured] = {}
    rows = []
    for done, scale in enumerate(scales):
        context.progress(done, len(scales), "scales")
        edits = [scaled(weights, chosen.channels, scale)]
        found[scale] = measure(model, prompts, [receiver[0]], context, run, edits if scale != 1 else ())
        for split in ("choosing", "measured"):
            for each in (None, *sorted(set(size.tolist()))):
                own = (half == split) & (True if each is None else size == each)
                for metric in METRICS:
                    values = found[scale].of(metric, receiver)
                    told = own & ~np.isnan(values)
                    if not told.any():
                        continue
                    clusters = clusters_of(names[told])
                    ends = (share_interval if metric == "accuracy" else mean_interval)(values[told], clusters)
                    ends = within(ends, metric, prompts)
                    rows.append(
                        {
                            "task": prompts[0].task,
                            "target_layer": receiver[0],
                            "target_head": receiver[1],
                            "channels": chosen.in_words,
                            "scale": scale,
                            "size": each,
                            "split": split,
                            "metric": metric,
                            "value": float(values[told].mean()),
                            "ci_low": number(ends[0]),
                            "ci_high": number(ends[1]),
                            "n": clusters.n,
                            "rows": clusters.rows,
                        }
                    )
    context.progress(len(scales), len(scales), "scales")
    return {"sweep": pl.DataFrame(rows, schema=SCHEMA), "gain": _gain(found, half, names)}


def _gain(found: dict[float, Measured], half: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Accuracy at the scale that is best on the prompts that choose, less that of the plain model, on the others; empty
    where no prompt can tell."""
    plain = found[1.0].accuracy
    choosing, measured = (half == "choosing") & ~np.isnan(plain), (half == "measured") & ~np.isnan(plain)
    if not choosing.any() or not measured.any():
        return np.empty(0)
    best = max(found, key=lambda scale: (found[scale].accuracy[choosing].mean(), -abs(scale - 1)))
    change = found[best].accuracy[measured] - plain[measured]
    clusters = clusters_of(names[measured])
    low, high = within(mean_interval(change, clusters), "accuracy", (), change=True)
    return np.array([best, change.mean(), low, high, clusters.n, clusters.rows])
