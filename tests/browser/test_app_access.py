"""Everybody can use the app: axe-core finds nothing serious on any screen, and the Explorer needs no mouse."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser import screens
from tests.browser.conftest import shot
from tests.browser.serving import rest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

GRAVE = ("serious", "critical")
# Streamlit's own markup, which the project cannot reach: (rule, what it is inside of) and why it stays.
OF_STREAMLIT = {
    ("list", '[data-testid="stSidebarNavItems"]'): "the side bar puts its sections, not items, into its list",
    ("listitem", '[data-testid="stSidebarNavItems"]'): "the side bar puts its sections, not items, into its list",
}
WITHIN = """([target, around]) => {
  let root = document, found = null;
  for (const selector of [target].flat(3)) { found = root.querySelector(selector); root = found && found.shadowRoot; }
  return found !== null && found.closest(around) !== null;
}"""


def findings(page, rules: tuple[str, ...] = ()) -> list[str]:
    """What axe-core finds that is grave, one line each; of all rules, or of these."""
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    lines = []
    for rule in Axe().run(page, options=options).response["violations"]:
        if rule["impact"] not in GRAVE:
            continue
        for node in rule["nodes"]:
            excused = [around for name, around in OF_STREAMLIT if name == rule["id"]]
            if not any(page.evaluate(WITHIN, [node["target"], around]) for around in excused):
                lines.append(f"{rule['id']}: {node['html'][:160]} {' '.join(node['failureSummary'].split())[:200]}")
    return lines


def in_both_lights(page, name: str) -> list[str]:
    """What is grave on a page as it stands, in light and then, of its contrast, in dark."""
    found = [f"{name}, light: {line}" for line in findings(page)]
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "() => getComputedStyle(document.querySelector('[data-testid=stApp]')).colorScheme === 'dark'"
    )
    page.wait_for_timeout(150)
    rest(page)
    found += [f"{name}, dark: {line}" for line in findings(page, ("color-contrast",))]
    page.emulate_media(color_scheme="light")
    rest(page)
    return found


def test_axe_core_finds_nothing_serious_on_any_screen_with_any_card_or_map_in_light_and_dark(visit, server):
    page = visit("/")
    found, seen = [], []
    for name in screens.walk(page, server, screens.places(page)):
        seen.append(name)
        assert page.locator("h1").count() == 1, name
        found += in_both_lights(page, name)
    assert {"explorer-card-head", "explorer-map-lens", "retrieval_heads", "runs", "compare"} <= set(seen)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["Examples", "Sets", "Take home"])
def test_axe_core_finds_nothing_serious_in_what_opens_over_the_explorer(visit, name):
    page = visit(screens.explorer())
    page.get_by_test_id("stPopover").get_by_role("button", name=name).click()
    page.get_by_test_id("stPopoverBody").wait_for()
    rest(page)
    found = in_both_lights(page, name)
    assert not found, "\n".join(found)


def test_axe_core_sees_into_the_components_and_a_pale_word_is_found(visit):
    page = visit(screens.explorer())
    page.locator(".strip button").first.evaluate(
        "b => { b.style.background = '#ffffff'; b.style.color = '#bbbbbb'; b.removeAttribute('aria-label'); }"
    )
    assert any(line.startswith("color-contrast") for line in findings(page, ("color-contrast",)))


FOCUSED = """() => {
  let e = document.activeElement;
  while (e && e.shadowRoot && e.shadowRoot.activeElement) e = e.shadowRoot.activeElement;
  return e;
}"""


def tab_to(page, what: str, *, back: bool = False) -> None:
    """Press Tab until what matches the selector has the focus; a hundred stops are too many for anybody."""
    for _ in range(100):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate(f"(what) => {{ const e = ({FOCUSED})(); return e !== null && e.matches(what); }}", what):
            return
    raise AssertionError(f"no {what} within a hundred stops")


def focused(page, attribute: str) -> str:
    return page.evaluate(f"(name) => ({FOCUSED})().getAttribute(name)", attribute)


def says(page, text: str) -> None:
    page.get_by_text(text).first.wait_for()
    rest(page)


def arrow_to(page, choice: str, *, most: int = 8) -> None:
    """Go through a row of buttons with the arrows, from its left end, and press the one of this name."""
    for _ in range(most):
        page.keyboard.press("ArrowLeft")
    for _ in range(most):
        if page.evaluate(f"() => ({FOCUSED})().innerText.trim()") == choice:
            page.keyboard.press("Space")
            page.wait_for_timeout(150)
            rest(page)
            return
        page.keyboard.press("ArrowRight")
    raise AssertionError(f"{choice} is not in this row")


def test_landing_switching_patching_reading_the_lens_and_taking_it_home_need_no_mouse(visit):
    page = visit(screens.explorer())
    says(page, "greedy continuation")
    assert page.get_by_role("option", name="insect, position 7", exact=False).count() == 1
    tab_to(page, '[role="option"]')
    assert focused(page, "aria-selected") == "true" and focused(page, "tabindex") == "0"
    page.keyboard.press("Home")
    says(page, "at token 0")
    page.keyboard.press("ArrowRight")
    says(page, "at token 1")
    assert focused(page, "data-i") == "1"  # the screen was drawn again, and the keyboard is where it was
    page.keyboard.press("End")
    says(page, "at token 22")
    tab_to(page, 'button[data-key="1.0"]')
    page.keyboard.press("ArrowRight")
    says(page, "Layer 1, head 1")
    page.keyboard.press("Space")
    says(page, "heads 1.1 switched")
    tab_to(page, '[role="radiogroup"][aria-label="Map"] button')
    arrow_to(page, "Patching")
    tab_to(page, '[role="gridcell"][data-cell]')
    page.keyboard.press("Home")
    says(page, "at token 0")
    page.keyboard.press("ArrowUp")
    says(page, "Layer 2, head 1")
    assert focused(page, "data-cell") == "2.0" and focused(page, "aria-label").startswith("layer 2, position 0")
    tab_to(page, '[role="radiogroup"][aria-label="Map"] button', back=True)
    arrow_to(page, "Lens")
    tab_to(page, '[role="gridcell"][data-cell]')
    page.keyboard.press("ArrowRight")
    says(page, "at token 1")
    assert focused(page, "aria-label").startswith("layer 2, token 1 ' The': ' census' ")
    shot(page, "by-keyboard")
    tab_to(page, '[data-testid="stPopover"] button', back=True)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="CSV").wait_for()
    tab_to(page, '[data-testid="stDownloadButton"] button')
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    assert waiting.value.suggested_filename.startswith("organism-lens")
