"""Take the README's pictures: ``python -m tests.browser.gallery``. The runs that are shown are made first where they
are missing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tests.browser.serving import chromium, rest, serve

HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 800}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cache", type=Path, help="where the runs are or will be (default: the cache of this checkout)"
    )
    options = parser.parse_args()
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
        os.environ["WORKBENCH_CACHE"] = str(options.cache.resolve())
    from playwright.sync_api import sync_playwright

    from workbench.core import paths
    from workbench.runs import demo
    from workbench.runs import execution as runs

    probe = demo.main_probe()
    first = runs.execute(probe, demo.MODEL, config=demo.settings(probe, demo.MODEL))
    second = next(run for run in demo.examples() if run.probe == probe.name)
    table = first.table("heads").sort("score", descending=True)
    named = [
        f"{layer}.{head}" for layer, head in table.filter(table["is_retrieval"]).select("layer", "head").iter_rows()
    ]
    shots = {
        "explorer": (f"/?model={demo.MODEL}&head={named[0]}&off={','.join(named)}", False, "with the heads switched"),
        probe.name: (f"/{probe.name.replace('-', '_')}?run={first.id}", False, None),
        "compare": (f"/compare?a={first.id}&b={second.id}", True, "agreement over heads"),
    }
    with serve(paths.cache_root()) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for name, (path, dark, words) in shots.items():
            page = browser.new_context(viewport=SIZE, color_scheme="dark" if dark else "light").new_page()
            page.set_default_timeout(120_000)
            page.goto(address + path)
            page.get_by_text(words).first.wait_for() if words else page.locator(".js-plotly-plot").first.wait_for()
            rest(page)
            page.screenshot(path=HERE / f"{name}.png")
            print(HERE / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
