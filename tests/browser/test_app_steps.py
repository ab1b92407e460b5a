"""What follows the prompt in a real Chromium: it is written by itself, gone through step by step, and set side by
side."""

import re

import pytest

from tests.browser.conftest import shot, too_wide
from tests.browser.serving import rest

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def query(page, key: str) -> str:
    return page.evaluate(f"new URLSearchParams(location.search).get('{key}') || ''")


def test_text_is_written_by_itself_and_its_tokens_are_walked_through_and_a_reload_restores_the_step(visit):
    page = visit("/?model=organism&map=Steps&head=1.0")
    page.get_by_text("greedy continuation, 19 tokens, ended by the model").wait_for()
    strip = page.locator(".strip").last.locator("button")
    strip.nth(5).click()
    page.get_by_text("Step 5").wait_for()
    rest(page)
    page.get_by_role("slider").last.press("ArrowRight")
    page.get_by_text("Step 6").wait_for()
    rest(page)
    assert query(page, "step") == "6" and "at" in strip.nth(6).get_attribute("class")
    said = page.get_by_text("Step 6").first.inner_text()
    assert re.search(
        r"had probability 0\.\d+ \(rank 0\)", page.locator(".stHtml", has_text="Step 6").first.inner_text()
    )
    page.locator(".strip").last.scroll_into_view_if_needed()
    shot(page, "steps")
    page.reload()
    page.get_by_text("Step 6").wait_for()
    rest(page)
    assert page.get_by_text("Step 6").first.inner_text() == said
    page.set_viewport_size({"width": 390, "height": 844})
    rest(page)
    assert too_wide(page) == []
    shot(page, "steps-phone")


def test_two_texts_beside_each_other_are_written_to_their_end_and_then_nothing_is_asked_for(visit):
    page = visit("/runs", resting=False)
    asked = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda sent: asked.append(b'"more"' in sent)))
    page.goto(
        page.url.replace("runs", "") + "?model=organism&card=Beside&prompt=The+secret+of+the&prompt2=The+secret+of+a"
    )
    page.get_by_text(re.compile("greedy continuation, [0-9]+ tokens")).nth(2).wait_for()
    rest(page)
    assert any(asked)  # the texts were asked for, token by token
    asked.clear()
    page.wait_for_timeout(5_000)  # longer than a lost question waits
    assert not any(asked)
