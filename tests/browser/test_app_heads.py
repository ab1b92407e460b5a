"""Many heads at once in a real Chromium: the grid of a large model, its keys, selecting by hand."""

import pytest

from tests.browser.conftest import shot
from tests.browser.serving import rest
from tests.support import many_heads

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SELECTED = "() => new URLSearchParams(location.search).get('selected') || ''"


def cell(page, name: str):
    return page.locator(f'button[data-key="{name}"]')


def told(page, text: str) -> None:
    """Until the address says that these heads are selected."""
    page.wait_for_function(f"(text) => ({SELECTED})() === text", arg=text)
    rest(page)


def in_sight(page, name: str) -> bool:
    return cell(page, name).evaluate(
        """(b) => {
        const r = b.getBoundingClientRect(), box = b.closest('.frame').getBoundingClientRect();
        const top = b.getRootNode().elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);
        return top === b && r.left >= box.left && r.right <= box.right && r.top >= box.top && r.bottom <= box.bottom;
        }"""
    )


def test_a_grid_of_a_thousand_heads_is_read_and_walked_through_and_many_are_selected_with_mouse_and_keys(
    visit, tmp_path
):
    folder = many_heads.save(tmp_path / "many", 32, 32, kv_heads=8)
    page = visit(f"/?model={folder}&prompt=Once+upon+a+time&head=20.30")
    assert page.locator("[role=grid] [role=row]").count() >= 33
    assert in_sight(page, "20.30") and not in_sight(page, "0.0")
    box = cell(page, "20.30").bounding_box()
    assert min(box["width"], box["height"]) >= 14
    names = page.locator("[role=rowheader] button").evaluate_all("all => all.map(b => [b.scrollWidth, b.clientWidth])")
    assert len(names) == 32 and all(inside <= room for inside, room in names)  # "31" is whole
    # one stop of the tab key; arrows walk, Home and End go to the ends of the layer
    assert page.locator(".grid [tabindex='0']").count() == 1
    cell(page, "20.30").focus()
    page.keyboard.press("ArrowUp")
    page.get_by_text("Layer 21, head 30").first.wait_for()
    page.keyboard.press("Home")
    page.get_by_text("Layer 21, head 0").first.wait_for()
    assert in_sight(page, "21.0") and page.locator(".grid [tabindex='0']").get_attribute("data-key") == "21.0"
    assert cell(page, "21.0").get_attribute("aria-label").startswith("layer 21, head 0, key/value group 0, attention ")
    assert cell(page, "21.0").get_attribute("aria-current") == "true"
    rest(page)
    page.keyboard.press("l")  # one step, however often the grid was drawn
    page.get_by_text("Layer 21, head 1").first.wait_for()
    page.keyboard.press("h")
    page.get_by_text("Layer 21, head 0").first.wait_for()
    rest(page)
    # shift with the arrows selects a block, Enter one more, a click on a head's number a column of heads
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    told(page, "21.0-2,22.0-2")
    assert cell(page, "22.1").evaluate("b => b.parentNode.getAttribute('aria-selected')") == "true"
    page.keyboard.press("Escape")
    told(page, "")
    page.keyboard.press("Enter")
    told(page, "22.2")
    # a drag, and a second one with shift; then all of them are switched
    page.mouse.move(*middle(page, "24.2"))
    page.mouse.down()
    page.mouse.move(*middle(page, "23.5"), steps=4)
    page.mouse.up()
    told(page, "23.2-5,24.2-5")
    cell(page, "26.4").click(modifiers=["Control"])
    told(page, "23.2-5,24.2-5,26.4")
    page.get_by_role("button", name="Switch them off").click()
    page.get_by_text("with the heads switched").wait_for()
    rest(page)
    assert cell(page, "24.3").get_attribute("aria-pressed") == "true"
    assert cell(page, "24.3").get_attribute("aria-label").endswith(", switched")
    shot(page, "heads-many")
    page.keyboard.press("Escape")  # focus is on the button: the selection stays
    page.locator('[data-column="1"]').click()
    page.wait_for_function(f"() => ({SELECTED})().startsWith('0.1,1.1,2.1,')")


def middle(page, name: str) -> tuple[float, float]:
    box = cell(page, name).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_pattern_of_a_layer_is_coloured_anew_without_the_server_and_a_click_chooses_its_head(visit):
    page = visit("/?model=organism&map=Patterns&head=1.1")
    one = page.locator(".patterns .one")
    one.nth(7).wait_for()
    assert one.count() == 8 and one.nth(1).get_attribute("aria-pressed") == "true"
    assert one.nth(1).get_attribute("aria-label").startswith("layer 1, head 1: from the end most to token 7, ")
    before = one.nth(1).locator("canvas").evaluate("c => c.toDataURL()")
    page.locator(".patterns .bar button", has_text="linear").click()
    assert one.nth(1).locator("canvas").evaluate("c => c.toDataURL()") != before
    one.nth(1).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_text("Layer 1, head 2").first.wait_for()
    rest(page)
    assert page.locator('button[data-key="1.2"]').get_attribute("aria-current") == "true"
    shot(page, "heads-patterns")
