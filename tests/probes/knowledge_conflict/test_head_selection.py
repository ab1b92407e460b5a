"""Which heads are pruned: greedy selection finds heads that only matter together, and stops where no more help."""

import numpy as np
import polars as pl
import pytest

from probes.knowledge_conflict import Config, head_selection
from probes.knowledge_conflict.head_selection import objective
from tests.support.conflict_files import PROBE, QUICK, breaking_circuit, conflict_circuit
from workbench.core.context import Context
from workbench.engine.edits import HeadAblation
from workbench.runs import execution as runs


def greedy(monkeypatch, logp_of, among, *, clean_of=lambda off: 1.0, context=None, **config):
    """The list that greedy selection makes where the answers hang on the switched-off heads as `logp_of` says, and the
    share of right clean answers as `clean_of` says."""
    monkeypatch.setattr(head_selection, "edited", lambda _context, edits: edits)
    monkeypatch.setattr(head_selection, "log_probabilities", lambda _m, _c, _i, edits: logp_of(set(heads_in(edits))))
    monkeypatch.setattr(head_selection, "clean_share", lambda _m, _c, _x, _i, edits: clean_of(set(heads_in(edits))))
    return head_selection._greedy(
        None, Config(**config), context or Context(), [], among, "context", lambda heads: ablation(heads)
    )


def ablation(heads):
    return (HeadAblation(tuple(heads)),) if heads else ()


def heads_in(edits):
    return edits[0].heads if edits else ()


def test_two_heads_that_stand_in_for_each_other_are_found_together(monkeypatch):
    """Either of 1.0 and 1.1 copies the context alone; a third head costs a little; 0.3 helps a little on its own."""

    def logp(off):
        memory = -3.0 + 2.5 * ({(1, 0), (1, 1)} <= off) + 0.1 * ((0, 3) in off) - 0.2 * ((2, 2) in off)
        return np.array([[memory, -1.0]] * 4)

    pool = ((1, 0), (2, 2), (1, 1), (0, 3))
    assert set(greedy(monkeypatch, logp, pool)) == {(0, 3), (1, 0), (1, 1)}
    assert greedy(monkeypatch, logp, pool, prune_k=(1,)) == ((0, 3),)  # no longer than the largest k


def test_where_no_head_helps_the_list_is_empty(monkeypatch):
    assert greedy(monkeypatch, lambda off: np.array([[-1.0 - len(off), -1.0]]), ((0, 0), (1, 1))) == ()


def test_a_head_that_costs_too_many_facts_is_put_aside_and_another_takes_its_place(monkeypatch):
    """0.0 turns most answers and costs every tenth fact; 1.0 costs what is allowed; 2.2 costs too much beside 1.0
    only; 3.3 stands behind the pool of three."""
    gains = {(0, 0): 2.0, (1, 0): 1.0, (2, 2): 0.5, (3, 3): 0.25, (4, 4): 3.0}
    among = tuple(gains)

    def logp(off):
        return np.array([[-5.0 + sum(gains[head] for head in off), -1.0]] * 4)

    def clean(off):
        return 1.0 - 0.1 * ((0, 0) in off) - 0.02 * ((1, 0) in off) - 0.01 * ((2, 2) in off) - 0.5 * ((4, 4) in off)

    options = {"pool": 3, "prune_k": (3,), "clean_of": clean}
    context = Context()
    assert greedy(monkeypatch, logp, among, context=context, **options) == ((1, 0), (3, 3))
    assert context.counters["context_heads_too_costly"] == 3  # 0.0, then 4.4 behind it, and 2.2
    assert greedy(monkeypatch, logp, among, max_clean_drop=1, **options) == ((0, 0), (1, 0), (2, 2))
    assert greedy(monkeypatch, logp, among, clean_of=lambda off: 1.0 - 0.1 * bool(off)) == ()


@pytest.mark.parametrize("metric, expected", [("logprob", (-2.0, 0.0)), ("logit", (0.5, -2.0)), ("rate", (0.5, -2.0))])
def test_the_objective_is_the_metric_by_name(metric, expected):
    logp = np.array([[-1.0, -3.0], [-3.0, -2.0]])
    assert objective(logp, "context", metric) == pytest.approx(expected)
    assert objective(logp, "context", "logit_difference") == objective(logp, "context", "logit")


@pytest.mark.parametrize("drop", [0.02, 1.0])
def test_a_head_that_turns_answers_by_breaking_facts_does_not_hide_those_that_break_none(_circuits, tmp_path, drop):
    """Without 1.5 every conflict turns and every fact is lost, without 1.1 every conflict turns and none is."""
    model, place, _ = conflict_circuit(_circuits)
    config = {**QUICK, "variant": "total", "flow_items": 0, "max_clean_drop": drop}
    run = runs.execute(
        PROBE, breaking_circuit(model), config=config, data=place / "conflicts.jsonl", out=tmp_path / "run"
    )
    heads = run.table("heads").sort("score")
    assert heads.select("layer", "head").row(0) == (1, 5) and heads.select("layer", "head").row(1) == (1, 1)
    top = run.table("pruning").filter(pl.col("role") == "context", pl.col("heads") == "top", pl.col("k") == 1)
    assert top["memory_rate"].item() == 1.0
    if drop == 1:
        assert top["which"].item() == "1.5" and top["clean_accuracy"].item() == 0.0
        return
    assert top["which"].item() == "1.1" and top["clean_accuracy"].item() == 1.0
    assert run.info["counters"]["context_heads_too_costly"] >= 1
    assert run.summary["context_pruned_gain"]["low"] > 0.5 and run.summary["context_pruned_clean_change"]["value"] == 0
    assert not any("1.5" in which.split() for which in run.table("validation")["which"])
