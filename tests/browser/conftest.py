"""One server and one Chromium for the whole suite; every page is watched for errors and for requests that leave this
machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.browser.serving import chromium, rest, serve
from tests.support import figure_runs

SHOTS = Path(__file__).parent / "screenshots"  # not in the repository
# Streamlit looks for its own address below the path of a deep link first, and is told 404; Chromium reports that as an
# error.
KNOWN = ("/_stcore/health", "/_stcore/host-config")

RUNS = {
    **{f"retrieval-heads-{i:012x}": figure_runs.retrieval(seed=i) for i in (1, 2, 3)},
    "concept-depth-000000000001": figure_runs.depth(),
    "knowledge-conflict-000000000001": figure_runs.conflict(),
    "data-selection-000000000001": figure_runs.selection(),
    "branching-factor-000000000001": figure_runs.branching(),
    "representation-geometry-000000000001": figure_runs.geometry(),
}

# Layout shifts (Layout Instability API) once anything of the page can be seen; before that an empty frame takes its
# place.
SHIFTS = """
window.shifts = []; window.seen = null;
(function look() {
  const page = document.querySelector('.st-key-page');
  if (page && page.clientHeight > 2 && getComputedStyle(page).visibility === 'visible' && page.innerText.trim()) window.seen = performance.now();
  else requestAnimationFrame(look);
})();
new PerformanceObserver((list) => window.shifts.push(...list.getEntries())).observe({ type: 'layout-shift', buffered: true });
"""  # noqa: E501


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache with finished runs of every probe, before the server first looks at it."""
    from tests.support.app_screens import keep

    root = tmp_path_factory.mktemp("cached") / "lab [1] *ü%"
    root.mkdir()
    before = os.environ.get("WORKBENCH_CACHE")
    os.environ["WORKBENCH_CACHE"] = str(root)
    for identifier, fake in RUNS.items():
        keep(fake, identifier)
    if before is None:
        del os.environ["WORKBENCH_CACHE"]
    else:
        os.environ["WORKBENCH_CACHE"] = before
    return root


@pytest.fixture(scope="session")
def server(cache):
    """The app as `workbench app` starts it, on a free port; gives its address."""
    with serve(cache) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: `make setup` installs one")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(server, browser):
    """visit(path, dark=False, size=(1280, 720), resting=True) → a page that has come to rest. At the end: no error in
    any console, no request abroad."""
    pages, complaints = [], []

    def note(message):
        if message.type == "error" and not any(known in (message.location or {}).get("url", "") for known in KNOWN):
            complaints.append(f"console: {message.text}")

    def abroad(request):
        if not request.url.startswith((server, server.replace("http", "ws"), "data:", "blob:")):
            complaints.append(f"request to {request.url}")

    def open_one(path: str = "/", *, dark: bool = False, size: tuple[int, int] = (1280, 720), resting: bool = True):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(SHIFTS)
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(f"page: {error}"))
        page.on("request", abroad)
        page.goto(server + path)
        pages.append(context)
        if resting:  # a page that follows a running job on a busy machine may never come to rest
            rest(page)
        return page

    yield open_one
    for i, context in enumerate(pages):
        for page in context.pages:
            shot(page, f"last-{i}")  # what was on the screen when the test ended, however it did
    for context in pages:
        context.close()
    assert complaints == []


def jumps(page, since: float | None = None) -> float:
    """Sum of the layout shifts since a moment (that in which the page was first seen), also of those that follow an
    input: never less than the cumulative layout shift of web.dev/cls."""
    assert page.evaluate("window.seen") is not None
    return page.evaluate(
        "(since) => window.shifts.filter((e) => e.startTime > (since ?? window.seen)).reduce((sum, e) => sum "
        "+ e.value, 0)",
        since,
    )


def cut_buttons(page) -> list[str]:
    """The labels that do not fit into their buttons."""
    return page.evaluate(
        """() => [...document.querySelectorAll('[data-testid="stMain"] button, [data-testid="stMain"] a[role=button]')]
        .filter((b) => b.offsetParent && b.innerText.trim())
        .filter((b) => b.scrollWidth > b.clientWidth + 1 || [...b.querySelectorAll('p, div')].some((e) => e.scrollWidth > e.clientWidth + 1))
        .map((b) => b.innerText)"""  # noqa: E501
    )


def too_wide(page) -> list[str]:
    """What cannot be read without scrolling the page sideways: the page itself, or a table outside a box of its own
    that scrolls."""
    return page.evaluate(
        """() => {
        const main = document.querySelector('[data-testid="stMain"]'), wide = [];
        if (main.scrollWidth > main.clientWidth + 1) wide.push(`the page: ${main.scrollWidth} in ${main.clientWidth}`);
        for (const t of document.querySelectorAll('table.wb')) {
            const box = t.closest('.wb-scroll');
            const edge = (box || t).getBoundingClientRect().right;
            if (t.offsetParent && edge > window.innerWidth + 1) wide.push(`a table ends at ${edge}: ${t.innerText.slice(0, 40)}`);
        }
        return wide;
        }"""  # noqa: E501
    )


def shot(page, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")
