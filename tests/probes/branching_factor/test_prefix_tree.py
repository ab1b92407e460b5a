"""The tree holds every sample once, merges what nobody leaves, and prunes what is rare."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from probes.branching_factor.prefix_tree import build, common_openings

WORDS = lambda ids: " ".join(map(str, ids))  # noqa: E731


def test_shared_prefixes_become_one_node_and_counts_add_up():
    rows = [[1, 2, 3], [1, 2, 4], [1, 2, 3], [5]]
    entropies = [[0.5, 0.1, 0.7], [0.5, 0.1, 0.7], [0.5, 0.1, 0.7], [0.5]]
    tree = build(rows, entropies, text=WORDS)
    assert tree["text"].to_list() == ["", "1 2", "3", "5", "4"]
    assert tree["count"].to_list() == [4, 3, 2, 1, 1]
    assert tree["parent"].to_list() == [-1, 0, 1, 0, 1]
    assert tree["probability"].to_list() == [1.0, 0.75, 0.5, 0.25, 0.25]
    np.testing.assert_allclose(tree["entropy"].to_list()[:2], [0.5, (0.1 + 0.7) / 2])
    np.testing.assert_allclose(tree["bf"][0], np.exp(0.5))
    assert tree["hidden"].sum() == 0


def test_pruning_keeps_the_likeliest_branches_and_says_what_it_hid():
    rows = [[1, 2], [1, 2], [1, 3], [4, 5], [6, 7]]
    tree = build(rows, [[0.0, 0.0]] * 5, text=WORDS, max_nodes=3)
    assert tree.height == 3 and tree["text"].to_list() == ["", "1", "2"]
    assert tree["hidden"].to_list() == [2, 1, 0]


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=12))
def test_every_sample_is_a_path_and_there_are_at_most_two_nodes_per_sample(rows):
    tree = build(rows, [[0.0] * len(r) for r in rows], text=WORDS, max_nodes=10_000)
    assert tree.height <= 2 * len(rows)
    tokens = {r["node"]: r for r in tree.iter_rows(named=True)}

    def path(node):
        return [] if node < 0 else path(tokens[node]["parent"]) + tokens[node]["tokens"]

    paths = {tuple(path(n)) for n in tokens}
    assert {tuple(r) for r in rows} <= paths | {()}
    for n, r in tokens.items():
        assert r["count"] == sum(tuple(row[: len(path(n))]) == tuple(path(n)) for row in rows)


def test_common_openings_are_sorted_by_length_then_count():
    rows = [[1, 2, 3, 9], [1, 2, 3, 8], [1, 2, 4], [1, 5], [1, 5], [1, 5]]
    assert common_openings(rows, least=2, longest=3) == [((1, 2, 3), 2), ((1, 2), 3), ((1, 5), 3), ((1,), 6)]
    assert common_openings(rows, least=7, longest=3) == []
