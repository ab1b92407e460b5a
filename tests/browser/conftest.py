"""One server and one Chromium for the whole suite; every page is watched for errors and for requests that leave this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.figure_runs import retrieval

ROOT = Path(__file__).resolve().parents[2]
SHOTS = Path(__file__).parent / "screenshots"  # not in the repository
# Streamlit looks for its own address below the path of a deep link first, and is told 404; Chromium reports that as an error.
KNOWN = ("/_stcore/health", "/_stcore/host-config")


def chromium() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))),
        None,
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache with two finished runs, before the server first looks at it."""
    from tests.test_pages import keep

    root = tmp_path_factory.mktemp("cached")
    before = os.environ.get("WORKBENCH_CACHE")
    os.environ["WORKBENCH_CACHE"] = str(root)
    for i in (1, 2):
        keep(retrieval(seed=i), f"retrieval-heads-{i:012x}")
    if before is None:
        del os.environ["WORKBENCH_CACHE"]
    else:
        os.environ["WORKBENCH_CACHE"] = before
    return root


@pytest.fixture(scope="session")
def server(cache):
    """The app as `workbench app` starts it, on a free port; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "WORKBENCH_CACHE": str(cache), "WORKBENCH_WORKER_IDLE": "60"}
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(ROOT / "app.py"),
        "--server.port",
        str(port),
        "--server.headless",
        "true",
    ]
    log = open(cache / "server.log", "wb")
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(10)
        log.close()
        import json

        for state in (cache / "jobs").glob("*/state.json"):
            try:
                worker = psutil.Process(json.loads(state.read_text())["pid"])
                if "workbench.worker" in worker.cmdline():
                    for found in [*worker.children(recursive=True), worker]:
                        found.kill()
            except (psutil.Error, KeyError, ValueError):
                continue


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
    """visit(path, dark=False, size=(1280, 720)) → a page that has come to rest. At the end: no error in any console, no request abroad."""
    pages, complaints = [], []

    def note(message):
        if message.type == "error" and not any(known in (message.location or {}).get("url", "") for known in KNOWN):
            complaints.append(f"console: {message.text}")

    def abroad(request):
        if not request.url.startswith((server, server.replace("http", "ws"), "data:", "blob:")):
            complaints.append(f"request to {request.url}")

    def open_one(path: str = "/", *, dark: bool = False, size: tuple[int, int] = (1280, 720)):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        page = context.new_page()
        page.set_default_timeout(40_000)
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(f"page: {error}"))
        page.on("request", abroad)
        page.goto(server + path)
        pages.append(context)
        rest(page)
        return page

    yield open_one
    for i, context in enumerate(pages):
        for page in context.pages:
            shot(page, f"last-{i}")  # what was on the screen when the test ended, however it did
    for context in pages:
        context.close()
    assert complaints == []


def rest(page) -> None:
    """Until the script has run and nothing is a grey placeholder any more."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_selector('[data-testid="stSidebarNav"]', state="attached")
    page.wait_for_function(
        "!document.querySelector('[data-testid=\"stSkeleton\"]') && !document.querySelector('[data-stale=\"true\"]')"
    )
    page.wait_for_timeout(150)


def shot(page, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")
