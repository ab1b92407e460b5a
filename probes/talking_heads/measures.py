"""What a receiver looks at from the last token of each prompt, and what the model says next, under edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from probes.talking_heads.tasks import Prompt
from workbench.core.context import Context
from workbench.engine.edits import Edit
from workbench.engine.hf import stream
from workbench.engine.passes import Pass
from workbench.models.attention import observe, of_layers
from workbench.models.model import Model
from workbench.models.recording import read_out_site, scores_of

METRICS = ("attention", "logit_difference", "accuracy")


@dataclass(frozen=True, eq=False)
class Measured:
    """`attention` [prompts, layers, H]: mass on the target less the mean mass on each of the others;
    `logit_difference` [prompts]: the answer's score less the mean of the wrong ones'; `accuracy` [prompts]: 1 where the
    answer has the highest score of all of them. NaN where a prompt cannot tell."""

    attention: np.ndarray
    logit_difference: np.ndarray
    accuracy: np.ndarray
    layers: tuple[int, ...]

    def of(self, metric: str, receiver: tuple[int, int]) -> np.ndarray:
        """A metric [prompts], of a receiver (layer, head) where it is attention."""
        if metric == "attention":
            return self.attention[:, self.layers.index(receiver[0]), receiver[1]]
        return getattr(self, metric)


def within(ends, metric: str, prompts: Sequence[Prompt], *, change: bool = False) -> tuple[float, float]:
    """The ends of an interval of a metric, or of a change of it, no further than the metric can be: attention is a mass
    less that on others, where there are others; accuracy a share."""
    low, high = (-1.0 if metric == "attention" and any(p.others for p in prompts) else 0.0), 1.0
    if metric == "logit_difference":
        low, high = -np.inf, np.inf
    if change:
        low, high = low - high, high - low
    return float(np.clip(ends[0], low, high)), float(np.clip(ends[1], low, high))


@torch.no_grad()
def measure(
    model: Model,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    context: Context,
    run: Pass,
    edits: Sequence[Edit] = (),
) -> Measured:
    """The three measures of every prompt, with the attention of these layers, under edits. Attention and scores are in
    float32, whatever the dtype of the weights."""
    n = len(prompts)
    attention = np.zeros((n, len(layers), model.n_heads))
    difference, right = np.full(n, np.nan), np.full(n, np.nan)
    site = read_out_site(model)
    run = replace(run, edits=(*run.edits, *edits))
    with observe(model, lambda _layer, weights: weights[:, :, 0], layers=list(layers)) as seen:
        for rows, states, batch in stream(model, [list(p.ids) for p in prompts], [site], run=run):
            if not run.edits or not edits:
                context.count(prompts=len(rows))
            context.count(tokens=batch.tokens, forwards=1)
            mass = of_layers(seen).cpu().double().numpy()  # [layers, B, H, S]
            scores = scores_of(model, site, states[site]).reshape(len(rows), -1)
            wanted = [[prompts[i].answer, *prompts[i].wrong] for i in rows]
            picked = [
                scores[k, torch.tensor(ids, device=scores.device)].double().cpu().numpy()
                for k, ids in enumerate(wanted)
            ]
            for k, i in enumerate(rows):
                prompt = prompts[i]
                on_target = mass[:, k, :, list(prompt.target)].sum(0)
                on_others = [mass[:, k, :, list(other)].sum(0) for other in prompt.others]
                attention[i] = on_target - (np.mean(on_others, axis=0) if on_others else 0.0)
                if prompt.told_apart:
                    difference[i] = picked[k][0] - picked[k][1:].mean()
                    right[i] = float(picked[k][0] > picked[k][1:].max())
    return Measured(attention, difference, right, tuple(layers))
