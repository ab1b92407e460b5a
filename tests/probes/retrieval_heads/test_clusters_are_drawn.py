"""What is drawn are needles, not trials or heads: in the curve of how many are enough, and between two runs."""

import numpy as np
import polars as pl
import pytest

from probes.retrieval_heads import figures
from probes.retrieval_heads.agreement import ScoredTrials, correlation_of_runs, scored_trials
from probes.retrieval_heads.config import Config
from probes.retrieval_heads.head_scores import how_many_are_enough
from probes.retrieval_heads.summary import summary_of_heads
from tests.support import figure_runs
from workbench.core.context import Context
from workbench.runs.execution import execute


def test_needles_that_find_their_own_heads_are_not_enough_however_many_trials_they_have():
    """Six needles, each with twenty heads of its own that all its forty trials copy: trials drawn at random would soon
    hold every needle, but one needle knows a sixth of the heads."""
    scores, names = np.zeros((240, 4, 30)), np.repeat(np.arange(6), 40)
    for needle in range(6):
        scores[names == needle] = np.where(np.arange(120) // 20 == needle, 1.0, 0.0).reshape(4, 30)
    scores += np.linspace(0.01, 0, 120).reshape(4, 30) * 6  # in all, the best heads are those of needle 0
    table = how_many_are_enough(scores, names, Context(seed=0))
    assert table["needles"].to_list() == [1, 2, 3, 5] and table["trials"].to_list() == [40, 80, 120, 200]
    by_hand = []  # the slow way: every needle alone
    final = set(np.argsort(-scores.mean(0).ravel(), kind="stable")[:10].tolist())
    for needle in range(6):
        own = scores[names == needle].mean(0).ravel()
        by_hand.append(len(final & set(np.argsort(-own, kind="stable")[:10].tolist())) / 10)
    assert table["overlap"][0] == pytest.approx(np.mean(by_hand), abs=0.08)
    assert table["overlap"][0] < 0.4 and (np.diff(table["overlap"]) > 0).all()


def test_trials_that_count_each_by_themselves_are_drawn_as_trials():
    scores = np.random.default_rng(0).random((30, 2, 10))
    table = how_many_are_enough(scores, np.arange(30), Context(seed=0))
    assert table["needles"].to_list() == table["trials"].to_list() == [1, 2, 3, 5, 8, 10, 20]


def runs_of(rng, *, needles, heads=60, noise=1.0):
    """Two runs on the same needles: heads have a score each, needles their own, the same in both runs."""
    true = rng.normal(size=heads)
    own = noise * rng.normal(size=(needles, 1, heads))
    both = [(true + own + 0.3 * rng.normal(size=(needles, 5, heads))).reshape(needles * 5, 1, heads) for _ in range(2)]
    names = np.repeat(np.arange(needles), 5)
    return [ScoredTrials(scores, names) for scores in both], true


@pytest.mark.parametrize("same", [False, True])
def test_the_interval_between_runs_holds_what_other_needles_give_on_average(same):
    """Heads are what they are; needles differ, and in runs on the same needles alike. The truth is the mean r over many
    pairs of runs on other needles."""
    rng, true = np.random.default_rng(0), np.random.default_rng(1).normal(size=60)

    def pair():
        own = [rng.normal(size=(12, 1, 60)) for _ in range(2)]
        own[1] = own[0] if same else own[1]
        each = [(true + part + rng.normal(size=(12, 4, 60))).reshape(48, 1, 60) for part in own]
        return [ScoredTrials(scores, np.repeat(np.arange(12), 4)) for scores in each]

    def r(runs):
        return np.corrcoef(*(run.scores.mean(0)[0] for run in runs))[0, 1]

    truth = np.mean([r(pair()) for _ in range(400)])
    found = [correlation_of_runs(*pair(), same_needles=same, rng=rng) for _ in range(300)]
    assert np.mean([r.low <= truth <= r.high for r in found]) >= 0.93
    assert np.mean([r.high - r.low for r in found]) < 0.25  # and says something


def test_the_interval_of_split_halves_holds_what_halves_of_other_needles_give_on_average():
    rng, true = np.random.default_rng(3), np.random.default_rng(4).normal(size=(1, 6, 8))
    names = np.repeat(np.arange(16), 3)

    def halves(seed):
        own = 2 * rng.normal(size=(16, 6, 8))[names]
        scores = true + own + rng.normal(size=(48, 6, 8))
        table = pl.DataFrame({"layer": [0], "head": [0], "score": [0.0], "told_apart": [False]})
        return summary_of_heads(table, scores, names, Config(draws=100), Context(seed=seed))["split_half_correlation"]

    found = [halves(seed) for seed in range(150)]
    truth = np.mean([one["value"] for one in found])
    assert np.mean([one["low"] <= truth <= one["high"] for one in found]) >= 0.92
    assert np.mean([one["high"] - one["low"] for one in found]) < 0.6  # and says something


def test_one_needle_that_makes_the_agreement_shows_in_the_interval():
    """Both runs agree in what one of six needles does; bootstrapping heads would say that it is known well."""
    rng = np.random.default_rng(1)
    scores, names = rng.normal(size=(2, 30, 1, 400)), np.repeat(np.arange(6), 5)
    scores[:, names == 0] += 12 * rng.normal(size=400)
    r = correlation_of_runs(*(ScoredTrials(own, names) for own in scores), same_needles=True, rng=rng)
    assert r.value > 0.85 and r.low < 0.3 and r.over == "needles"


def test_what_no_needle_changes_and_too_few_needles_have_no_interval():
    rng = np.random.default_rng(2)
    first, second = (ScoredTrials(rng.normal(size=(40, 1, 60)), np.repeat(np.arange(8), 5)) for _ in range(2))
    r = correlation_of_runs(first, first, same_needles=True, rng=rng)
    assert r.value == pytest.approx(1) and np.isnan(r.low) and r.over == "no interval: no needle changes it"
    r = correlation_of_runs(first, second, same_needles=True, rng=rng)
    assert r.value == pytest.approx(np.corrcoef(first.scores.mean(0)[0], second.scores.mean(0)[0])[0, 1])
    assert r.low < r.value < r.high
    few = [ScoredTrials(own.scores[:20], own.needles[:20]) for own in (first, second)]
    r = correlation_of_runs(*few, same_needles=True, rng=rng)
    assert np.isnan(r.low) and "needs 5 needles" in r.over


def test_the_figure_of_two_runs_says_what_its_interval_is_over():
    config = {"lengths": (64,), "depths": (0, 50, 100), "max_new_tokens": 10, "mask_k": (0,)}
    a, b = (execute("retrieval-heads", "circuit-copy", config=config | {"score": how}) for how in ("set", "count"))
    assert scored_trials(a).scores.shape == (18, 2, 4) and len(set(scored_trials(a).needles)) == 6
    # every needle of the circuit gives the same scores
    assert any("no needle changes it" in str(note.text) for note in figures.compare(a, b).layout.annotations)
    plain = figures.compare(figure_runs.retrieval(), figure_runs.retrieval(seed=1))
    assert any("over heads, not needles" in str(note.text) for note in plain.layout.annotations)
