"""Which heads are pruned: greedy selection finds heads that only matter together, and stops where no more help."""

import numpy as np
import pytest

from probes.knowledge_conflict import Config, head_selection
from probes.knowledge_conflict.head_selection import objective
from workbench.core.context import Context
from workbench.engine.edits import HeadAblation


def greedy(monkeypatch, logp_of, pool, **config):
    """The list that greedy selection makes where the answers hang on the switched-off heads as `logp_of` says."""
    monkeypatch.setattr(head_selection, "edited", lambda _context, edits: edits)
    monkeypatch.setattr(head_selection, "log_probabilities", lambda _m, _c, _i, edits: logp_of(set(heads_in(edits))))
    return head_selection._greedy(None, Config(**config), Context(), [], pool, "context", lambda heads: ablation(heads))


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


@pytest.mark.parametrize("metric, expected", [("logprob", (-2.0, 0.0)), ("logit", (0.5, -2.0)), ("rate", (0.5, -2.0))])
def test_the_objective_is_the_metric_by_name(metric, expected):
    logp = np.array([[-1.0, -3.0], [-3.0, -2.0]])
    assert objective(logp, "context", metric) == pytest.approx(expected)
    assert objective(logp, "context", "logit_difference") == objective(logp, "context", "logit")
