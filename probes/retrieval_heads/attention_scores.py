"""Query-focused retrieval heads: how much the tokens of a question attend to the passage that answers it, with
nothing generated.

Zhang et al., Query-Focused Retrieval Heads Improve Long-Context Reasoning and Re-ranking (arXiv 2506.09944). With
A(q, d) the attention that the tokens of question q pay to the tokens of passage d, summed over d and averaged over q, a
head scores A(q, gold) − A(null, gold), where null is a question without content in the same place. Its control is the
same of the question of another passage: same prompt, same passage, same place, but it is not what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from probes.retrieval_heads.config import Config
from probes.retrieval_heads.haystack import Haystack, bodies, parts, places
from probes.retrieval_heads.passages import ASKED, PassageTask
from workbench.core.context import Context
from workbench.engine.edits import apply
from workbench.engine.kv_cache import Cached, feed
from workbench.models.attention import observe_stacked, of_layers
from workbench.models.batching import halving, sent
from workbench.models.model import Model
from workbench.models.running_pass import positions


@dataclass(frozen=True, eq=False)
class AttentionScores:
    """`mass` [tasks, 3, layers, H] float64: attention on the gold passage from its own question, from that of another
    passage and from the null question."""

    mass: np.ndarray

    @property
    def gold(self) -> np.ndarray:
        """The score in every task, [tasks, layers, H]."""
        return self.mass[:, 0] - self.mass[:, 2]

    @property
    def control(self) -> np.ndarray:
        """The score where another passage is asked for, [tasks, layers, H]."""
        return self.mass[:, 1] - self.mass[:, 2]


def measure_attention(
    model: Model, config: Config, context: Context, tasks: Sequence[PassageTask], haystack: Haystack
) -> AttentionScores:
    """The attention of all tasks, part by part; each context is read once for its three questions."""
    context.count(tokens=len(haystack.tokens), forwards=bool(haystack.tokens))
    mass = np.empty((len(tasks), len(ASKED), model.n_layers, model.n_heads))
    done = 0
    for number, rows in enumerate(parts(model, [task.trial for task in tasks], config.max_tokens)):
        context.progress(done, len(tasks), "questions and passages")
        part = context.part(
            f"attention-{number}",
            lambda rows=rows: {"mass": _measure_part(model, config, context, [tasks[i] for i in rows], haystack)},
        )
        mass[rows] = part["mass"]
        done += len(rows)
    context.progress(done, len(tasks), "questions and passages")
    return AttentionScores(mass)


def _measure_part(
    model: Model, config: Config, context: Context, tasks: Sequence[PassageTask], haystack: Haystack
) -> np.ndarray:
    found = halving(list(tasks), lambda some: _masses(model, config, context, some, haystack))
    return np.concatenate([mass for _, mass in found])


def _masses(
    model: Model, config: Config, context: Context, tasks: Sequence[PassageTask], haystack: Haystack
) -> np.ndarray:
    """[tasks, 3, layers, H] float32."""
    mass = np.empty((len(tasks), len(ASKED), model.n_layers, model.n_heads), np.float32)
    trials = [task.trial for task in tasks]
    with apply(model, context.edits):
        for place in places(model, trials, config.max_tokens):
            for group, past, ends in bodies(haystack, [trials[i] for i in place]):
                rows = [place[k] for k in group]
                for kind in range(len(ASKED)):
                    context.check()
                    context.count(forwards=1)
                    mass[rows, kind] = _read(model, [tasks[i] for i in rows], past, ends, kind)
    read = sum(task.trial.body - task.trial.shared + sum(len(tail.ids) for tail in task.tails) for task in tasks)
    context.count(prompts=len(ASKED) * len(tasks), tokens=read)
    return mass


def _read(
    model: Model, tasks: Sequence[PassageTask], past: Cached | None, ends: Sequence[int], kind: int
) -> np.ndarray:
    """Attention of one question of every task on its passage, [tasks, layers, H]; `ends`: how many tokens of each are
    in `past`, which stays as it is. Where attention slides over columns, rows of different lengths go one by one."""
    together = [[k] for k in range(len(tasks))] if model.sliding else [list(range(len(tasks)))]
    found = []
    for some in together:
        own = [tasks[k] for k in some]
        rows = [[*t.trial.ids[ends[k] : t.trial.body], *t.tails[kind].ids] for k, t in zip(some, own)]
        before = None
        if past is not None:
            before = past.first(past.past.mask.shape[1], some) if model.sliding else past.fork()
        asked = [range(t.trial.body + t.tails[kind].start, t.trial.body + t.tails[kind].end) for t in own]
        width = max(map(len, asked))
        wanted = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in asked])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in asked])
        spans, real = sent([torch.tensor([t.gold for t in own]), real], model.device)
        with observe_stacked(model, _mass_on(spans, real.float()), rows=wanted) as seen:
            feed(model, rows, before)
        found.append(of_layers(seen, 1).cpu().numpy())
    return np.concatenate(found)


def _mass_on(spans: torch.Tensor, real: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Reduction of attention rows [n, B, H, R, S] to [n, B, H]: the weight on token positions [start, end) of each
    sequence, `spans` [B, 2], mean over its `real` rows [B, R] (1 or 0)."""

    def inside(size: int, device: torch.device) -> torch.Tensor:
        keys, bounds = positions().columns_of_keys(size).to(device), spans.to(device)
        return ((keys >= bounds[:, :1]) & (keys < bounds[:, 1:])).float()  # [B, S]

    def reduce(weights: torch.Tensor) -> torch.Tensor:
        size, device = weights.shape[-1], weights.device
        within = positions().once((id(spans), size, device), lambda: inside(size, device))
        mass, rows = torch.einsum("nbhrs,bs->nbhr", weights, within), real.to(device)
        return (mass * rows[:, None]).sum(-1) / rows.sum(-1)[:, None]

    return reduce


def attention_inputs(tasks: Sequence[PassageTask]) -> pl.DataFrame:
    """What was fed beside the prompts of the table `inputs`, one row per task and question: a prompt is the first
    `context_tokens` of its `ids` there, and then `tail_ids`."""
    rows = [
        (k, kind, task.group, task.trial.body, list(tail.ids), *task.gold)
        + (task.trial.body + tail.start, task.trial.body + tail.end)
        for k, task in enumerate(tasks)
        for kind, tail in zip(ASKED, task.tails)
    ]
    schema = {
        "row": pl.Int64,
        "asked": pl.String,
        "group": pl.Int64,
        "context_tokens": pl.Int64,
        "tail_ids": pl.List(pl.Int64),
        "passage_start": pl.Int64,
        "passage_end": pl.Int64,
        "question_start": pl.Int64,
        "question_end": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
