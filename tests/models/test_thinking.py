"""Where the thinking of a response ends, by token, however its tags are spelt."""

import pytest

from tests.support.chat_templates import CHANNELS, COHERE, MAGISTRAL, PLAIN, QWEN, R1, THINKING, with_template
from workbench.models.loading import load
from workbench.models.thinking import NO_THINKING, ThinkingSpan, tags_of, thinking_splitter


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return load(str(tiny_llama))


BLOCKS = {
    "Qwen3": (QWEN, "<think>\nTom ran.\n</think>\n\n"),
    "Magistral": (MAGISTRAL, "[THINK]Tom ran.[/THINK]"),
    "Cohere": (COHERE, "<|START_THINKING|>Tom ran.<|END_THINKING|>"),
    "channels": (
        CHANNELS,
        "<|channel|>analysis<|message|>Tom ran.<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}


@pytest.mark.parametrize("spelt", [True, False], ids=["in several tokens", "tokens of their own"])
@pytest.mark.parametrize("name", BLOCKS)
def test_thinking_and_answer_are_told_apart(plain, name, spelt):
    template, block = BLOCKS[name]
    tags = tags_of(with_template(plain, template))
    model = with_template(plain, template, () if spelt else (tags.opening, tags.closing))
    split = thinking_splitter(model, inside=False)
    ids = model.encode(block + "Lily did.", bos=False)
    assert spelt or sum(model.token_strings([i])[0] in (tags.opening, tags.closing) for i in ids) == 2
    found = split(ids)
    assert found.state == "finished"
    assert model.decode(ids[found.end :]).strip() == "Lily did."
    assert model.decode(ids[: found.end]).endswith(tags.closing)  # no token too many
    assert not model.decode(ids[: found.end - 1]).endswith(tags.closing)  # nor too few
    assert split(ids[: found.end - 1]) == ThinkingSpan(found.end - 1, "unfinished")
    assert split(model.encode("Lily did.", bos=False)) == NO_THINKING
    assert split([]) == NO_THINKING
    assert split(model.encode(f"Lily wrote {tags.opening}", bos=False)) == NO_THINKING


def test_a_prompt_that_opened_the_block_needs_no_opening_tag(plain):
    model = with_template(plain, R1)
    split = thinking_splitter(model, inside=True)
    ids = model.encode("Tom ran.</think>\n\nLily.", bos=False)
    found = split(ids)
    assert found.state == "finished" and model.decode(ids[found.end :]).strip() == "Lily."
    assert split(ids[:2]) == ThinkingSpan(2, "unfinished")
    assert split([]) == ThinkingSpan(0, "unfinished")
    assert thinking_splitter(model, inside=False)(ids) == NO_THINKING


def test_a_response_that_begins_with_the_channel_of_the_answer_has_no_thought(plain):
    model = with_template(plain, CHANNELS)
    ids = model.encode("<|channel|>final<|message|>Lily", bos=False)
    found = thinking_splitter(model, inside=False)(ids)
    assert found.state == "finished" and model.decode(ids[found.end :]) == "Lily"


def test_a_token_that_ends_beyond_the_tag_belongs_to_the_thinking(plain):
    model = with_template(plain, QWEN, ("think>Li",))
    ids = model.encode("<think>Tom</think>Lily", bos=False)
    found = thinking_splitter(model, inside=False)(ids)
    assert model.decode(ids[: found.end]).endswith("</think>Li") and model.decode(ids[found.end :]) == "ly"


def test_tags_come_from_the_template_or_from_tokens_of_their_own(plain):
    assert tags_of(plain) is None and tags_of(with_template(plain, PLAIN)) is None
    assert all(tags_of(with_template(plain, template)) is not None for template in THINKING.values())
    assert tags_of(with_template(plain, PLAIN, ("<think>", "</think>"))).opening == "<think>"
    assert tags_of(with_template(plain, PLAIN, ("<think>",))) is None
