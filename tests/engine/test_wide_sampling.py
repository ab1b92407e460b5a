"""Large vocabularies: rows whose nucleus is not sorted give the numbers of the float64 computation over every token,
and draws that are screened in float32 are those of float64."""

import numpy as np
import pytest
import torch

from tests.engine.test_scoring import slow
from workbench.engine import draws, sampling
from workbench.engine.draws import row_keys
from workbench.engine.sampling import FIELDS, Rule, step

V = 13_000
RULES = [
    Rule(top_p=0.9),
    Rule(top_p=0.9, temperature=0.6),
    Rule(top_p=0.99, temperature=2.0),
    Rule(top_p=0.8, min_p=0.5),
    Rule(top_p=0.9, top_k=6000),
    Rule(),
    Rule(temperature=0),
    Rule(min_p=0.05),
]


@pytest.fixture(scope="module")
def scores():
    """Flat rows, one with ties only, one peaked, one between, one of which a third cannot be drawn."""
    x = torch.randn(6, V, generator=torch.Generator().manual_seed(3))
    x *= torch.tensor([0.02, 0.3, 0.0, 6.0, 1.5, 0.1])[:, None]
    x[5, ::3] = -torch.inf
    return x


def gumbel(seed, row, token_count, log_q):
    """The draw as its definition says, in numpy: splitmix64 of (seed, prompt, sample, token), float64 noise."""

    def mix(x):
        for shift, factor in ((30, draws._A), (27, draws._B)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))

    golden, a, b = (np.uint64(n) for n in (draws._GOLDEN, draws._A, draws._B))
    with np.errstate(over="ignore"):
        key = mix(np.array([seed], np.uint64) * golden + a)
        for number in (row, 0):
            key = mix(key ^ mix(np.array([number], np.uint64) * golden + b))
        bits = mix(key ^ (np.arange(token_count, dtype=np.uint64) * a + golden))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return int(np.argmax(log_q - np.log(-np.log(uniform))))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_statistics_and_draws_over_a_large_vocabulary_are_those_of_float64(scores, rule, monkeypatch):
    unsorted = []
    inner = sampling._unsorted
    monkeypatch.setattr(sampling, "_unsorted", lambda x, *rest: unsorted.append(len(x)) or inner(x, *rest))
    ids, found = step(scores, rule, keys=row_keys(7, range(6), [0] * 6))
    assert (sum(unsorted) >= 3) == (rule.top_p < 1 and rule.top_k == 0)
    for row in range(6):
        truth = slow(scores[row].numpy(), int(ids[row]), rule)
        for name, value in truth.items():
            assert float(found[row, FIELDS.index(name)]) == pytest.approx(value, abs=2e-5, rel=2e-5), (row, name)
        if rule.temperature:
            logits = scores[row].double().numpy() / rule.temperature
            log_p = logits - np.logaddexp.reduce(logits)
            order = np.argsort(-log_p, kind="stable")
            log_q = np.full(V, -np.inf)
            log_q[order[: truth["support"]]] = log_p[order[: truth["support"]]]
            assert int(ids[row]) == gumbel(7, row, V, log_q), row


def test_a_row_is_the_same_whether_its_nucleus_is_sorted_or_not(scores, monkeypatch):
    """What the official code would see included, and texts that are given."""
    keys = row_keys(1, range(6), [0] * 6)
    for rule in (Rule(top_p=0.9), Rule(top_p=0.95, temperature=1.3, min_p=0.01)):
        ids, found = step(scores, rule, keys=keys)
        given = step(scores, rule, chosen=torch.full((6,), V - 1))[1]
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "WIDE", V)
            again, sorted_found = step(scores, rule, keys=keys)
            sorted_given = step(scores, rule, chosen=torch.full((6,), V - 1))[1]
        assert torch.equal(ids, again)
        torch.testing.assert_close(found, sorted_found, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(given, sorted_given, rtol=1e-6, atol=1e-7)
        assert torch.equal(found[:, FIELDS.index("support")], sorted_found[:, FIELDS.index("support")])


def test_the_screen_holds_the_best_of_every_draw_also_where_the_noise_is_extreme():
    """Numbers next to 0 and 1, and log-probabilities down to nothing: off by less than what tells two draws apart."""
    bits = torch.tensor([[0, 1, 2**20, 2**52, 2**53 - 2**40, 2**53 - 2**33, 2**53 - 2**27, 2**53 - 2**20]])
    for log_q in (torch.zeros(1, 8), torch.tensor([[-0.1, -5, -9, -12.5, -14, -15, -30, -torch.inf]])):
        exact = draws._gumbel(log_q.double(), bits)
        torch.testing.assert_close(draws._screened(log_q.double(), bits).double(), exact, atol=1e-5, rtol=0)
