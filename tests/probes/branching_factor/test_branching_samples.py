"""Answers are found as whole words in everything that was put out; prompts without an answer have no score."""

from types import SimpleNamespace

import numpy as np

from probes.branching_factor.branching_samples import Condition, Continuations, correct, shorten
from workbench.engine.sampling import Rule


def continuations(texts, answers, given=()):
    model = SimpleNamespace(decode=lambda ids: " ".join("abcdefgh"[i] for i in ids))
    at = list(range(len(texts)))
    condition = Condition(
        "c", model, ["p"] * len(texts), [[1]] * len(texts), Rule(), at, at, answers=answers, given=list(given)
    )
    lengths = np.full((len(texts), len(texts[0])), 2)
    return Continuations(
        condition, np.tile([3, 4], (*lengths.shape, 1)), lengths, lengths, np.zeros((*lengths.shape, 2, 1)), texts
    )


def test_answers_are_whole_words_and_alternatives_are_allowed():
    found = correct(
        continuations([["Paris is it.", "PARIS", "Parisian", "It is lyon"], ["a", "b", "c", "d"]], ["Paris | Lyon", ""])
    )
    np.testing.assert_array_equal(found, [[1, 1, 0, 1], [np.nan] * 4])


def test_what_was_given_of_an_output_counts():
    found = correct(continuations([["x", "y"]], ["c d"], given=[[2]]))
    np.testing.assert_array_equal(found, [[1, 1]])


def test_a_prompt_is_shortened_by_sentences_words_or_blocks():
    assert shorten('He said "go." Then left.', 1, "sentences") == 'He said "go."'
    assert shorten("no end", 1, "sentences") == "no end" and shorten("", 3, "sentences") == ""
    assert shorten("Q1\nA1\n\nQ2\nA2\n\nQ3", 1, "blocks") == "Q1\nA1\n\nQ3"
