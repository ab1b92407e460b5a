"""Land, switch, patch, read the lens: the walk through the Explorer that the README shows as a picture that moves."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from tests.browser import screens
from tests.browser.serving import rest

SIZE = {"width": 1120, "height": 760}
MOST_BYTES = 2_000_000
SHOWN = {"land": 1800, "choose": 1800, "switch": 2600, "patch": 3000, "lens": 3000}  # milliseconds of each frame


def take(browser, server: str, path: Path) -> None:
    """Write the walk as an animated WebP below two megabytes."""
    page = browser.new_context(viewport=SIZE, color_scheme="light").new_page()
    page.set_default_timeout(120_000)
    frames = {name: Image.open(io.BytesIO(content)) for name, content in _walk(page, server)}
    page.context.close()
    first, *others = [frames[name].convert("RGB") for name in SHOWN]
    for quality in (80, 65, 50):
        first.save(
            path, save_all=True, append_images=others, duration=list(SHOWN.values()), loop=0, quality=quality, method=6
        )
        if path.stat().st_size < MOST_BYTES:
            return
    raise RuntimeError(f"{path.name} has {path.stat().st_size:,} bytes; {MOST_BYTES:,} are the most")


def _walk(page, server: str):
    """(name, picture) of every step."""
    page.goto(server + screens.explorer(head="0.0"))
    page.get_by_text("greedy continuation").first.wait_for()
    rest(page)
    yield "land", page.screenshot()
    page.locator('button[data-key="1.0"]').click()
    page.get_by_text("Layer 1, head 0").first.wait_for()
    rest(page)
    yield "choose", page.screenshot()
    page.keyboard.press("x")
    page.get_by_text("heads 1.0 switched").first.wait_for()
    rest(page)
    page.locator('button[data-key="1.1"]').click(modifiers=["Shift"])
    page.get_by_text("heads 1.0, 1.1 switched").first.wait_for()
    rest(page)
    yield "switch", page.screenshot()
    page.get_by_role("button", name="All on").click()
    page.get_by_text("heads 1.0, 1.1 switched").wait_for(state="detached")
    for choice, name in (("Patching", "patch"), ("Lens", "lens")):
        screens.choose(page, "Map", choice)
        page.locator(".map button").first.wait_for()
        _down(page)
        yield name, page.screenshot()


def _down(page) -> None:
    """Scroll so far that the map is in sight with its buttons above it."""
    page.get_by_role("radiogroup", name="Map", exact=True).evaluate("row => row.scrollIntoView({ block: 'start' })")
    page.mouse.move(2, 2)
    page.wait_for_timeout(300)
