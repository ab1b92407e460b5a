"""The app in a real Chromium: what a person does on each screen, in the order of a first visit."""

import re
import time

import pytest

from tests.browser.conftest import rest, shot

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODEL = "circuit-copy-gqa"
PROMPT = "lantern velvet harbor quartz meadow lantern velvet"
EXPLORER = f"/?model={MODEL}&prompt={PROMPT.replace(' ', '+')}"


def head(page, name: str):
    return page.locator(f'button[data-key="{name}"]')


def see(page, text: str):
    page.get_by_text(text).first.wait_for()


def query(page, key: str) -> str:
    return page.evaluate(f"new URLSearchParams(location.search).get('{key}') || ''")


def test_a_head_is_clicked_walked_to_and_switched_off_and_a_reload_restores_it(visit, record_property):
    page = visit(EXPLORER)
    see(page, "greedy continuation")
    assert page.locator(".strip button").count() == len(PROMPT.split()) + 1  # BOS is shown
    before = page.locator(".wb-text").first.inner_text()
    head(page, "0.1").click()
    see(page, "Layer 0, head 1")
    start = time.perf_counter()
    head(page, "1.1").click()
    see(page, "Layer 1, head 1")
    record_property("head_click_ms", round(1000 * (time.perf_counter() - start)))
    page.keyboard.press("ArrowRight")
    see(page, "Layer 1, head 2")
    page.keyboard.press("ArrowLeft")
    see(page, "Layer 1, head 1")
    start = time.perf_counter()
    page.keyboard.press("x")  # the shortcut of the switch
    see(page, "with the heads switched")
    record_property("ablation_ms", round(1000 * (time.perf_counter() - start)))
    rest(page)
    assert (query(page, "head"), query(page, "off")) == ("1.1", "1.1")
    after = page.locator(".wb-text").nth(1).inner_text()
    assert (
        page.locator(".wb-text").first.inner_text() == before != after
    )  # without its copying head the circuit cannot go on
    shot(page, "explorer-light")
    page.reload()
    see(page, "with the heads switched")
    rest(page)
    assert "off" in head(page, "1.1").get_attribute("class") and page.locator(".wb-text").nth(1).inner_text() == after
    page.locator(".strip button").nth(2).click()
    see(page, "at token 2")
    head(page, "1.1").click(modifiers=["Shift"])
    page.get_by_text("with the heads switched").wait_for(state="detached")
    assert query(page, "off") == "" and query(page, "at") == "2"


def test_the_explorer_in_the_dark_with_its_layer_card(visit):
    page = visit(EXPLORER + "&card=Layer&head=1.1&off=1.3&colour=copying", dark=True)
    see(page, "logit lens at this layer")
    shot(page, "explorer-dark")
    page.locator("button.layer").last.click()
    see(page, "Layer 0")
    assert (
        page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        == "rgb(14, 17, 23)"
    )


def test_tokens_that_look_like_markup_are_shown_as_text(visit):
    page = visit(f"/?model={MODEL}&prompt=lantern+<img+src=x+onerror=window.hit=1>+velvet")
    see(page, "next token")
    assert page.evaluate("window.hit") is None and page.locator("img[src=x]").count() == 0


def start_run(page, lengths: str, seed: int) -> None:
    """Fill the form of the retrieval probe with a short run (or a long one) and start it."""
    page.get_by_role("button", name="Demo").click()
    rest(page)
    box = page.get_by_label("lengths", exact=True)
    box.fill(lengths)
    box.press("Enter")
    rest(page)
    page.get_by_text("Seed, precision, device").click()
    box = page.get_by_label("seed", exact=True)
    box.fill(str(seed))
    box.press("Enter")
    rest(page)
    page.locator('[data-testid="stBaseButton-primary"]').first.click()
    page.get_by_role("button", name="Cancel").first.wait_for()


def test_a_run_survives_a_reload_shows_in_two_tabs_is_cancelled_and_the_next_one_ends_on_its_figure(visit):
    address = f"/retrieval_heads?retrieval-heads.model={MODEL}"
    page = visit(address)
    shot(page, "probe-light")
    start_run(page, ",".join(map(str, range(200, 1000, 20))), 2)  # minutes, were it not cancelled
    other = visit(address)
    other.get_by_role("button", name="Cancel").first.wait_for()  # a second tab sees the same queue
    page.reload()
    page.get_by_role("button", name="Cancel").first.wait_for()
    page.get_by_text(re.compile("[0-9]+ of [0-9]+")).first.wait_for()
    shot(page, "probe-running")
    start = time.perf_counter()
    other.get_by_role("button", name="Cancel").first.click()
    other.get_by_role("button", name="Resume").first.wait_for()
    assert (
        time.perf_counter() - start < 8
    )  # two seconds for the computation, one for the page to look, on a busy machine
    page.get_by_role("button", name="Resume").first.wait_for()
    page.get_by_role("button", name="Dismiss").first.click()
    page.get_by_role("button", name="Resume").first.wait_for(state="detached")
    start_run(page, "64,128", 1)
    page.locator(".wb-facts b", has_text=MODEL).first.wait_for()  # the page turns to the finished run by itself
    page.locator(".js-plotly-plot").first.wait_for()
    assert query(page, "run").startswith("retrieval-heads-")


def test_a_figure_goes_home_as_a_vector_pdf_of_one_page(visit):
    page = visit("/retrieval_heads?run=retrieval-heads-000000000001&preset=single")
    page.locator(".js-plotly-plot").first.wait_for()
    shot(page, "probe-run-light")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="PDF").click()
    content = waiting.value.path().read_bytes()
    assert content.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", content)) == 1
    assert b"/Subtype /Image" not in content and b"/Font" in content
    assert waiting.value.suggested_filename == "retrieval-heads-000000000001-head_map.pdf"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_runs_and_compare_hold_together_in_light_and_dark(visit, dark):
    shade = "dark" if dark else "light"
    page = visit("/runs?run=retrieval-heads-000000000001", dark=dark)
    page.locator(".js-plotly-plot").first.wait_for()
    shot(page, f"runs-{shade}")
    page = visit("/compare?a=retrieval-heads-000000000001&b=retrieval-heads-000000000002", dark=dark, size=(1280, 900))
    page.locator(".js-plotly-plot").nth(3).wait_for()
    see(page, "Spearman")
    rest(page)
    shot(page, f"compare-{shade}")


def test_a_phone_can_read_it_without_scrolling_sideways(visit):
    for path, name in ((EXPLORER, "explorer"), ("/retrieval_heads?run=retrieval-heads-000000000001", "probe")):
        page = visit(path, size=(390, 844))
        page.wait_for_timeout(500)
        shot(page, f"phone-{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_run_id_from_the_address_bar_cannot_leave_the_runs_folder(visit):
    page = visit("/runs?run=../../etc")
    see(page, "There is no run")
