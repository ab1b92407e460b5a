"""Large vocabularies: however the tokens of a row are put in order, and wherever that is done, a step gives the numbers
of the float64 computation over every token, and its draws are those of float64."""

import numpy as np
import pytest
import torch

from tests import virtual_accelerator as va
from tests.engine.test_scoring import official, slow
from workbench.engine import draws, ranking, sampling
from workbench.engine.draws import row_keys
from workbench.engine.sampling import FIELDS, Rule, step

V = 6_000
RULES = [
    Rule(top_p=0.9),
    Rule(top_p=0.9, temperature=0.6),
    Rule(top_p=0.99, temperature=2.0),
    Rule(top_p=0.8, min_p=0.5),
    Rule(top_p=0.9, top_k=3000),
    Rule(top_k=40, temperature=0.7),
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


def truths(scores, rule):
    """[(id, {statistic: value}) of a draw, the same of a given token] by row, token by token in float64."""
    found = []
    for row, x in enumerate(scores.double().numpy()):
        drawn, given = int(np.argmax(x)), (37 * row) % V
        of_given = slow(x, given, rule)
        if rule.temperature:
            log_p = x / rule.temperature
            log_p = log_p - np.logaddexp.reduce(log_p)
            order = np.argsort(-log_p, kind="stable")[: of_given["support"]]
            log_q = np.full(V, -np.inf)
            log_q[order] = log_p[order]
            drawn = gumbel(7, row, V, log_q)
        found.append([(drawn, slow(x, drawn, rule)), (given, of_given)])
    return found


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_statistics_and_draws_over_a_large_vocabulary_are_those_of_float64(scores, rule, monkeypatch):
    """On a CPU, on an accelerator, and on one without float64."""
    keys, given = row_keys(7, range(6), [0] * 6), torch.tensor([(37 * row) % V for row in range(6)])
    with va.present():
        there = scores.to("virtual")
        runs = [(step(scores, rule, keys=keys), step(scores, rule, chosen=given), 2e-5)]
        for wide in (torch.float64, torch.float32):
            monkeypatch.setattr(sampling, "widest", lambda _, wide=wide: wide)
            pair = step(there, rule, keys=keys.to("virtual")), step(there, rule, chosen=given.to("virtual"))
            runs.append((*[tuple(x.cpu() for x in one) for one in pair], 2e-5 if wide == torch.float64 else 1e-4))
    for row, truth in enumerate(truths(scores, rule)):
        for *pair, within in runs:
            for (ids, found), (token, values) in zip(pair, truth):
                assert int(ids[row]) == token, (row, within)
                for name, value in values.items():
                    seen = float(found[row, FIELDS.index(name)])
                    assert seen == pytest.approx(value, abs=within, rel=within), (row, name, within)


def test_ties_are_kept_in_the_order_of_their_ids_also_in_few_bits_and_at_the_edge_of_the_fifty():
    """Scores of bfloat16 are mostly ties."""
    scores = torch.randn(3, V, generator=torch.Generator().manual_seed(5)).bfloat16()
    order = np.argsort(-scores.double().numpy(), kind="stable")
    with va.present():
        for device in ("cpu", "virtual"):
            x = scores.to(device)
            for rule, last in ((Rule(top_k=45), 44), (Rule(top_k=900), 899), (Rule(), 49)):
                for place in (last - 1, last, last + 1):
                    chosen = torch.from_numpy(order[:, place].copy())
                    found = step(x, rule, chosen=chosen.to(device))[1].cpu()
                    if rule.truncates:
                        assert (found[:, FIELDS.index("logprob")] > -torch.inf).tolist() == [place <= last] * 3
                    else:
                        truth = [official(*one, rule)[0] for one in zip(scores.float().numpy(), chosen.tolist())]
                        assert found[:, FIELDS.index("entropy_top")].tolist() == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize(
    "rule", [Rule(), Rule(top_p=0.9), Rule(temperature=0), Rule(top_k=20), Rule(min_p=0.1)], ids=str
)
def test_rows_that_are_no_numbers_leave_the_others_as_they_are_on_either_device(scores, rule):
    broken = scores.clone()
    broken[1, 70], broken[2, 3], broken[4] = torch.nan, torch.inf, -torch.inf
    keys, fine = row_keys(7, range(6), [0] * 6), [0, 3, 5]
    right = step(scores, rule, keys=keys)
    with va.present():
        for device in ("cpu", "virtual"):
            ids, found = (x.cpu() for x in step(broken.to(device), rule, keys=keys.to(device)))
            assert torch.equal(ids[fine], right[0][fine])
            torch.testing.assert_close(found[fine], right[1][fine], rtol=1e-6, atol=1e-7)
            assert found.isnan().any(1).tolist() == [row not in fine for row in range(6)]
            assert ((0 <= ids) & (ids < V)).all()


def test_a_row_is_the_same_whether_all_of_its_tokens_are_sorted_or_those_within_reach(scores, monkeypatch):
    """What the official code would see included, and texts that are given."""
    keys, sorted_whole = row_keys(1, range(6), [0] * 6), []
    inner = ranking.all_tokens
    monkeypatch.setattr(ranking, "all_tokens", lambda x: sorted_whole.append(len(x)) or inner(x))
    for rule in (Rule(top_p=0.9), Rule(top_p=0.95, temperature=1.3, min_p=0.01)):
        sorted_whole.clear()
        ids, found = step(scores, rule, keys=keys)
        given = step(scores, rule, chosen=torch.full((6,), V - 1))[1]
        assert 0 < sum(sorted_whole) < 12
        with monkeypatch.context() as patch:
            patch.setattr(ranking, "SORTED", V)
            again, sorted_found = step(scores, rule, keys=keys)
            sorted_given = step(scores, rule, chosen=torch.full((6,), V - 1))[1]
        assert torch.equal(ids, again)
        torch.testing.assert_close(found, sorted_found, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(given, sorted_given, rtol=1e-6, atol=1e-7)
        assert torch.equal(found[:, FIELDS.index("support")], sorted_found[:, FIELDS.index("support")])


def test_the_noise_of_float32_is_that_of_float64_also_where_it_is_extreme():
    bits = torch.tensor([[0, 1, 2**20, 2**52, 2**53 - 2**40, 2**53 - 2**33, 2**53 - 2**27, 2**53 - 2**20]])
    exact = draws._minus_exponential(bits, torch.float64)
    found = draws._minus_exponential(bits, torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
