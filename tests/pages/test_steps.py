"""What follows the prompt on the Explorer's screen: numbers first, then text, token by token, until it is stopped."""

import re

import pytest
import streamlit as st

from pages.widgets import cached, continuation
from tests.support.app_screens import open_page, words
from workbench.explorer.opened_model import encode
from workbench.explorer.switches import Switches

MODEL, PROMPT = "circuit-copy-gqa", "lantern velvet harbor quartz lantern"


@pytest.fixture(autouse=True)
def _anew():
    st.cache_resource.clear()


def more(at, key: str = "continuation"):
    """What the browser asks for once it has drawn what there is."""
    at.session_state[f"{key} more"] = True
    return at.run()


def far(at) -> list[str]:
    return re.findall(r"(?:continuation|switched), ([^<]*)<", words(at))


def test_the_answer_is_there_before_any_token_is_written_and_the_text_grows_and_stops_and_goes_on(monkeypatch):
    monkeypatch.setattr(continuation, "AT_ONCE", 0.0)
    at = open_page("explorer", model=MODEL, prompt=PROMPT)
    assert "next token" in words(at) and far(at) == ["0 of up to 24 tokens"]
    assert far(more(at)) == ["1 of up to 24 tokens"] and far(more(at)) == ["2 of up to 24 tokens"]
    at.button(key="continuation stop").click().run()
    assert far(at) == ["2 of up to 24 tokens, stopped"] and far(more(at)) == ["2 of up to 24 tokens, stopped"]
    at.button(key="continuation stop").click().run()
    assert far(more(at)) == ["3 of up to 24 tokens"]
    at.text_area(key="prompt").set_value(PROMPT + " velvet").run()  # another text is another continuation
    assert far(at) == ["0 of up to 24 tokens"]


def test_with_heads_switched_both_texts_are_written_one_after_the_other():
    at = open_page("explorer", model=MODEL, prompt=PROMPT, off="1.1")
    assert far(at) == ["0 of up to 24 tokens"] * 2
    for _ in range(50):
        if all(re.fullmatch(r"[0-9]+ tokens.*", one) for one in far(more(at))):
            break
    opened = cached.model(MODEL)
    ids = encode(opened, PROMPT)
    for off in (Switches(), Switches(((1, 1),))):
        text = continuation.kept(MODEL, ids, off, opened)
        assert text.finished(24) and text.text(24).split()[0] in words(at)
    assert not any(one.key == "continuation stop" for one in at.button)


def written(at, key: str = "steps", most: int = 60):
    """The screen once everything is written."""
    for _ in range(most):
        if not any(one.key == f"{key} stop" for one in at.button):
            return at
        more(at, key)
    raise AssertionError("it is written for ever")


def test_the_map_of_steps_shows_each_written_token_with_what_was_computed_there():
    at = open_page("explorer", model=MODEL, prompt=PROMPT, map="Steps", head="1.1")
    at = written(at)
    assert not at.exception, at.exception
    slider = at.slider(key="step")
    opened = cached.model(MODEL)
    text = continuation.kept(MODEL, encode(opened, PROMPT), Switches(), opened)
    assert slider.max == len(text.written[:24]) - 1
    at = slider.set_value(3).run()
    said = words(at)
    shown = opened.model.token_strings([text.written[3]])[0]
    assert "Step 3" in said and f"<code>{shown}</code>" in said
    assert "head 1.1 attends, from the token before, to" in said and "logit lens there" in said
    at.slider(key="write").set_value(8).run()
    assert at.slider(key="step").max == 7 and at.slider(key="step").value == 3
    at.slider(key="step").set_value(7).run()
    at.number_input(key="temperature").set_value(1.2).run()
    written(at)
    assert "drawn at temperature" not in words(at) and "Step 7" in words(at) and not at.exception


def test_steps_of_what_was_stopped_are_of_what_was_written(monkeypatch):
    monkeypatch.setattr(continuation, "AT_ONCE", 0.0)
    at = open_page("explorer", model=MODEL, prompt=PROMPT, map="Steps")
    for _ in range(3):
        more(at, "steps")
    assert "Step 0" not in words(at)
    at.button(key="steps stop").click().run()
    assert "Step 0" in words(at) and at.slider(key="step").max == 2 and "stopped" in words(at)


@pytest.mark.parametrize("params", [{"step": "999"}, {"step": "x"}, {"write": "7000"}, {"temperature": "-3"}])
def test_nonsense_in_the_address_of_a_step_gives_a_screen(params):
    at = open_page("explorer", model=MODEL, prompt=PROMPT, map="Steps", **params)
    assert "Step " in words(written(at)) and not at.exception
