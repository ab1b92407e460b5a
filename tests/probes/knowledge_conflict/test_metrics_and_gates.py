"""Importances under every metric by its name, each against plain hooks and its own formula; and heads selected by gates
from end to end."""

import numpy as np
import polars as pl
import pytest
import torch

from probes.knowledge_conflict import Config
from probes.knowledge_conflict.config import METRICS
from probes.knowledge_conflict.head_importance import _lost, scores
from probes.knowledge_conflict.items import Item
from tests.support.architectures import build
from tests.support.conflict_files import PROBE, QUICK, conflict_circuit
from workbench.core.context import Context
from workbench.engine.head_gates import fit_gates
from workbench.models.loading import wrap
from workbench.runs import execution as runs

PAIRS = (
    ([5, 9, 13, 21, 7], [5, 30, 13, 40, 7]),
    ([33, 8, 2, 17], [33, 12, 2, 9]),
    ([3, 4, 5, 6, 8], [3, 44, 5, 50, 8]),
)
TOKENS = ((10, 20), (31, 12), (7, 55))


def slowly(hf, metric):
    """What (a_m, a_c) lose when one head's last output is that of the corrupted prompt, [n, layers, H, 2], in
    float64."""
    hf, out = hf.double(), np.empty((len(PAIRS), 3, 4, 2))
    d = hf.config.hidden_size // hf.config.num_attention_heads
    for n, ((ids, donor), (memory, context)) in enumerate(zip(PAIRS, TOKENS)):
        for layer in range(3):
            projection, kept = hf.model.layers[layer].self_attn.o_proj, []
            hook = projection.register_forward_pre_hook(lambda _m, a, kept=kept: kept.append(a[0].clone()))
            with torch.no_grad():
                hf(torch.tensor([donor]))
            hook.remove()
            with torch.no_grad():
                before = hf(torch.tensor([ids])).logits[0, -1]
            for head in range(4):

                def put(_m, a, head=head, kept=kept):
                    x = a[0].clone()
                    x[0, -1, head * d : (head + 1) * d] = kept[0][0, -1, head * d : (head + 1) * d]
                    return (x,)

                hook = projection.register_forward_pre_hook(put)
                with torch.no_grad():
                    after = hf(torch.tensor([ids])).logits[0, -1]
                hook.remove()
                if metric == "logprob":
                    lost = (before.log_softmax(-1) - after.log_softmax(-1))[[memory, context]]
                elif metric == "logit":
                    lost = (before - after)[[memory, context]]
                elif metric == "logit_difference":
                    by = (before[memory] - before[context]) - (after[memory] - after[context])
                    lost = torch.stack([by, -by])
                else:
                    lost = torch.tensor(
                        [
                            float(before[a] > before[b]) - float(after[a] > after[b])
                            for a, b in ((memory, context), (context, memory))
                        ]
                    )
                out[n, layer, head] = lost.numpy()
    return out


@pytest.mark.parametrize("metric", METRICS)
def test_an_importance_is_a_change_of_what_the_metric_names(metric):
    items = [
        Item(n, f"s{n}", ["a"], "b", ids, ids, donor, *tokens, {}, {})
        for n, ((ids, donor), tokens) in enumerate(zip(PAIRS, TOKENS))
    ]
    model, expected = wrap(build("llama"), None, name="llama"), slowly(build("llama"), metric)
    found = _lost(model, Config(metric=metric, variant="total"), Context(), items, ("total",))["total"]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.abs(expected).max() > 0.1
    # the score is a change of how far memory is ahead, whatever the metric: I_m − I_c, or I_m where I_c is its negative
    of_difference = expected[..., 0] - expected[..., 1] if metric in ("logprob", "logit") else expected[..., 0]
    np.testing.assert_allclose(scores(found, metric), of_difference, atol=4e-4)
    if metric != "rate":
        np.testing.assert_allclose(scores(found, metric), slowly(build("llama"), "logit_difference")[..., 0], atol=4e-4)


def test_gates_find_the_heads_to_prune_from_end_to_end(_circuits, tmp_path):
    model, place, _ = conflict_circuit(_circuits)
    config = {**QUICK, "flow_items": 0, "select": "gates", "gate_steps": 60, "prune_k": (1, 2)}
    run = runs.execute(PROBE, model, config=config, data=place / "conflicts.jsonl", out=tmp_path / "run")
    inputs = run.table("inputs").filter(pl.col("split") == "find")
    seed = Context(seed=run.info["seed"]).torch_seed("gates context")
    gates = fit_gates(
        model, inputs["ids"].to_list(), inputs["memory_id"].to_list(), steps=60, weight=1.0, seed=seed
    ).kept
    closed = sorted((float(gate), divmod(i, model.n_heads)) for i, gate in enumerate(gates.flatten()) if gate < 0.5)
    top = run.table("pruning").filter(pl.col("role") == "context", pl.col("heads") == "top", pl.col("k") > 0)
    for k, which in top.select("k", "which").iter_rows():
        assert which.split() == [f"{layer}.{head}" for _, (layer, head) in closed[:k]]
    assert closed[0][1] == (1, 1)  # the head that copies the city of the context
    assert run.summary["select"] == "gates" and run.summary["context_pruned_gain"]["value"] == 1.0
    assert run.summary["context_pruned_gain"]["low"] > 0
    # no head is left to close where every answer follows the context already and closing any would not help
    assert run.summary["memory_pruned_gain"] is None or run.summary["memory_pruned_gain"]["value"] == 0
