"""What pruning gains: over subjects and draws, never of zero width, and against the better of none and random."""

import numpy as np
import polars as pl
import pytest

from probes.knowledge_conflict.answer_rates import change, gain, mean_rates, rates
from workbench.core.context import Context


def answers(kinds, subjects=None, right=None):
    n = len(kinds)
    return pl.DataFrame(
        {
            "subject": [str(s) for s in (range(n) if subjects is None else subjects)],
            "kind": list(kinds),
            "clean_right": [True] * n if right is None else right,
            "perplexity": [2.0] * n,
        }
    )


def test_an_interval_of_a_rate_is_over_subjects_and_has_a_width_at_its_ends():
    found = rates(answers(["memory"] * 60, np.arange(60) % 6))
    assert (found["n"], found["rows"], found["memory_rate"], found["memory_high"]) == (6, 60, 1.0, 1.0)
    assert found["memory_low"] < 0.7
    few = rates(answers(["memory"] * 60, np.arange(60) % 4))
    assert few["memory_rate"] == 1.0 and few["memory_low"] is None and few["memory_high"] is None


def test_a_change_that_is_the_same_for_all_still_has_a_width():
    for value in (1.0, 0.0, -1.0):
        found = change(np.full(20, value), np.arange(20))
        assert found["value"] == value and found["high"] - found["low"] > 0.1
    assert change(np.full(4, 1.0), np.arange(4))["low"] is None


@pytest.mark.parametrize("subjects, each", [(8, 1), (8, 4), (30, 2)])
@pytest.mark.parametrize("draws", [None, 20])
def test_the_interval_of_a_gain_holds_the_true_one(subjects, each, draws):
    """Paired answers of subjects that differ; draws of random heads that differ as well. 400 files."""
    rng, held = np.random.default_rng(subjects + each), 0
    names = np.arange(subjects).repeat(each)
    for _ in range(400):
        lean = rng.normal(0, 0.15, subjects).repeat(each)
        with_ = rng.random(len(names)) < np.clip(0.6 + lean, 0, 1)
        if draws is None:
            without = rng.random(len(names)) < np.clip(0.3 + lean, 0, 1)
            values = with_.astype(float) - without
        else:
            of_draw = np.clip(0.3 + lean + rng.normal(0, 0.1, (draws, 1)), 0, 1)
            values = with_.astype(float) - (rng.random((draws, len(names))) < of_draw)
        found = change(values, names)
        held += found["low"] <= 0.3 <= found["high"]
    assert 0.92 <= held / 400 <= 1.0


@pytest.mark.parametrize("by_chance, than", [(0.2, "no pruning"), (0.8, "random heads")])
def test_the_gain_is_against_the_better_of_no_pruning_and_random_heads(by_chance, than):
    rng = np.random.default_rng(0)
    before = answers(["memory"] * 20 + ["context"] * 20)
    top = answers(["memory"] * 36 + ["context"] * 4)
    randoms = [answers(np.where(rng.random(40) < by_chance, "memory", "context")) for _ in range(20)]
    found = gain(Context(), "context", 2, before, top, randoms)
    mean = np.mean([(draw["kind"] == "memory").mean() for draw in randoms])
    assert found["context_pruned_compared_with"] == than
    assert found["context_pruned_gain"]["value"] == pytest.approx(0.4)
    assert found["context_pruned_gain_over_random"]["value"] == pytest.approx(0.9 - max(0.5, mean))
    assert found["context_pruned_random_memory_rate"]["value"] == pytest.approx(mean)


def test_draws_are_part_of_the_interval_of_random_heads():
    """A hundred and sixty subjects that agree within each of few, very different, draws."""
    draws = [answers(["memory" if d == 0 else "context"] * 160) for d in range(5)]
    found = mean_rates(draws)
    assert found["memory_rate"] == pytest.approx(0.2) and found["memory_high"] - found["memory_low"] > 0.4
    one = mean_rates(draws[:1])
    assert one["memory_low"] is None
