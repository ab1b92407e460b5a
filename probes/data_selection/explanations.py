"""Why samples were selected: where the features of a target fire, what they do to the logits, and which of them set the
best samples apart from the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch

from probes.data_selection.contributions import Lifts, shared_with
from probes.data_selection.prototypes import Prototypes
from probes.data_selection.sample_vectors import Reader
from probes.data_selection.samples import TokenizedSamples
from workbench.engine.passes import Pass
from workbench.sae import features

PASSAGES = {
    "feature": pl.Int64,
    "place": pl.Int64,
    "row": pl.Int64,
    "start": pl.Int64,
    "peak": pl.Int64,
    "tokens": pl.List(pl.String),
    "activations": pl.List(pl.Float64),
    "activation": pl.Float64,
}
EFFECTS = {
    "feature": pl.Int64,
    "promotes": pl.List(pl.String),
    "promoted_by": pl.List(pl.Float64),
    "suppresses": pl.List(pl.String),
    "suppressed_by": pl.List(pl.Float64),
}
SHARED = {
    "target": pl.String,
    "row": pl.Int64,
    "feature": pl.Int64,
    "in_sample": pl.Float64,
    "in_target": pl.Float64,
    "both": pl.Float64,
    "contribution": pl.Float64,
    "lift": pl.Float64,
    "distinctive": pl.Boolean,
}
MOST_SHARED = 5  # features of a sample


def explain(
    reader: Reader,
    pool: TokenizedSamples,
    prototypes: Prototypes,
    best: Sequence[np.ndarray],
    wanted: Sequence[int],
    statistics: Mapping[str, np.ndarray],
    lifted: Sequence[Lifts],
) -> dict[str, pl.DataFrame]:
    """Top passages and logit effects of the wanted features; what the `best` samples of each target share with it more
    than the pool does. The strongest samples in `statistics` are of these features, in their order."""
    if reader.sae is None:
        schemas = {"passages": PASSAGES, "effects": EFFECTS, "shared": SHARED}
        return {name: pl.DataFrame(schema=schema) for name, schema in schemas.items()}

    def compute() -> dict[str, pl.DataFrame]:
        strongest = bool(wanted and reader.config.passages)
        passages = _passages(reader, pool, wanted, statistics) if strongest else []
        shared = _shared(reader, pool, prototypes, best, statistics, lifted)
        return {
            "passages": pl.DataFrame(passages, schema=PASSAGES),
            "shared": pl.DataFrame(shared, schema=SHARED, orient="row"),
        }

    found = reader.context.part("explanations", compute)
    return found | {"effects": features.logit_effect(reader.model, reader.sae, wanted)}


def _passages(
    reader: Reader, pool: TokenizedSamples, wanted: Sequence[int], statistics: Mapping[str, np.ndarray]
) -> list[dict]:
    """Rows of `passages`: where each feature fires most; features that are silent in the pool have none."""
    value, row = statistics["top value"], statistics["top row"]
    rows = sorted({int(r) for r, v in zip(row.ravel(), value.ravel()) if v > 0})
    if not rows:
        return []
    how = Pass(edits=reader.context.edits, check=reader.context.check)
    activations = features.token_activations(reader.model, reader.sae, pool.lists(rows), wanted, run=how)
    of_row = dict(zip(rows, activations))
    found: list[dict] = []
    for f, feature in enumerate(wanted):
        for place, (r, v) in enumerate(zip(row[f], value[f]), 1):
            if v > 0:
                own = of_row[r][:, f]
                passage = features.passage(reader.model, pool.ids[r].tolist(), own, counted=pool.masks[r])
                found.append({"feature": feature, "place": place, "row": int(r)} | passage)
    return found


def _shared(
    reader: Reader,
    pool: TokenizedSamples,
    prototypes: Prototypes,
    best: Sequence[np.ndarray],
    statistics: Mapping[str, np.ndarray],
    lifted: Sequence[Lifts],
) -> list[tuple]:
    """Rows of `shared`, target by target, best sample first: of each, the features whose part of its similarity exceeds
    their mean part in the pool: those that are the target's own first, then the largest difference. The differences of
    all features add up to its similarity minus the pool's mean."""
    rows = sorted({int(row) for some in best for row in some})
    common: dict[tuple[int, int], list] = {}
    for batch in reader.read(pool.lists(rows), [pool.masks[row] for row in rows]) if rows else ():
        for t, some in enumerate(best) if batch.indices else ():
            found, center = batch.vectors["sae"], prototypes.center(t)
            both, most = shared_with(found, center)
            usual = torch.as_tensor(statistics["parts"][t] / statistics["tokens"][2], device=both.device)
            more = both / most[found.row] - usual[found.feature]
            for i, index in enumerate(batch.indices):
                if rows[index] not in some:
                    continue
                own = torch.nonzero(found.row == i)[:, 0]
                some_features = found.feature[own].cpu().numpy()
                first = lifted[t].first(some_features, more[own].cpu().numpy())[:MOST_SHARED]
                common[t, rows[index]] = [
                    (
                        int(found.feature[e]),
                        float(found.value[e]),
                        float(center[found.feature[e]]),
                        float(both[e]),
                        float(more[e]),
                        float(lifted[t].lift[int(found.feature[e])]),
                        bool(lifted[t].distinctive[int(found.feature[e])]),
                    )
                    for e in own[torch.as_tensor(first, device=own.device)]
                ]
    return [
        (name, int(row), *entry)
        for t, name in enumerate(prototypes.names)
        for row in best[t]
        for entry in common[t, row]
    ]
