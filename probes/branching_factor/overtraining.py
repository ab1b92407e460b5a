"""The study hyperfitted: the signature of over-training, almost no entropy on a model's own text, yet given text
surprises it far more than it expects."""

from __future__ import annotations

import numpy as np

from probes.branching_factor.branching_samples import Condition, frame
from probes.branching_factor.conditions import Lab, MeasuredCondition, Studied
from probes.branching_factor.per_byte import byte_counts, bytes_of
from workbench.core.errors import InputError
from workbench.engine.generate import greedy
from workbench.engine.passes import Pass
from workbench.engine.sampling import FIELDS
from workbench.engine.scoring import score
from workbench.models.model import Model
from workbench.stats.clusters import cluster_mean


def hyperfitted(lab: Lab) -> Studied:
    """Entropy on the model's own text against its surprise at given text, the prompts."""
    found, rows = [], []
    for model in lab.models:
        name = lab.label(model)
        found.append(lab.measure(lab.condition(name, model)))
        condition = found[-1].condition
        part = lab.context.part(f"signature/{name}", lambda m=model, c=condition: _read_given(lab, m, c))
        rows.append(_signature(found[-1], part))
    names = [f.condition.name for f in found]
    table = frame({key: [row[key] for row in rows] for key in rows[0]})
    return found, [tuple(names)] if len(names) > 1 else [], {"signature": table}


def _read_given(lab: Lab, model: Model, condition: Condition) -> dict[str, np.ndarray]:
    """The statistics of the prompts read as text (`given` [tokens, F], `text` which prompt), the bytes of each text
    that were read (`bytes`), and the share of different tokens in greedy outputs (`types`)."""
    run = Pass(check=lab.context.check)
    texts, names = [], []
    for name, text in zip(lab.clusters, lab.table["prompt"]):
        ids = model.encode(text)
        if len(ids) > 1:
            texts.append(ids)
            names.append(name)
    if not texts:
        raise InputError("study=hyperfitted scores the prompts as text; none of them has two tokens.")
    steps = score(model, [ids[:1] for ids in texts], [ids[1:] for ids in texts], run=run)
    best = greedy(model, condition.ids, max_new_tokens=lab.config.max_new_tokens, run=run, max_rows=lab.config.max_rows)
    return {
        "given": np.concatenate([s.numpy() for s in steps]),
        "text": np.repeat(np.arange(len(texts)), [len(ids) - 1 for ids in texts]),
        "cluster": np.array(names),
        "bytes": np.array([bytes_of(model, ids[1:], model.decode(ids[1:])) for ids in texts]),
        "types": np.array([len(set(ids)) / len(ids) for ids in best]),
    }


def _signature(found: MeasuredCondition, part: dict[str, np.ndarray]) -> dict:
    """A row of `signature`; intervals are t over prompts (texts). Beside each mean per token stands that per byte."""
    entropy, logprob, top1 = (
        part["given"][:, FIELDS.index(key)].astype(np.float64) for key in ("entropy_full", "logprob_full", "top1")
    )
    alive = found.ids >= 0
    prompt, own_entropy = np.nonzero(alive)[0], found.statistic("entropy_full")[alive]
    own_top1 = found.statistic("top1")[alive]
    own = (prompt, np.array(found.condition.cluster), byte_counts(found).sum(1))
    given = (part["text"], part["cluster"], part["bytes"])
    means = {}
    for key, values, (text, cluster, size) in (
        ("entropy_own", own_entropy, own),
        ("entropy_given", entropy, given),
        ("nll_given", -logprob, given),
        ("surprise", -logprob - entropy, given),
    ):
        means[key] = cluster_mean(values, cluster[text])
        written = size > 0
        rate = np.bincount(text, values, len(size))[written] / size[written]
        means[f"{key}_per_byte"] = cluster_mean(rate, cluster[written]) if written.any() else None
    return {
        "condition": found.condition.name,
        **{key: mean.value if mean else np.nan for key, mean in means.items()},
        "top1_own": float(own_top1.mean()),
        "sure_own": float((own_top1 > 0.9).mean()),
        "sure_given": float((top1 > 0.9).mean()),
        "type_token_ratio": float(part["types"].mean()),
        "tokens_given": len(part["given"]),
        "prompts": min(means["entropy_own"].n, means["nll_given"].n),
        **{f"{key}_low": mean.low if mean else np.nan for key, mean in means.items()},
        **{f"{key}_high": mean.high if mean else np.nan for key, mean in means.items()},
    }
