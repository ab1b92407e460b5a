"""The ways into the Explorer, in a real Chromium: its path, rows of a run's table, a prompt of several lines."""

import shutil

import polars as pl
import pytest

from tests.browser.conftest import shot, too_wide
from tests.browser.serving import rest
from tests.support import figure_runs

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODEL = "circuit-copy-gqa"


def query(page, key: str) -> str:
    return page.evaluate(f"new URLSearchParams(location.search).get('{key}') || ''")


def test_explorer_is_a_path_that_works_from_a_bookmark_a_reload_and_the_sidebar_and_keeps_what_it_asks_for(
    visit, server
):
    page = visit(f"/explorer?model={MODEL}&prompt=lantern%5Cnvelvet&head=1.2")  # a link of before
    page.get_by_text("Layer 1, head 2").first.wait_for()
    box = page.get_by_label("Prompt", exact=True)
    assert box.input_value() == "lantern\nvelvet" and page.get_by_role("dialog").count() == 0
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Runs", exact=True).click()
    page.get_by_role("heading", name="Runs", exact=True).wait_for()
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Explorer", exact=True).click()
    page.get_by_text("Layer 1, head 2").first.wait_for()  # what was looked at is still there
    rest(page)
    assert box.input_value() == "lantern\nvelvet" and query(page, "head") == "1.2"
    page.reload()
    page.get_by_text("Layer 1, head 2").first.wait_for()
    page.goto(f"{server}/explorer")
    page.get_by_text("greedy continuation").first.wait_for()
    assert page.get_by_role("dialog").count() == 0


def test_a_prompt_of_many_lines_is_typed_as_it_is_and_the_answer_stays_in_sight(visit):
    page = visit(f"/?model={MODEL}&prompt=lantern+velvet+harbor&at=1")
    page.get_by_text("at token 1").first.wait_for()
    box = page.get_by_label("Prompt", exact=True)
    one = box.bounding_box()["height"]
    box.fill("lantern velvet\nharbor quartz\nlantern")
    box.press("Control+Enter")
    page.get_by_text("at token 5").first.wait_for()  # the last one: the position went with its prompt
    rest(page)
    assert query(page, "prompt") == "lantern velvet\nharbor quartz\nlantern" and query(page, "at") == ""
    assert one < 45 < box.bounding_box()["height"] < 90
    answer = page.locator("table.wb tr").nth(1).bounding_box()
    assert answer["y"] + answer["height"] < 720
    shot(page, "prompt-of-lines")


def test_a_selected_row_of_a_runs_table_opens_as_the_prompt_that_was_fed(visit, cache, monkeypatch):
    from tests.support.app_screens import keep
    from workbench.models.loading import load
    from workbench.runs.execution import runs_root

    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    model = load(MODEL)
    fake = figure_runs.retrieval(layers=2, heads=4, kv_heads=2, name=MODEL, seed=5)
    about = {**fake.info["model"], "fingerprint": model.fingerprint}
    identifier = keep(fake, "retrieval-heads-000000000005", model=about)
    try:
        ids = [model.encode(text) for text in ("lantern velvet harbor", "quartz meadow quartz")]
        tables = runs_root() / identifier / "tables"
        pl.DataFrame({"row": [0, 1], "ids": ids}).write_parquet(tables / "inputs.parquet")
        pl.DataFrame({"trial": [1, 0], "recall": [1.0, 0.0]}).write_parquet(tables / "trials.parquet")
        page = visit(f"/retrieval_heads?run={identifier}&part=Tables&table=trials")
        table = page.get_by_test_id("stDataFrame")
        table.wait_for()
        rest(page)
        table.click(position={"x": 12, "y": 35 + 17})  # the box of the first row
        page.get_by_role("button", name="Open as prompt").wait_for()
        rest(page)
        shot(page, "row-as-prompt")
        assert too_wide(page) == []
        page.get_by_role("button", name="Open as prompt").click()
        page.get_by_text("greedy continuation").first.wait_for()
        rest(page)
        assert (query(page, "prompt"), query(page, "model")) == ("quartz meadow quartz", MODEL)
    finally:
        shutil.rmtree(runs_root() / identifier)


OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('.js-plotly-plot .g-xtitle text, .js-plotly-plot [class^=g-x] text')]
    .map((e) => e.getBoundingClientRect());
  return [boxes.length, boxes.filter((a, i) => boxes.some((b, k) => k > i && a.left < b.right && b.left < a.right
    && a.top < b.bottom && b.top < a.bottom)).length];
}"""


def test_axis_titles_of_panels_beside_each_other_do_not_print_over_each_other_on_a_phone(visit):
    page = visit("/branching_factor?run=branching-factor-000000000001", size=(390, 844))
    page.locator(".js-plotly-plot").first.wait_for()
    rest(page)
    shot(page, "phone-panels")
    count, over = page.evaluate(OVERLAPS)
    assert count >= 2 and over == 0 and too_wide(page) == []
    page.add_style_tag(content='[class*="st-key-wide"] > * {min-width: 0 !important}')  # as it was before
    page.wait_for_function(f"({OVERLAPS})()[1] > 0")
