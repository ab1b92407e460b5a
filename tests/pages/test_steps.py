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
    at.text_input(key="prompt").set_value(PROMPT + " velvet").run()  # another text is another continuation
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
