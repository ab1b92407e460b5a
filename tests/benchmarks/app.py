"""The app in a real Chromium against the limits it is held to: first paint, a click on a head, a head switched off.

Run: ``python -m tests.benchmarks app``. The server is the one of `workbench app`, the model the organism; times are
what a person waits, taken inside the page: from the click event (or the start of the navigation) until the frame is
drawn that has the changed words. Playwright only moves the mouse. Its own waiting for elements to be still and its
questions to the browser, some 50 ms of a click, are no part of the times. Medians; a busy machine makes them longer."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from tests.browser.serving import chromium, rest, serve

NAME = "app"
LIMITS = {"first paint": 3000.0, "head click": 300.0, "ablation": 500.0}  # milliseconds
ROUNDS = {"smoke": 3, "small": 15}

# wait_for_words(words, start): milliseconds from `start` until the frame after the one in which the words came into the
# main part.
WAIT = """
window.wait_for_words = (words, start) => new Promise((done) => {
  const there = () => (document.querySelector('[data-testid="stMain"]') || { textContent: '' }).textContent.includes(words);
  const look = () => {
    if (!there()) return false;
    seen.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));  // the task after the drawing
    return true;
  };
  const seen = new MutationObserver(look);
  look() || seen.observe(document, { subtree: true, childList: true, characterData: true });
});
"""  # noqa: E501
# performance.now() is 0 at the start of the navigation
LOADED = "window.elapsed = window.wait_for_words('greedy continuation', 0);"
CLICKED = """(words) => {
  window.elapsed = new Promise((done) => {
    document.addEventListener('click', (event) => window.wait_for_words(words, event.timeStamp).then(done), { capture: true, once: true });
  });
}"""  # noqa: E501


def measure(device: str = "cpu", scale: str = "small") -> list[dict]:
    """One row per interaction: ``reference`` is the limit, ``ours`` the median in milliseconds, ``ratio`` how often
    ours fits into the limit."""
    from playwright.sync_api import sync_playwright

    rounds = ROUNDS.get(scale, ROUNDS["small"])
    path = chromium()
    if path is None:
        raise RuntimeError("the app is measured in a Chromium: `make setup` installs one")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        times = _times(browser, f"{address}/?model=organism", rounds)
        browser.close()
    return [_row(name, times[name], limit) for name, limit in LIMITS.items()]


def _times(browser, address: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each interaction. The model is loaded once before: a first visit ends with it warm."""
    found: dict[str, list[float]] = {name: [] for name in LIMITS}
    page = _open(browser, address, [])
    page.context.close()
    for _ in range(max(3, rounds // 3)):
        _open(browser, address, found["first paint"]).context.close()
    page = _open(browser, address, [])
    heads = [(layer, head) for layer in (0, 2, 4, 1, 3) for head in (0, 3, 5)]
    for layer, head in (heads * rounds)[: rounds + 1]:
        cell = page.locator(f'button[data-key="{layer}.{head}"]')
        found["head click"].append(_click(page, cell, f"Layer {layer}, head {head}"))
        found["ablation"].append(_click(page, cell, f"heads {layer}.{head} switched", modifiers=["Shift"]))
        cell.click(modifiers=["Shift"])
        page.get_by_text("with the heads switched").wait_for(state="detached")
        rest(page)
    page.context.close()
    return {name: values[1:] if len(values) > 1 else values for name, values in found.items()}  # the first one warms up


def _open(browser, address: str, times: list[float]):
    page = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(WAIT + LOADED)
    page.goto(address, wait_until="commit")
    _note(page, "greedy continuation", times)
    return page


def _click(page, cell, words: str, **how) -> float:
    """Milliseconds from a click on a head to the frame that has these words."""
    page.evaluate(CLICKED, words)
    cell.click(**how)
    return _note(page, words, [])


def _note(page, words: str, times: list[float]) -> float:
    """What the page measured, once the words can be seen and the page rests."""
    page.get_by_text(words).first.wait_for()
    times.append(page.evaluate("window.elapsed"))
    rest(page)
    return times[-1]


def _row(name: str, times: list[float], limit: float) -> dict:
    ours = statistics.median(times)
    return {
        "name": f"app: {name}",
        "unit": "ms",
        "reference": limit,
        "ours": ours,
        "ratio": limit / ours,
        "agreement": "within the limit" if ours <= limit else "over the limit",
        "details": {
            "against": "the limit of the design",
            "n": len(times),
            "slowest_ms": max(times),
            "model": "organism",
            "ratio_low": limit / max(times),
            "ratio_high": limit / min(times),
        },
    }
