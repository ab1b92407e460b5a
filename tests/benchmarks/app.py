"""The app in a real Chromium against the limits it is held to: first paint, a click on a head, a head switched off.

Run: ``python -m tests.benchmarks app``. The server is the one of `workbench app`, the model the organism; times are what a person
waits, from the click to the changed words on the screen. Medians; a busy machine makes them longer."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.browser.serving import chromium, rest, serve

NAME = "app"
LIMITS = {"first paint": 3000.0, "head click": 300.0, "ablation": 500.0}  # milliseconds
ROUNDS = {"smoke": 3, "small": 15}


def measure(device: str = "cpu", scale: str = "small") -> list[dict]:
    """One row per interaction: ``reference`` is the limit, ``ours`` the median in milliseconds, ``ratio`` how often ours fits into the limit."""
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
    page.close()
    for _ in range(max(3, rounds // 3)):
        _open(browser, address, found["first paint"]).context.close()
    page = _open(browser, address, [])
    heads = [(layer, head) for layer in (0, 2, 4, 1, 3) for head in (0, 3, 5)]
    for layer, head in (heads * rounds)[: rounds + 1]:
        cell = page.locator(f'button[data-key="{layer}.{head}"]')
        found["head click"].append(_until(page, cell.click, f"Layer {layer}, head {head}"))
        found["ablation"].append(_until(page, lambda cell=cell: cell.click(modifiers=["Shift"]), f"heads {layer}.{head} switched"))
        cell.click(modifiers=["Shift"])
        page.get_by_text("with the heads switched").wait_for(state="detached")
        rest(page)
    page.context.close()
    return {name: values[1:] if len(values) > 1 else values for name, values in found.items()}  # the first one warms up


def _open(browser, address: str, times: list[float]):
    page = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
    page.set_default_timeout(120_000)
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.get_by_text("greedy continuation").first.wait_for()
    times.append(1000 * (time.perf_counter() - start))
    rest(page)
    return page


def _until(page, act, words: str) -> float:
    """Milliseconds from an action to the frame in which these words are on the page."""
    start = time.perf_counter()
    act()
    page.get_by_text(words).first.wait_for()
    elapsed = 1000 * (time.perf_counter() - start)
    rest(page)
    return elapsed


def _row(name: str, times: list[float], limit: float) -> dict:
    ours = statistics.median(times)
    return {
        "name": f"app: {name}", "unit": "ms", "reference": limit, "ours": ours, "ratio": limit / ours,
        "agreement": "within the limit" if ours <= limit else "over the limit",
        "details": {"against": "the limit of the design", "n": len(times), "slowest_ms": max(times), "model": "organism",
                    "ratio_low": limit / max(times), "ratio_high": limit / min(times)},
    }  # fmt: skip
