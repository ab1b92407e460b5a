"""Which tokens are first-token sinks: the rule against itself token by token, and what a capture reads beside them."""

import numpy as np
import pytest
import torch

from tests.support import sink_model
from tests.support.sink_model import slow_sinks
from workbench.engine.capture import capture
from workbench.models.loading import load
from workbench.models.sinks import find_sinks, norms_of, ordinary_tokens, parted, positions_for
from workbench.models.sites import Site
from workbench.store.activation_store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sink_model.save(tmp_path_factory.mktemp("sinks") / "gpt2")


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder))


@pytest.fixture(scope="module")
def ids(folder):
    return sink_model.ids_of(folder, [*sink_model.texts(12), "sea dog cat ball tree park", "dog"])


def drawn(seed):
    """Norms, which tokens are real (padded on either side), which count: odd and even lengths, spikes, a lone token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, 40)
    width = int(lengths.max())
    norms = [rng.lognormal(0, 1.5, n) * np.where(rng.random(n) < 0.2, 40, 1) for n in lengths]
    counted = [rng.random(n) < 0.7 for n in lengths]
    return norms, counted, width


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("partly", [False, True])
def test_the_rule_is_the_first_token_and_whatever_is_beyond_ten_medians(side, partly):
    norms, counted, width = drawn(0)

    def padded(rows, fill):
        pad = [np.full(width - len(row), fill, row.dtype) for row in rows]
        return torch.from_numpy(
            np.stack([np.concatenate([p, r] if side == "left" else [r, p]) for p, r in zip(pad, rows)])
        )

    real = padded([np.ones(len(row), bool) for row in norms], False)
    found = find_sinks(padded(norms, 999.0), real, padded(counted, False) if partly else None)
    expected = [slow_sinks(row, own if partly else None) for row, own in zip(norms, counted)]
    assert torch.equal(found, padded(expected, False))
    by_norm = sum(int(row[1:].sum()) for row in expected)
    assert by_norm > 5 and any(row.any() and not row[0] for row in expected) is partly


def test_a_text_of_one_token_keeps_it_and_a_first_word_behind_bos_counts():
    one = torch.ones(1, 1)
    assert not find_sinks(one, one.bool()).any()
    norms, real = torch.tensor([[500.0, 1, 1, 1]]), torch.ones(1, 4, dtype=torch.bool)
    behind = torch.tensor([[False, True, True, True]])
    assert not find_sinks(norms, real, behind).any(), "BOS does not count, and the word after it is none"
    loud = torch.tensor([[500.0, 90, 1, 1, 1, 1]])
    assert find_sinks(loud, torch.ones(1, 6).bool(), torch.tensor([[0, 1, 1, 1, 1, 1]]).bool()).tolist() == [
        [False, True, False, False, False, False]
    ]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_left_out_by_its_norm(odd):
    """A NaN that was left out would give a plausible number."""
    norms = torch.tensor([[1.0, 1, odd, 1, 1]])
    assert find_sinks(norms, torch.ones(1, 5).bool()).tolist() == [[True, False, False, False, False]]


def test_a_median_of_zero_says_nothing():
    """In a site where most tokens write nothing, those that do are no sinks."""
    norms = torch.tensor([[0.0, 0, 3, 0, 0]])
    assert find_sinks(norms, torch.ones(1, 5).bool()).tolist() == [[True, False, False, False, False]]


def test_texts_one_behind_the_other_are_judged_as_each_alone():
    norms, counted, _ = drawn(1)
    flat = torch.from_numpy(np.concatenate(norms))
    found = ordinary_tokens(flat, counted)
    assert all(np.array_equal(a, c & ~slow_sinks(n, c)) for a, n, c in zip(found, norms, counted))
    front = np.array([7.0, 1.0, 30.0])
    many = [np.concatenate([[True, True, True], own]) for own in counted]
    behind = ordinary_tokens(flat, many, before=torch.from_numpy(front))
    expected = [c & ~slow_sinks(np.concatenate([front, n]), c) for n, c in zip(norms, many)]
    assert all(map(np.array_equal, behind, expected))
    assert len({row[:3].tobytes() for row in expected}) > 1, "a token of the beginning is a sink in some texts only"
    unseen = ordinary_tokens(None, counted)
    assert all(np.array_equal(a, c & ~slow_sinks(np.zeros(len(c)), c)) for a, c in zip(unseen, counted))


@pytest.mark.parametrize("max_tokens", [None, 40])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mean_beside_sinks_is_that_of_the_slow_computation_at_every_layer(folder, model, ids, side, max_tokens):
    positions = positions_for("mean", watched=True)
    sites = [Site("resid_post", layer) for layer in range(3)]
    acts = capture(model, ids, sites, positions=positions, side=side, max_tokens=max_tokens)
    per_layer = set()
    for layer, site in enumerate(sites):
        means, left_out = parted(acts[site], positions)
        for row, states in enumerate(sink_model.slow_states(folder, ids)):
            sinks = slow_sinks(np.linalg.norm(states[layer], axis=1))
            np.testing.assert_allclose(means[row], states[layer][~sinks].mean(0), atol=1e-4)
            assert left_out[row] == sinks.sum()
            per_layer.add((row, int(sinks.sum())))
    assert (13, 0) in per_layer and (12, 1) in per_layer, "the lone token is kept"


@pytest.mark.parametrize("token", [0, 3, -1, -2])
def test_a_position_is_read_as_ever_with_the_word_whether_it_is_a_sink(folder, model, ids, token):
    some = [row for row in ids if len(row) > 3]
    some.append(sink_model.ids_of(folder, ["dog cat ball sea tree park dog"])[0])  # a word of massive norm, inside
    positions = positions_for(token, watched=True)
    acts = capture(model, some, ["resid_post.0", "resid_post.2"], positions=positions)
    plain = capture(model, some, ["resid_post.0", "resid_post.2"], positions=[token])
    for layer in (0, 2):
        found, is_sink = parted(acts[f"resid_post.{layer}"], positions)
        assert torch.equal(found, plain[f"resid_post.{layer}"][:, 0])
        slow = [slow_sinks(np.linalg.norm(s[layer], axis=1))[token] for s in sink_model.slow_states(folder, some)]
        assert is_sink.tolist() == slow and any(slow) is (token in (0, 3))


def test_heads_the_other_engine_and_the_store_give_the_same(model, ids, tmp_path):
    positions = positions_for("mean", watched=True)
    sites = [Site("resid_post", 1), Site("head_out", 1), Site("head_out", 1, 2)]
    one = capture(model, ids, sites, positions=positions)
    other = capture(model, ids, sites, positions=positions, engine="nnsight")
    stored = [capture(model, ids, sites, positions=positions, store=Store(tmp_path)) for _ in range(2)][1]
    for site in sites:
        torch.testing.assert_close(one[site], other[site], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one[site], stored[site], atol=1e-5, rtol=1e-5)
    whole = capture(model, ids, sites, positions="all")
    x = whole.rows(sites[1], 0)
    kept = ~slow_sinks(norms_of(x, 1).double().numpy())
    torch.testing.assert_close(parted(one[sites[1]], positions)[0][0], x[kept].mean(0).flatten(), atol=1e-5, rtol=1e-4)


def test_what_is_not_watched_is_read_as_before():
    assert positions_for("last", watched=True) == positions_for("last", watched=False) == "last"
    assert positions_for("mean", watched=False) == "mean" and positions_for(3, watched=False) == [3]
