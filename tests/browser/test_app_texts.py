"""Texts from outside are read on the screens as they are: no link, picture, icon, formula or colour comes of them."""

import json
import shutil
from urllib.parse import quote

import pytest

from tests.browser.serving import rest
from tests.support.app_screens import keep
from tests.support.figure_runs import retrieval

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = (
    "see http://evil.example and www.evil.example or me@evil.example [x](http://evil.example) "
    "![i](http://evil.example/i.png) :red[red] :smile: :material/home: :streamlit: $x^2$ **bold** <b>b</b> "
    "<a href='http://evil.example'>k</a> `code` -> <- <-> -- >= ~= https://evil.example/a_b_c &lt; &amp; 1. #1"
)
RUN = "retrieval-heads-0000000000ee"
# What Markdown would have made of it. Headings link to themselves, the app to its runs; figures have buttons.
MADE = """() => [...document.querySelectorAll('[data-testid=stMain] a:not([href^="#"]), [data-testid=stMain] img, '
  + '.katex, [data-testid=stMain] [data-testid=stMarkdownContainer] :is(code, strong, h1, h2, li, [color], [style*=color])')]
  .filter(e => e.closest('[data-testid=stHeading]') === null && !/^(\\/|[a-z_]+\\?run=[a-z0-9-]+$)/.test(e.getAttribute('href') || ''))
  .map(e => e.outerHTML.slice(0, 200))"""  # noqa: E501


@pytest.fixture
def hostile_run(cache, monkeypatch):
    """A run of a cache that is written by somebody else: its model, messages, notes and the name of a table."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    fake = retrieval(name=HOSTILE.replace("/", "|"))
    keep(fake, RUN, warnings=[HOSTILE], status="failed", error={"message": HOSTILE, "type": "X"})
    folder = cache / "runs" / RUN
    (folder / "notes.json").write_text(json.dumps({"tags": [HOSTILE], "note": HOSTILE}))
    shutil.copy(folder / "tables" / "heads.parquet", folder / "tables" / "![i](x) :material∕home: **b**.parquet")
    yield RUN
    shutil.rmtree(folder)


def test_words_of_runs_and_addresses_are_read_as_they_are(hostile_run, visit, server):
    page = visit(f"/runs?run={RUN}")
    for path, there in (
        (f"/runs?run={RUN}", "This run is failed"),
        (f"/retrieval_heads?run={RUN}&part=Tables", "This run is failed"),
        (f"/?prompt=x&model={quote(HOSTILE)}", "evil"),
        (f"/?prompt={quote(HOSTILE)}&model=circuit-copy-gqa", "tokens as they are fed"),
    ):
        page.goto(server + path)
        page.wait_for_function("(there) => document.body.innerText.includes(there)", arg=there)
        rest(page)
        assert page.evaluate(MADE) == [], path
        assert page.locator("[data-testid=stMain] [data-testid=stIconMaterial]", has_text="home").count() == 0
    page.goto(f"{server}/runs?run={RUN}")
    alert = """() => [...document.querySelectorAll("[data-testid=stAlert]")].map(shown => shown.innerText)
        .find(text => text.includes("This run is failed"))"""
    # in one look: the screen is drawn more than once, and what is not drawn at the moment has no text
    said = page.wait_for_function(alert).json_value().replace("\u2060", "")
    assert said.strip() == "This run is failed. " + HOSTILE


def test_names_in_a_figure_on_the_screen_are_read_as_they_are(hostile_run, visit):
    page = visit(f"/retrieval_heads?run={RUN}")
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    title = page.locator("[data-testid=stHtml] b", has_text="www.evil.example").first  # above the figure
    title.wait_for()
    assert title.locator("*").count() == 0 and page.locator(".js-plotly-plot a").count() == 0
