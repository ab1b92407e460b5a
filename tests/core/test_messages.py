"""Conversations are read from a cell, or what is wrong with them is said."""

import json

import pytest

from workbench.core.messages import read_messages

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_a_list_and_the_same_as_json_give_the_turns():
    assert read_messages(TALK) == read_messages(json.dumps(TALK)) == [("user", "a"), ("assistant", "b")]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert read_messages(parts) == [("user", "ab")]


WRONG = {
    "no json": ("hello", "no JSON list"),
    "an object": ('{"role": "user"}', "no list of messages"),
    "none": ("[]", "at least one"),
    "no role": ([{"content": "x"}], "no role and content in message 1"),
    "a role misspelt": ([*TALK, {"role": "usr", "content": "x"}], r"role 'usr' in message 3 \(did you mean 'user'\?\)"),
    "no text": ([{"role": "user", "content": None}], "no text in message 1"),
    "an image": ([{"role": "user", "content": [{"type": "image"}]}], "no text in message 1"),
    "a number": (3, "no list"),
}


@pytest.mark.parametrize(("cell", "match"), WRONG.values(), ids=WRONG)
def test_what_is_no_conversation_is_said(cell, match):
    with pytest.raises(ValueError, match=match):
        read_messages(cell)
