"""Roles of heads: nearly none where there is no effect, however many heads there are; found where there is one; mixed
where the sign hangs on the kind of conflict."""

import types

import numpy as np
import pytest

from probes.knowledge_conflict import Config
from probes.knowledge_conflict.head_roles import head_roles
from workbench.stats.clusters import clusters_of
from workbench.stats.intervals import cluster_bootstrap_mean

HEADS = (32, 32)


def items_of(subjects: int, each: int = 1, sources=("",)) -> list:
    return [
        types.SimpleNamespace(subject=f"s{n}", group={"source": sources[n % len(sources)]} if sources[0] else {})
        for n in range(subjects)
        for _ in range(each)
    ]


def effects_of(score: np.ndarray, rng) -> np.ndarray:
    """Importances of both answers [n, layers, H, 2] whose difference is the score."""
    common = rng.normal(0, 1, score.shape)
    return np.stack([common + score / 2, common - score / 2], -1)


def noise(subjects: int, each: int, rng) -> np.ndarray:
    """Scores without an effect: half of their variance is of the subject, the rest of its rows."""
    own = rng.normal(0, 1, (subjects, *HEADS)).repeat(each, 0)
    return (own + rng.normal(0, 1, own.shape)) / np.sqrt(2)


@pytest.mark.parametrize("subjects, each", [(5, 1), (5, 4), (12, 3), (50, 1), (50, 3)])
@pytest.mark.parametrize("sources", [("",), ("law", "rumour")])
def test_of_a_thousand_heads_without_an_effect_nearly_none_has_a_role(subjects, each, sources):
    """Ten files; a family of tests may be wrong once in twenty times, and two (scores, kinds) are made."""
    rng, found = np.random.default_rng(subjects), []
    for _ in range(10):
        score = noise(subjects, each, rng)
        roles = head_roles(score, effects_of(score, rng), items_of(subjects, each, sources), Config(least_effect=0.0))
        found.append(int((roles.role != "none").sum()))
    assert np.mean(found) <= 1 and max(found) <= 5, found


def test_the_rule_that_was_gives_roles_to_a_hundred_heads_of_these():
    """Percentile intervals of each head alone that exclude zero: what the test above is for."""
    rng = np.random.default_rng(5)
    score, names = noise(5, 1, rng), np.arange(5)
    flat = score.reshape(5, -1)[:, :256]
    ends = [cluster_bootstrap_mean(column, names, draws=200, rng=rng) for column in flat.T]
    assert np.mean([low > 0 or high < 0 for low, high in ends]) > 0.08


def test_heads_with_an_effect_are_found_among_a_thousand_and_false_ones_stay_within_the_rate_that_is_printed():
    rng, true, false = np.random.default_rng(1), 0, 0
    for _ in range(10):
        score = noise(20, 2, rng)
        score[:, 3, :10] += 2.0
        score[:, 7, :10] -= 2.0
        roles = head_roles(score, effects_of(score, rng) + 3, items_of(20, 2), Config())
        assert set(roles.role[3, :10]) <= {"memory", "none"} and set(roles.role[7, :10]) <= {"context", "none"}
        planted = np.zeros(HEADS, bool)
        planted[3, :10] = planted[7, :10] = True
        by_score = np.isin(roles.role, ("memory", "context"))
        true, false = true + int((by_score & planted).sum()), false + int((by_score & ~planted).sum())
    assert true >= 190 and false / (true + false) <= 0.08


def test_rows_of_one_subject_are_one_thing_and_below_five_subjects_no_head_has_a_role():
    rng = np.random.default_rng(2)
    score = noise(4, 50, rng) + 5
    roles = head_roles(score, effects_of(score, rng), items_of(4, 50), Config())
    assert set(roles.role.ravel()) == {"none"} and np.isnan(roles.p_adjusted).all()
    assert clusters_of(np.array([item.subject for item in items_of(4, 50)])).n == 4


def test_an_effect_below_the_least_size_is_no_role_however_sure_it_is():
    rng = np.random.default_rng(3)
    score = 0.04 + 0.001 * noise(30, 1, rng)
    effects = np.stack([score, 0 * score], -1)
    assert set(head_roles(score, effects, items_of(30), Config()).role.ravel()) == {"none"}
    small = Config(least_effect=0.01)
    assert set(head_roles(score, effects, items_of(30), small).role.ravel()) == {"memory"}


def test_a_head_whose_sign_hangs_on_the_kind_of_conflict_is_mixed_and_says_by_what():
    rng = np.random.default_rng(4)
    items = items_of(24, 2, ("law", "rumour"))
    score = 0.3 * noise(24, 2, rng)
    sign = np.array([1.0 if item.group["source"] == "law" else -1.0 for item in items])
    score[:, 2, 5] += 6 * sign
    score[:, 2, 6] += 3 + 1 * sign  # more here than there, and always the same way
    roles = head_roles(score, np.stack([score, -score], -1), items, Config())
    assert roles.role[2, 5] == "mixed" and roles.role[2, 6] == "memory"
    assert roles.mixed_by[2, 5].startswith("source law +") and "source rumour -" in roles.mixed_by[2, 5]
    assert (roles.role == "mixed").sum() == 1
    law = [n for n, item in enumerate(items) if item.group["source"] == "law"]
    within = head_roles(score[law], np.stack([score, -score], -1)[law], [items[n] for n in law], Config())
    assert within.role[2, 5] == "memory"  # within one kind it has a side
