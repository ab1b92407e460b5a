"""Where words stand, what an answer starts with, and prompts in which only the names are others."""

import numpy as np
import pytest

from workbench import load
from workbench.models.text_positions import Swap, find, first_mention, first_token, swapped, tokens_of


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load(str(tiny_llama))


def test_only_whole_words_are_found_in_any_case():
    text = "Niger is not Nigeria, and NIGER is Niger's name."
    assert [text[a:b] for a, b in find(text, "Niger")] == ["Niger", "NIGER", "Niger"]
    assert find(text, "ige") == [] and find(text, " ") == []
    assert find("St. John's (Antigua)", "St. John's") == [(0, 10)] and find("a.c", "abc") == []


def test_the_first_mention_decides_and_the_longer_name_wins_where_two_begin_together():
    groups = {"memory": ["Mexico City", "Ciudad de México"], "context": ["Mexico", "Oslo"]}
    assert first_mention("It is Oslo, not Mexico City.", groups, "other") == "context"
    assert first_mention("mexico city of course", groups, "other") == "memory"
    assert first_mention("Paris", groups, "other") == "other"


def test_tokens_of_a_span_hold_its_characters_and_no_others(model):
    text = "One day, Lily met Tom. Tom was sad."
    ids, offsets = model.encode_with_offsets(text)
    for span in find(text, "Tom"):
        inside = tokens_of(offsets, [span])
        assert "Tom" in model.decode([ids[i] for i in inside]) and len(inside) < 6
        assert all(offsets[i][0] < span[1] and span[0] < offsets[i][1] for i in inside)
    assert tokens_of(offsets, []) == () and 0 not in tokens_of(offsets, [(0, len(text))])  # BOS holds no character


def test_the_first_token_of_an_answer_continues_the_prompt(model):
    prompt = "Lily has a"
    token = first_token(model, prompt, "dog")
    whole = model.encode("Lily has a dog")
    assert whole[: len(model.encode(prompt))] == model.encode(prompt) and token == whole[len(model.encode(prompt))]


def test_a_swapped_prompt_changes_the_names_and_nothing_else(model):
    text = "Lily has a dog. Tom says that Lily has a dog."
    ids, offsets = model.encode_with_offsets(text)
    swaps = [Swap("Lily", ("Sara", "Anna", "Ben")), Swap("dog", ("cat", "ball", "car"))]
    new = swapped(model, text, swaps, np.random.default_rng(0))
    inside = set(tokens_of(offsets, find(text, "Lily") + find(text, "dog")))
    assert len(new) == len(ids) and new != ids
    assert [i for i, (a, b) in enumerate(zip(ids, new)) if a != b and i not in inside] == []
    written = model.decode(new)
    assert "Lily" not in written and "dog" not in written and written.count("Tom") == 1
    assert new == swapped(model, text, swaps, np.random.default_rng(0))


def test_a_prompt_without_a_candidate_of_its_length_is_not_swapped(model):
    assert (
        swapped(model, "Lily has a dog.", [Swap("dog", ("extraordinary hippopotamus",))], np.random.default_rng(0))
        is None
    )
    assert swapped(model, "Lily has a dog.", [Swap("dog", ())], np.random.default_rng(0)) is None
