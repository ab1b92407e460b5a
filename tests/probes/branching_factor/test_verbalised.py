"""What a model wrote when it was asked for several responses, read back and counted."""

import itertools

import numpy as np
import pytest

from probes.branching_factor.verbalised import PROMPT, distinct, diversity, effective, parse

GOOD = "<response><text>A cat.</text><probability>0.5</probability></response>"


def test_responses_are_read_with_their_probabilities_and_broken_ones_left_out():
    text = f"Sure!\n{GOOD}\n<Response>\n <text>Two\nlines</text>\n <probability> 25% </probability>\n</Response>"
    assert parse(text) == [("A cat.", 0.5), ("Two\nlines", 0.25)]
    for broken in (
        "<response><text>x</text></response>",
        "<response><text> </text><probability>0.5</probability></response>",
        "<response><text>x</text><probability>likely</probability></response>",
        "<response><text>x</text><probability>7</probability></response>",
        "no list",
    ):
        assert parse(broken) == [] and parse(broken + GOOD) == [("A cat.", 0.5)]
    assert parse(GOOD.removesuffix("</response>")) == [("A cat.", 0.5)]  # the output ended here
    assert PROMPT.format(k=3, prompt="Hi {there}").endswith("Request: Hi {there}")


def test_distinct_is_the_mean_over_all_subsets():
    texts = ["a", "A ", "b", "c", "a"]
    for n in (1, 2, 4, 5):
        slow = np.mean([len({t.strip().lower() for t in some}) for some in itertools.combinations(texts, n)])
        assert distinct(texts, n) == pytest.approx(slow)


def test_stated_probabilities_weigh_the_responses():
    assert effective([("a", 0.5), ("b", 0.5)]) == pytest.approx(2) and effective(
        [("a", 0.2), ("A", 0.3)]
    ) == pytest.approx(1)
    assert effective([("a", 0.9), ("b", 0.1)]) == pytest.approx(np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1)))
    assert np.isnan(effective([("a", 0.0)])) and np.isnan(effective([]))


def test_diversity_compares_as_many_answers_of_either_kind():
    one = "".join(
        f"<response><text>{t}</text><probability>{p}</probability></response>"
        for t, p in (("a", 0.5), ("b", 0.3), ("c", 0.2))
    )
    table = diversity([["x", "x", "x", "y"], ["x", ""]], [[one, "nothing"], ["nothing"]], 3)
    first, second = table.iter_rows(named=True)
    assert first["parse_rate"] == 0.5 and first["n"] == 3
    assert first["distinct_verbalised"] == 1 and first["distinct_direct"] == pytest.approx(
        (3 * 2 + 1) / 4 / 3
    )  # 3 of 4 subsets hold y
    assert first["effective_stated"] == pytest.approx(effective([("a", 0.5), ("b", 0.3), ("c", 0.2)]))
    assert second["parse_rate"] == 0 and second["n"] == 0 and second["distinct_direct"] is None
