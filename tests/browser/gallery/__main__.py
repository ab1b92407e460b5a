"""Take the README's pictures: ``python -m tests.browser.gallery [names]``. The runs that are shown are made first where
they are missing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tests.browser import screens
from tests.browser.gallery import animation
from tests.browser.serving import chromium, rest, serve

HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 800}
MAPS = ("lens", "waterfall", "patching")
WALK = "walk.webp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which pictures (default: all)")
    parser.add_argument(
        "--cache", type=Path, help="where the runs are or will be (default: the cache of this checkout)"
    )
    options = parser.parse_args()
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
        os.environ["WORKBENCH_CACHE"] = str(options.cache.resolve())
    from playwright.sync_api import sync_playwright

    from workbench.core import paths

    wanted = options.names or ["explorer", "retrieval-heads", "compare", *MAPS, WALK]
    runs = shots() if set(wanted) - {*MAPS, WALK} else {}
    with serve(paths.cache_root()) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for name, (path, dark, words) in runs.items():
            if name in wanted:
                page = opened(browser, address + path, dark=dark)
                page.get_by_text(words).first.wait_for() if words else page.locator(".js-plotly-plot").first.wait_for()
                rest(page)
                page.screenshot(path=HERE / f"{name}.png")
        for name in MAPS:
            if name in wanted:
                page = opened(browser, address + screens.explorer(map=name.capitalize()))
                page.locator(".js-plotly-plot" if name == "waterfall" else ".map button").first.wait_for()
                rest(page)
                below(page, HERE / f"{name}.png")
        if WALK in wanted:
            animation.take(browser, address, HERE / WALK)
        browser.close()


def opened(browser, address: str, *, dark: bool = False):
    page = browser.new_context(viewport=SIZE, color_scheme="dark" if dark else "light").new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    return page


def below(page, path: Path) -> None:
    """A picture of the map alone: from the row that chooses it to the end of the screen."""
    tall = page.evaluate("document.querySelector('[data-testid=\"stMain\"]').scrollHeight")
    page.set_viewport_size(SIZE | {"height": tall})
    page.wait_for_timeout(300)
    rest(page)
    top, main = page.locator(".st-key-map").bounding_box()["y"] - 12, page.get_by_test_id("stMainBlockContainer")
    box = main.bounding_box()
    page.screenshot(path=path, clip={"x": box["x"], "y": top, "width": box["width"], "height": tall - top})


def shots() -> dict[str, tuple[str, bool, str | None]]:
    """Path, whether in the dark, and words to wait for, of the pictures that show runs; the runs are made."""
    from workbench.runs import demo
    from workbench.runs import execution as runs

    probe = demo.main_probe()
    first = runs.execute(probe, demo.MODEL, config=demo.settings(probe, demo.MODEL))
    second = next(run for run in demo.examples() if run.probe == probe.name)
    table = first.table("heads").sort("score", descending=True)
    named = [
        f"{layer}.{head}" for layer, head in table.filter(table["is_retrieval"]).select("layer", "head").iter_rows()
    ]
    return {
        "explorer": (f"/?model={demo.MODEL}&head={named[0]}&off={','.join(named)}", False, "with the heads switched"),
        probe.name: (f"/{probe.name.replace('-', '_')}?run={first.id}", False, None),
        "compare": (f"/compare?a={first.id}&b={second.id}", True, "agreement over heads"),
    }


if __name__ == "__main__":
    main()
