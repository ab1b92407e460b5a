"""Take a picture of every screen, card and map in light, in dark and as a phone shows it, to be looked at:
``python -m tests.browser.tour --out DIR``."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from tests.browser import screens
from tests.browser.conftest import RUNS, cut_buttons, too_wide
from tests.browser.serving import chromium, rest, serve

LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--looks", default=",".join(LOOKS), help=f"some of {', '.join(LOOKS)}")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        fill(Path(folder))
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        with serve(Path(folder)) as server:
            paths = addresses(browser, server)
            for look in options.looks.split(","):
                page = opened(browser, LOOKS[look])
                for name in screens.walk(page, server, paths):
                    take(page, options.out / f"{name}-{look}.png")
                    for fault in [*too_wide(page), *(f"cut: {text}" for text in cut_buttons(page))]:
                        print(f"{name}-{look}: {fault}")
                page.context.close()
        browser.close()


def fill(cache: Path) -> None:
    """The finished runs that the suite shows, too."""
    from tests.support.app_screens import keep

    os.environ["WORKBENCH_CACHE"] = str(cache)
    for identifier, fake in RUNS.items():
        keep(fake, identifier)


def opened(browser, look: dict):
    page = browser.new_context(**look).new_page()
    page.set_default_timeout(120_000)
    return page


def addresses(browser, server: str) -> list[str]:
    """The side bar is read where there is room for it."""
    page = opened(browser, LOOKS["light"])
    page.goto(server)
    page.get_by_role("radiogroup", name="Map", exact=True).wait_for()
    rest(page)
    found = screens.places(page)
    page.context.close()
    return found


def take(page, path: Path) -> None:
    """The whole screen, however long: the window grows to what is in it, then shrinks again."""
    size = page.viewport_size
    tall = page.evaluate("document.querySelector('[data-testid=\"stMain\"]').scrollHeight")
    page.set_viewport_size({"width": size["width"], "height": min(4000, max(size["height"], tall))})
    page.wait_for_timeout(200)
    page.screenshot(path=path)
    page.set_viewport_size(size)


if __name__ == "__main__":
    main()
