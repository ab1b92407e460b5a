"""Intervals of precision and of its differences: how often they hold the truth, with rows in clusters, few targets and
many."""

import numpy as np
import polars as pl
import pytest

from probes.data_selection import precisions as p
from workbench.core.context import Context
from workbench.stats.clusters import cluster_share


def drawn(rng, targets, clusters, each, share, alike):
    """Hits [targets, clusters · each]: rows of a cluster agree (beta-binomial)."""
    a = (1 - alike) / alike
    own = rng.beta(share * a, (1 - share) * a, (targets, clusters)).repeat(each, axis=1)
    return (rng.random(own.shape) < own).astype(float)


def world(rng, *, targets, clusters, each, share, other):
    """What two methods and twenty random draws select for each target, of a pool in which nothing overlaps: orders,
    relevance and clusters."""
    k = clusters * each
    hits = {"sae": drawn(rng, targets, clusters, each, share, 0.2)}
    hits["bm25"] = drawn(rng, targets, clusters, each, other, 0.2)
    pool = {f"random{d}": drawn(rng, targets, k, 1, 0.2, 0.01) for d in range(20)}
    every = list((hits | pool).values())
    relevant = np.concatenate(every, axis=1).T  # [N, targets]
    place = [np.arange(i * k, (i + 1) * k) for i in range(len(every))]
    orders = {"sae": [[place[0]] * targets], "bm25": [[place[1]] * targets]}
    orders["random"] = [[place[2 + d]] * targets for d in range(20)]
    groups = np.concatenate([np.repeat(np.arange(clusters), each) + i * 1000 for i in range(2)] + place[2:])
    return orders, relevant.astype(bool), groups, k


@pytest.mark.parametrize(("targets", "clusters", "each"), [(1, 12, 3), (1, 40, 1), (3, 12, 4), (9, 10, 2)])
def test_differences_of_precision_are_held(targets, clusters, each):
    rng = np.random.default_rng([targets, clusters, each])
    held, words = {"bm25": [], "random": []}, []
    for _ in range(200):
        orders, relevant, groups, k = world(rng, targets=targets, clusters=clusters, each=each, share=0.6, other=0.6)
        found = p.verdict(orders, "sae", relevant, groups, k)
        for method, truth in (("bm25", 0.0), ("random", 0.4)):
            apart = found[f"sae_minus_{method}"]
            held[method].append(apart["low"] <= truth <= apart["high"])
        words.append("bm25" in found.get("not_better_than", ""))
        assert found["sae_minus_bm25"]["n"] == (targets if targets >= 5 else targets * clusters * 2)
        assert found["sae_minus_bm25"]["rows"] == targets * k
    assert 0.92 <= np.mean(held["bm25"]) <= 0.985 and 0.92 <= np.mean(held["random"]) <= 0.99
    assert np.mean(words) == np.mean(held["bm25"])


def test_worse_is_another_word_than_not_better():
    rng = np.random.default_rng(0)
    orders, relevant, groups, k = world(rng, targets=9, clusters=20, each=1, share=0.4, other=0.8)
    found = p.verdict(orders, "sae", relevant, groups, k)
    assert found["worse_than"] == "bm25" and found["better_than"] == "random" and "not_better_than" not in found


def test_rows_that_both_methods_select_cancel_and_equal_choices_still_have_an_interval():
    rng = np.random.default_rng(1)
    orders, relevant, groups, k = world(rng, targets=2, clusters=20, each=1, share=0.6, other=0.6)
    orders["bm25"] = orders["sae"]
    same = p.verdict(orders, "sae", relevant, groups, k)["sae_minus_bm25"]
    assert same["value"] == 0 and same["low"] < 0 < same["high"]
    half = [np.concatenate([orders["sae"][0][0][:10], np.arange(k, k + 10)])] * 2
    near = p.verdict(orders | {"bm25": [half]}, "sae", relevant, groups, k)["sae_minus_bm25"]
    far = p.verdict(orders | {"bm25": [[np.arange(k, 2 * k)] * 2]}, "sae", relevant, groups, k)["sae_minus_bm25"]
    assert near["high"] - near["low"] < far["high"] - far["low"]


def test_precision_counts_clusters_and_is_read_against_chance():
    relevant, rows = np.repeat([True, False], [12, 88]), np.arange(100)
    found = p.precision_row([relevant], [rows], rows // 2, 12)
    same = cluster_share(np.ones(12), np.arange(12) // 2)
    assert (found["n"], found["precision"], found["ci_high"]) == (6, 1.0, 1.0) and found["ci_low"] == same.low < 1
    assert found["against_chance"] == "better" and found["base_rate"] == 0.12
    few = p.precision_row([relevant], [rows], rows // 2, 6)
    assert np.isnan(few["ci_low"]) and few["against_chance"] is None
    other = p.precision_row([relevant[::-1]], [rows], rows, 80)
    assert other["against_chance"] == "worse"


def test_clusters_are_the_column_group_or_rows_that_say_almost_the_same():
    texts = ["The boat is on the sea today.", "Apples grow on old trees.", "The boat is on the sea now.", "Snow fell."]
    found = p.row_groups(pl.DataFrame({"text": texts}), texts, np.arange(4), Context())
    assert found[0] == found[2] and len(set(found)) == 3
    named = pl.DataFrame({"text": texts, "group": ["a", "b", "b", None]})
    found = p.row_groups(named, texts, np.arange(4), Context())
    assert found[1] == found[2] and len(set(found)) == 3
