"""The app in a real Chromium against the limits that it is held to: first paint, clicks, maps, the list of runs, a PDF.

Run: ``python -m tests.benchmarks app``. The server is the one of `workbench app`, the model the organism, prompts have
64 and 512 tokens, the cache has no run, 300 or 1,000. Times are what a person waits, taken inside the page: from the
click event (or the start of the navigation) until the frame is drawn that shows what was asked for. Playwright only
moves the mouse: its own waiting for elements to be still and its questions to the browser, some 50 ms of a click, are
no part of the times (they are of the PDF's, which ends with the file). Medians; a busy machine makes them longer."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from tests.browser.serving import chromium, rest, serve

NAME = "app"
MODEL = "organism"
SHORT, LONG = 64, 512  # tokens of the prompts
ROUNDS = {"smoke": 2, "small": 11}  # the first of a page warms up
COLD = {"smoke": 1, "small": 9}
# Milliseconds of clicks by the length of the prompt, then of the rest.
CLICKS = {
    "head click": {SHORT: 200.0, LONG: 500.0},
    "token click": {SHORT: 200.0, LONG: 500.0},
    "layer click": {SHORT: 200.0, LONG: 500.0},
    "head switched": {SHORT: 300.0, LONG: 300.0},
    "lens map": {SHORT: 500.0, LONG: 500.0},
}
REST = {"first paint, cold": 8000.0, "first paint, warm": 2000.0, "Runs, 1,000 runs": 1000.0, "PDF of a map": 4000.0}

# until(there, start): milliseconds from `start` until the task after the frame in which there() was first true.
WAIT = """
window.until = (there, start) => new Promise((done) => {
  const look = () => there() ? setTimeout(() => done(performance.now() - start)) : requestAnimationFrame(look);
  look();
});
window.shown = (words) => () => {
  const main = document.querySelector('[data-testid="stMain"]'), parts = [...document.querySelectorAll('.st-key-view, .st-key-page')];
  return main !== null && main.textContent.includes(words) && parts.every((e) => getComputedStyle(e).visibility === 'visible');
};
window.inside = (key, selector) => {  // the first match in the components of a key
  for (const host of document.querySelectorAll(`.st-key-${key} *`)) {
    const found = host.shadowRoot && host.shadowRoot.querySelector(selector);
    if (found) return found;
  }
  return document.querySelector(`.st-key-${key} ${selector}`);
};
"""  # noqa: E501
# performance.now() is 0 at the start of the navigation
LOADED = "window.elapsed = window.until(window.shown('next token'), 0);"
CLICKED = """() => {
  window.elapsed = new Promise((done) => {
    document.addEventListener('click', (e) => window.until(THERE, e.timeStamp).then(done), { capture: true, once: true });
  });
}"""  # noqa: E501


def measure(device: str = "cpu", scale: str = "small") -> list[dict]:
    """One row per interaction: ``reference`` is the limit, ``ours`` the median in milliseconds, ``ratio`` how often
    ours fits into the limit."""
    path = chromium()
    if path is None:
        raise RuntimeError("the app is measured in a Chromium: `make setup` installs one")
    from playwright.sync_api import sync_playwright

    rounds, rows = ROUNDS.get(scale, ROUNDS["small"]), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        cold = [ms for _ in range(COLD.get(scale, COLD["small"])) for ms in _cold(browser)]
        rows.append(_row("first paint, cold", cold, REST["first paint, cold"]))
        with _served(0) as address:
            warm = [_open(browser, f"{address}/?model={MODEL}", close=True) for _ in range(rounds)][1:]
            rows.append(_row("first paint, warm", warm, REST["first paint, warm"]))
            for tokens in (SHORT, LONG):
                rows += _clicks(browser, address, tokens, rounds)
            rows.append(_row("PDF of a map", _pdf(browser, address, rounds), REST["PDF of a map"]))
        with _served(300) as address:
            rows += _clicks(browser, address, SHORT, rounds, runs=300)
        with _served(1000) as address:
            rows.append(_row("Runs, 1,000 runs", _runs(browser, address, rounds), REST["Runs, 1,000 runs"]))
        browser.close()
    return rows


@contextmanager
def _served(count: int) -> Iterator[str]:
    """The app over a cache with so many runs."""
    with tempfile.TemporaryDirectory() as folder:
        if count:
            from tests.support import many_runs

            many_runs.make(Path(folder), count, model=MODEL)
        with serve(Path(folder)) as address:
            yield address


def _cold(browser) -> Iterator[float]:
    with _served(0) as address:
        yield _open(browser, f"{address}/?model={MODEL}", close=True)


def _prompt(tokens: int) -> str:
    """Words of the model's own world, as many as fit into a prompt of this length."""
    from workbench.explorer import example_prompts
    from workbench.models.loading import load

    model = load(MODEL)
    words = [word for text in example_prompts.prompts(MODEL) for word in text.split()] * tokens
    count = next(n for n in range(2, len(words)) if len(model.encode(" ".join(words[:n]))) > tokens) - 1
    return " ".join(words[:count])


def _page(browser):
    page = browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True).new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(WAIT + LOADED)
    return page


def _open(browser, address: str, *, close: bool = False):
    """Milliseconds until the Explorer shows what comes next, or the page once it rests."""
    page = _page(browser)
    page.goto(address, wait_until="commit")
    page.get_by_text("next token").first.wait_for()
    ms = page.evaluate("window.elapsed")
    rest(page)
    if close:
        page.context.close()
        return ms
    return page


def _clicks(browser, address: str, tokens: int, rounds: int, *, runs: int = 0) -> list[dict]:
    """What a click costs on a prompt of this length."""
    query = urlencode({"model": MODEL, "prompt": _prompt(tokens), "map": "Waterfall"})
    page = _open(browser, f"{address}/?{query}")
    places = [(layer, head) for layer in (0, 2, 4, 1, 3) for head in (0, 3, 5)]
    times: dict[str, list[float]] = {name: [] for name in CLICKS}
    for turn, (layer, head) in enumerate((places * rounds)[:rounds]):
        cell, at = page.locator(f'button[data-key="{layer}.{head}"]'), 3 + 2 * turn
        times["head click"].append(_click(page, cell, _words(f"Layer {layer}, head {head}")))
        times["token click"].append(
            _click(page, page.locator(f'.strip button[data-i="{at}"]'), _words(f"at token {at},"))
        )
        times["head switched"].append(_click(page, cell, _words(f"heads {layer}.{head} switched"), modifiers=["Shift"]))
        # a lens that nobody has asked for yet: of the model with this head switched
        lens = page.get_by_role("radio", name="Lens", exact=True)
        times["lens map"].append(_click(page, lens, "() => window.inside('lens-map', '[data-cell=\"0.0\"]') !== null"))
        _choose(page, "Waterfall")
        button = page.locator(f'button[data-layer="{(layer + 1) % 5}"]')
        times["layer click"].append(_click(page, button, _words(f"Layer {(layer + 1) % 5} (of 0")))
        _choose(page, "Head")
        page.get_by_role("button", name="All on").click()
        page.wait_for_function("() => !(window.shown('heads switched')())")
        rest(page)
    page.context.close()
    more = f", {runs} runs" if runs else ""
    return [_row(f"{name}, {tokens} tokens{more}", times[name][1:], CLICKS[name][tokens]) for name in CLICKS]


def _runs(browser, address: str, rounds: int) -> list[float]:
    """From the link in the side bar to the table of runs."""
    page, times = _open(browser, f"{address}/?model={MODEL}"), []
    bar = page.get_by_test_id("stSidebarNav")
    there = '() => document.querySelector(\'[data-testid="stMain"] [data-testid="stDataFrame"] canvas\') !== null'
    for _ in range(rounds):
        times.append(_click(page, bar.get_by_role("link", name="Runs", exact=True), there))
        bar.get_by_role("link", name="Explorer", exact=True).click()
        page.get_by_text("next token").first.wait_for()
        rest(page)
    page.context.close()
    return times[1:]


def _pdf(browser, address: str, rounds: int) -> list[float]:
    """From the click on PDF to the file."""
    page, times = _open(browser, f"{address}/?model={MODEL}&map=Waterfall"), []
    page.get_by_role("button", name=re.compile("Take home")).click()
    for _ in range(rounds):
        start = time.perf_counter()
        with page.expect_download() as waiting:
            page.get_by_role("button", name="PDF", exact=True).click()
        waiting.value.path()
        times.append(1000 * (time.perf_counter() - start))
    page.context.close()
    return times[1:]


def _words(text: str) -> str:
    """There: these words in the main part."""
    return f"window.shown({text!r})"


def _choose(page, choice: str) -> None:
    page.get_by_role("radio", name=choice, exact=True).click()
    page.wait_for_timeout(100)
    rest(page)


def _click(page, what, there: str, **how) -> float:
    """Milliseconds from a click to the frame in which ``there``, a function in JavaScript, is true."""
    page.evaluate(CLICKED.replace("THERE", there))
    what.click(**how)
    ms = page.evaluate("window.elapsed")
    rest(page)
    return ms


def _row(name: str, times: list[float], limit: float) -> dict:
    ours = statistics.median(times)
    return {
        "name": f"{NAME}: {name}",
        "unit": "ms",
        "reference": limit,
        "ours": ours,
        "ratio": limit / ours,
        "agreement": "within the limit" if ours <= limit else "over the limit",
        "details": {
            "against": "the limit of the design",
            "n": len(times),
            "milliseconds": times,
            "model": MODEL,
            "ratio_low": limit / max(times),
            "ratio_high": limit / min(times),
        },
    }
