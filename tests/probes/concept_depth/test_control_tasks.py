"""Selectivity: a probe that knows word types by heart has none, one that knows a concept has."""

import numpy as np
import pytest
import torch

from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.control_tasks import drawn_tasks, selectivity, task_accuracies, types_of
from probes.concept_depth.held_out import solve


def concept_of(texts, groups=None, template="{text}"):
    labels = np.arange(len(texts)) % 2
    framed = tuple(template.replace("{text}", t) for t in texts)
    return ConceptSet("toy", framed, labels, ("0", "1"), groups, template=template)


def test_types_are_groups_or_the_last_word_of_the_bare_text():
    words = ["cat", "dog", "sun", "sea", "tree", "Cat."]
    texts = [f"I saw the {w}" for w in words * 4]
    types = types_of(concept_of(texts, template="{text} It is"))
    assert types is not None and len(set(types)) == 5 and types[0] == types[5]
    groups = tuple(f"g{i // 3}" for i in range(24))
    assert len(set(types_of(concept_of(texts, groups)))) == 8
    assert types_of(concept_of([f"text {i}" for i in range(24)])) is None  # every text has a last word of its own
    assert types_of(concept_of(["one end"] * 24)) is None  # all have the same


@pytest.mark.parametrize(("knows", "expected"), [("types", 1.0), ("nothing", 0.5)])
def test_a_control_task_is_learned_by_heart_or_not_at_all(knows, expected):
    rng = np.random.default_rng(0)
    types = np.repeat(np.arange(20), 12)
    x = rng.standard_normal((240, 30))
    if knows == "types":
        x = rng.standard_normal((20, 30))[types] * 4 + 0.3 * x
    features = [torch.tensor(x)]

    tasks = drawn_tasks(types, tasks=20, rng=rng)
    for task in tasks:
        assert set(types[task.test]) <= set(types[task.train]) and not set(task.train) & set(task.test)
        assert all(len(set(task.labels[types == t])) == 1 for t in set(types)) and task.labels.mean() == 0.5
    found = task_accuracies(solve(features, tasks).scores, tasks, 1)
    assert found.shape == (20, 1) and abs(found.mean() - expected) < 0.06


def test_the_interval_of_selectivity_covers_with_the_tasks_as_a_sample():
    """Accuracy 0.8 of 60 rows minus tasks of 0.6 that differ by 0.1 from task to task."""
    from workbench.stats.clusters import cluster_share

    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        own = cluster_share(rng.random(60) < 0.8, np.arange(60))
        tasks = 0.6 + 0.1 * rng.standard_normal((20, 1))
        found = selectivity(np.array([own.value]), np.array([own.low]), np.array([own.high]), tasks)
        covered += found.low[0] <= 0.2 <= found.high[0]
        assert found.value[0] == own.value - tasks.mean()
    assert 0.92 <= covered / 500 <= 0.98
    few = selectivity(np.array([0.8]), np.array([0.7]), np.array([0.9]), np.full((3, 1), 0.6))
    assert np.isfinite(few.value[0]) and np.isnan(few.low[0])
    none = selectivity(np.array([0.8]), np.array([0.7]), np.array([0.9]), np.empty((0, 1)))
    assert np.isnan(none.value[0]) and np.isnan(none.task_accuracy[0])
