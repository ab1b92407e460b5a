"""Retrieval scores as the official code publishes them, read into the tables of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench.core.errors import InputError
from workbench.runs.imported import import_file


def write(path, scores: dict) -> object:
    path.write_text(json.dumps(scores))
    return path


@pytest.fixture(scope="module")
def published() -> dict[str, list[float]]:
    """The shape of the published file of Llama-2-7B-80K: 1,024 heads, 33 of them at or above 0.1 by construction, 6
    above 0.5, and trials that are whole numbers, fractions and a little above 1."""
    rng, found = np.random.default_rng(0), {}
    strong = rng.permutation(1024)[:33]
    for index in range(1024):
        trials = rng.uniform(0, 0.15, 60) * (rng.random(60) < 0.3)
        if index in strong:
            place = int(np.flatnonzero(strong == index)[0])
            trials = np.full(60, 0.8 if place < 6 else 0.12) + np.tile([0.01, -0.01], 30)
        found[f"{index // 32}-{index % 32}"] = [0 if value == 0 else float(value) for value in trials]
    found["31-31"][0] = 1.0000000000000002
    return found


def test_a_file_of_the_published_shape_gives_the_heads_that_reach_the_threshold(published, tmp_path):
    run = import_file(write(tmp_path / "llama-2-7b-80k.json", published))
    heads = run.table("heads")
    assert heads.height == 1024 and (run.of("model", "layers"), run.of("model", "heads")) == (32, 32)
    slow = {key: sum(values) / len(values) for key, values in published.items()}
    for row in heads.iter_rows(named=True):
        values = published[f"{row['layer']}-{row['head']}"]
        assert row["score"] == pytest.approx(slow[f"{row['layer']}-{row['head']}"], abs=1e-12)
        assert row["activation_frequency"] == sum(value > 0 for value in values) / 60 and row["n_trials"] == 60
        assert row["ci_low"] is None and row["ci_high"] is None, "the file does not say which trials are of one needle"
    assert heads["is_retrieval"].sum() == sum(score >= 0.1 for score in slow.values()) == 33
    assert (heads["score"] > 0.5).sum() == 6
    found = run.summary["retrieval_heads"]
    assert found == {"value": 33, "heads": 1024}
    scores = run.array("trial_scores")
    assert scores.shape == (60, 32, 32)
    assert scores[:, 31, 31] == pytest.approx(np.float32(published["31-31"]))


def test_heads_with_other_numbers_of_trials_and_heads_that_are_missing(tmp_path):
    scores = {"0-0": [0.1, 0.1], "1-2": [2.0, 1, 0, 1], "0.1": [0.0], "1-0": []}
    run = import_file(write(tmp_path / "s.json", scores))
    heads = run.table("heads").rows(named=True)
    assert [row["n_trials"] for row in heads] == [2, 1, 0, 0, 0, 4]
    assert [row["score"] for row in heads] == [pytest.approx(0.1), 0.0, None, None, None, 1.0]
    assert [row["is_retrieval"] for row in heads] == [True, False, None, None, None, True]
    assert run.summary["retrieval_heads"] == {"value": 2, "heads": 3}
    assert run.info["warnings"] == [
        "3 of the 6 heads up to layer 1 and head 2 have no trial in the file; they have no score."
    ]
    trials = run.array("trial_scores")
    assert trials.shape == (4, 2, 3) and trials[:, 1, 2].tolist() == [2, 1, 0, 1]
    assert np.isnan(trials[2:, 0, 0]).all() and np.isnan(trials[:, 1, 1]).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"0-0": [0.1, NaN]}', "trial 2 of the head 0-0 is NaN or null"),
        ('{"0-0": [0.1], "0-1": [null]}', "trial 1 of the head 0-1 is NaN or null"),
        ('{"0-0": [Infinity]}', "trial 1 of the head 0-0 is infinite"),
        ('{"0-0": [-0.5]}', "trial 1 of the head 0-0 is -0.5, and a score is at least 0"),
        ('{"0-0": [true]}', "trial 1 of the head 0-0 is True, which is no number"),
        ('{"0-0": ["0.5"]}', "which is no number"),
        ('{"0-0": [1' + "0" * 400 + "]}", "is too large a number"),
        ('{"0-0": 0.5}', "the head 0-0 has 0.5 where the list of the scores of its trials is needed"),
        ('{"0-0": [0.5], "mean": [0.5]}', "the key 'mean' is no head"),
        ('{"0-0": [0.5], "00-0": [0.5]}', "the head 0-0 is there twice"),
        ('{"0-0": [0.5], "99999-99999": [0.5]}', "a key must be wrong"),
        ('{"0-0": [0.5], "999999999-0": [0.5]}', "is no head of any model"),
        ('{"0-0": [], "0-1": []}', "has no trial of any head"),
    ],
)
def test_a_score_that_is_none_is_named_in_a_sentence(tmp_path, text, said):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError) as error:
        import_file(tmp_path / "s.json")
    assert said in str(error.value) and "s.json" in str(error.value) and str(error.value).endswith(".")


def test_what_is_no_file_of_scores_says_what_one_is(tmp_path):
    (tmp_path / "s.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r'retrieval scores are JSON \{"layer-head": \[score'):
        import_file(tmp_path / "s.json", probe="retrieval-heads")
