"""At which layers each stage of an answer shows: shares of questions layer by layer, and the first layer of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.hopping.config import CUT_TO, POSITIONS
from probes.hopping.descriptions import NAMED, DescribedStates
from probes.hopping.labels import QuestionSet
from probes.hopping.projections import READ, WRITERS
from workbench.stats.clusters import cluster_mean, cluster_share, clusters_of, share_interval

# Stage -> what it is, in the order of an answer; those that the paper names are made of these (PAPER).
STAGES = {
    "bridge_described_t1": "a description of the state at the end of the first hop names the bridge",
    "knockout": "the answer changes where the end of the first hop cannot be attended to",
    "knockout_r1": "the same for the last word of the first relation",
    "knockout_r2": "the same for the last word of the second relation",
    "attention_bridge": "what attention adds at the last token is read as the bridge",
    "bridge_described_t2": "a description of the state at the last token names the bridge",
    "mlp_bridge": "what the MLP adds at the last token is read as the bridge",
    "answer_described_t1": "a description of the state at the end of the first hop names the answer",
    "answer_described_t2": "a description of the state at the last token names the answer",
    "attention_answer": "what attention adds at the last token is read as the answer",
    "mlp_answer": "what the MLP adds at the last token is read as the answer",
    "mlp_prediction": "what the MLP adds at the last token is read as the token that the model says",
}
PAPER = {
    "first_hop": ("bridge_described_t1",),
    "propagation": ("knockout", "attention_bridge", "bridge_described_t2"),
    "second_hop": ("answer_described_t2",),
    "extraction": ("mlp_prediction",),
}
LAYERS = {
    "split": pl.String,
    "stage": pl.String,
    "layer": pl.Int64,
    "rate": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "null": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
}
FIRST = {"row": pl.Int64, "split": pl.String, "stage": pl.String, "layer": pl.Float64}
STAGE_MEANS = {
    "split": pl.String,
    "stage": pl.String,
    "reached": pl.Float64,
    "reached_low": pl.Float64,
    "reached_high": pl.Float64,
    "reached_null": pl.Float64,
    "layer": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "n": pl.Int64,
    "rows": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class StageEvents:
    """One stage of the questions of a set: `found` [n, L] int8 (−1: not measured), `null` [n, draws, L] of the control
    (−1: none)."""

    found: np.ndarray
    null: np.ndarray


def events(
    described: DescribedStates | None, projected: tuple[np.ndarray, np.ndarray] | None, cut: np.ndarray | None
) -> dict[str, StageEvents]:
    """Stage -> its events, of what was measured, in the order of STAGES."""
    found: dict[str, StageEvents] = {}
    if described is not None:
        for n, named in enumerate(NAMED):
            for p, position in enumerate(POSITIONS):
                stage = f"{named}_described_{position}"
                found[stage] = StageEvents(described.found[:, n, p], described.null[:, :, n, p])
    if projected is not None:
        for w, writer in enumerate(WRITERS):
            for r, read in enumerate(READ):
                stage = f"{writer.removesuffix('_out').replace('attn', 'attention')}_{read}"
                found[stage] = StageEvents(projected[0][:, w, r], projected[1][:, :, w, r])
    if cut is not None:
        for k, target in enumerate(CUT_TO):
            found["knockout" if target == "t1" else f"knockout_{target}"] = StageEvents(cut[:, k], cut[:, -1:])
    return {stage: found[stage] for stage in STAGES if stage in found}


def layer_table(chosen: Sequence[QuestionSet], found: Sequence[Mapping[str, StageEvents]]) -> pl.DataFrame:
    """The share of questions at every layer of every stage, over bridges, and that of the control."""
    rows = []
    for own, stages in zip(chosen, found):
        for stage, event in stages.items():
            there = (event.found >= 0).all(-1) if len(own) else np.zeros(0, bool)
            if not there.any():
                continue
            clusters = clusters_of(own.names[there])
            hit = event.found[there].astype(np.float64)
            low, high = share_interval(hit, clusters)
            null = _null_rate(event.null[there])
            for layer in range(hit.shape[1]):
                rate = float(hit[:, layer].mean())
                ends = (float(low[layer]), float(high[layer]), float(null[layer]))
                rows.append((own.split, stage, layer, rate, *ends, clusters.n, clusters.rows))
    return pl.DataFrame(rows, schema=LAYERS, orient="row").with_columns(pl.selectors.float().fill_nan(None))


def _null_rate(null: np.ndarray) -> np.ndarray:
    """Share [L] of the control [n, draws, L], of those that were measured; NaN where none was."""
    kept = null.reshape(-1, null.shape[-1])
    kept = kept[(kept >= 0).all(-1)]
    return kept.mean(0) if len(kept) else np.full(null.shape[-1], np.nan)


def first_layers(chosen: Sequence[QuestionSet], found: Sequence[Mapping[str, StageEvents]]) -> pl.DataFrame:
    """A row for every question and stage: the first layer at which it shows, null where it never does; the stages of
    the paper too, the mean of what they are made of."""
    rows = []
    for own, stages in zip(chosen, found):
        single = {stage: _first(event.found) for stage, event in stages.items()}
        for stage, parts in PAPER.items():
            there = [single[part] for part in parts if part in single]
            if there:
                single[stage] = _mean(np.stack(there))
        for stage, first in single.items():
            measured = _measured(stage, stages)
            rows += [
                (one.question.row, own.split, stage, float(layer))
                for one, layer, known in zip(own.asked, first, measured)
                if known
            ]
    return pl.DataFrame(rows, schema=FIRST, orient="row").with_columns(pl.col("layer").fill_nan(None))


def _measured(stage: str, stages: Mapping[str, StageEvents]) -> np.ndarray:
    """Of which questions [n] a stage was measured."""
    parts = [stages[part] for part in PAPER.get(stage, (stage,)) if part in stages]
    return np.stack([(part.found >= 0).all(-1) for part in parts]).any(0)


def _first(found: np.ndarray) -> np.ndarray:
    """The first layer [n] with an event [n, L]; NaN where there is none."""
    return np.where((found > 0).any(-1), (found > 0).argmax(-1).astype(np.float64), np.nan)


def _mean(parts: np.ndarray) -> np.ndarray:
    """The mean [n] of [k, n] of what is there; NaN where nothing is."""
    there = ~np.isnan(parts)
    total = np.where(there, parts, 0).sum(0)
    return np.divide(total, there.sum(0), out=np.full(parts.shape[1], np.nan), where=there.any(0))


def stage_table(
    chosen: Sequence[QuestionSet], found: Sequence[Mapping[str, StageEvents]], first: pl.DataFrame
) -> pl.DataFrame:
    """Of every set and stage the share of questions that reach it at any layer, beside that of the control, and the
    mean first layer of those that do."""
    rows = []
    for own, stages in zip(chosen, found):
        names = {one.question.row: name for one, name in zip(own.asked, own.names)}
        for (stage,), part in first.filter(pl.col("split") == own.split).group_by("stage", maintain_order=True):
            bridge = np.array([names[row] for row in part["row"]])
            layer = part["layer"].cast(pl.Float64).fill_null(math.nan).to_numpy()
            there = ~np.isnan(layer)
            reached = cluster_share(there, bridge)
            mean = (math.nan,) * 3
            if there.any():
                said = cluster_mean(layer[there], bridge[there])
                mean = (said.value, said.low, said.high)
            null = _null_reached(stages[stage].null) if stage in stages else math.nan
            rows.append(
                (own.split, stage, reached.value, reached.low, reached.high, null, *mean, reached.n, reached.rows)
            )
    return pl.DataFrame(rows, schema=STAGE_MEANS, orient="row").with_columns(pl.selectors.float().fill_nan(None))


def _null_reached(null: np.ndarray) -> float:
    """How often the control [n, draws, L] has an event at any layer."""
    there = (null >= 0).all(-1)
    return float((null > 0).any(-1)[there].mean()) if there.any() else math.nan
