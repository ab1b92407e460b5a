"""What follows the prompt in a real Chromium: it is written by itself, gone through step by step, and set side by
side."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import shot, too_wide
from tests.browser.serving import rest

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def query(page, key: str) -> str:
    return page.evaluate(f"new URLSearchParams(location.search).get('{key}') || ''")


def test_text_is_written_by_itself_and_its_tokens_are_walked_through_and_a_reload_restores_the_step(visit):
    page = visit("/?model=organism&map=Steps&head=1.0")
    page.get_by_text("greedy continuation, 19 tokens, ended by the model").wait_for()
    strip = page.get_by_role("listbox", name="Written tokens").locator("button")  # the prompt has a strip as well
    strip.nth(5).click()
    page.get_by_text("Step 5").wait_for()
    rest(page)
    page.get_by_role("slider").last.press("ArrowRight")
    page.get_by_text("Step 6").wait_for()
    rest(page)
    assert query(page, "step") == "6" and strip.nth(6).get_attribute("aria-selected") == "true"
    said = page.get_by_text("Step 6").first.inner_text()
    assert re.search(
        r"had probability 0\.\d+ \(rank 0\)", page.locator(".stHtml", has_text="Step 6").first.inner_text()
    )
    page.get_by_role("listbox", name="Written tokens").scroll_into_view_if_needed()
    shot(page, "steps")
    page.reload()
    expect(page.get_by_text("Step 6").first).to_have_text(said, timeout=60_000)
    rest(page)
    page.set_viewport_size({"width": 390, "height": 844})
    rest(page)
    assert too_wide(page) == []
    shot(page, "steps-phone")


def test_two_texts_beside_each_other_are_written_to_their_end_and_then_nothing_is_asked_for(visit):
    page = visit("/runs", resting=False)
    asked = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda sent: asked.append(b'"more"' in sent)))
    page.goto(
        # prompts of its own: what another test had written is kept by the server
        page.url.replace("runs", "") + "?model=organism&card=Beside&prompt=The+code+of+that&prompt2=The+code+of+some"
    )
    page.get_by_text(re.compile("greedy continuation, [0-9]+ tokens")).nth(2).wait_for()
    rest(page)
    assert any(asked)  # the texts were asked for, token by token
    asked.clear()
    page.wait_for_timeout(5_000)  # longer than a lost question waits
    assert not any(asked)


def test_a_click_on_a_head_in_a_view_side_by_side_chooses_it_for_both_and_a_phone_has_one_below_the_other(visit):
    page = visit("/?model=organism&card=Beside&side=true&head=1.0&prompt=The+secret+of+the&prompt2=The+secret+of+a")
    page.get_by_text("attention of head 1.0: there less here").wait_for()
    grids = page.get_by_role("grid", name=re.compile("^heads by .*, (here|there|difference)$"))
    assert grids.count() == 3
    tops = [grids.nth(i).bounding_box()["y"] for i in range(3)]
    assert max(tops) - min(tops) < 40
    grids.nth(1).locator("button[data-cell='2.3']").click()
    page.get_by_text("attention of head 2.3: there less here").wait_for()
    rest(page)
    assert query(page, "head") == "2.3" and page.locator("[data-cell='2.3'].at").count() >= 3
    shot(page, "side-by-side")
    page.set_viewport_size({"width": 390, "height": 844})
    rest(page)
    tops = [grids.nth(i).bounding_box()["y"] for i in range(3)]
    assert tops[1] - tops[0] > 100 and tops[2] - tops[1] > 100 and too_wide(page) == []
    grids.nth(2).scroll_into_view_if_needed()
    shot(page, "side-by-side-phone")
