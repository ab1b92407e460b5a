"""The map of activations in a real Chromium: drag around points, move the layer; dark, and on a phone."""

import re

import pytest

from tests.browser.conftest import cut_buttons, shot, too_wide
from tests.browser.serving import rest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MAP = "/activations?source=texts+concepts%2Fsentiment&layer=layer+1"


def query(page, key: str) -> str:
    return page.evaluate(f"new URLSearchParams(location.search).get('{key}') || ''")


def test_points_dragged_around_are_listed_stay_chosen_in_another_layer_and_open_as_the_prompt_of_their_model(visit):
    page = visit(f"{MAP}&model=organism%40step-1964")
    page.get_by_text(re.compile(r"All [0-9,]+ texts")).first.wait_for()
    assert cut_buttons(page) == [] and too_wide(page) == []
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    x, y, w, h = (box[key] for key in ("x", "y", "width", "height"))
    page.mouse.move(x + 5, y + 5)
    page.mouse.down()
    for a, b in ((0.6, 0.02), (0.6, 0.9), (0.02, 0.9), (0.02, 0.02)):
        page.mouse.move(x + a * w, y + b * h, steps=4)
    page.mouse.up()
    page.get_by_text(re.compile("[0-9,]+ chosen texts")).first.wait_for()
    rest(page)
    rows = query(page, "rows")
    page.get_by_role("slider").first.press("ArrowRight")
    page.get_by_text("at layer 2").first.wait_for()
    rest(page)
    assert query(page, "layer") == "layer 2" and query(page, "rows") == rows
    page.get_by_text(re.compile("[0-9,]+ chosen texts")).first.wait_for()
    shot(page, "activations-chosen")
    listed = page.get_by_test_id("stDataFrame").locator("canvas").first.bounding_box()
    page.mouse.click(listed["x"] + 20, listed["y"] + 52)  # the box of the first row
    page.get_by_role("button", name="Open in the Explorer").click()
    box = page.get_by_role("textbox", name="Prompt", exact=True)
    box.wait_for()
    rest(page)
    assert box.input_value().endswith("Opinion:") and query(page, "prompt") == box.input_value()
    assert (
        page.get_by_role("combobox", name=re.compile("^(Selected|Model)")).first.input_value() == "organism@step-1964"
    )
    assert query(page, "model") == "organism@step-1964"


@pytest.mark.parametrize("dark, size", [(True, (1280, 800)), (False, (390, 844))], ids=["dark", "phone"])
def test_the_map_can_be_read_in_the_dark_and_on_a_phone(visit, dark, size):
    page = visit(MAP, dark=dark, size=size)
    page.locator(".js-plotly-plot").first.scroll_into_view_if_needed()
    rest(page)
    assert cut_buttons(page) == [] and too_wide(page) == []
    shot(page, f"activations-{'dark' if dark else 'phone'}")
