"""The app as a person starts it, and a Chromium to look at it: for the suite, the gallery and the benchmark."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def chromium() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))),
        None,
    )


@contextmanager
def serve(cache: Path, *, token: str | None = None) -> Iterator[str]:
    """`workbench app` on a free port, over the runs below ``cache``; gives its address. It asks for ``token``, for none
    where that is None. Workers that it started end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "WORKBENCH_CACHE": str(cache), "WORKBENCH_WORKER_IDLE": "60", "HF_HUB_OFFLINE": "1"}
    env |= {"WORKBENCH_APP_TOKEN": token} if token else {}
    command = [
        sys.executable,
        "-c",
        "from workbench.cli import main; main()",
        "app",
        "--port",
        str(port),
        "--no-browser",
        *([] if token else ["--no-token"]),
    ]
    with open(cache / "server.log", "wb") as log:
        process = subprocess.Popen(
            command, env=env, cwd=cache, stdout=log, stderr=log
        )  # from elsewhere: the settings lie beside app.py
        try:
            for _ in range(900):
                try:
                    urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1).read()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://localhost:{port}"
        finally:
            for found in [*psutil.Process(process.pid).children(recursive=True), process]:
                try:
                    found.terminate()
                except psutil.Error:
                    continue
            process.wait(10)
            _end_workers(cache)


def _end_workers(cache: Path) -> None:
    for state in (cache / "jobs").glob("*/state.json"):
        try:
            worker = psutil.Process(json.loads(state.read_text())["pid"])
            if "workbench.runs.worker" in worker.cmdline():
                for found in [*worker.children(recursive=True), worker]:
                    found.kill()
        except (psutil.Error, KeyError, ValueError):
            continue


# The script has run, no text is still being written and nothing is a grey placeholder, for a tenth of a second.
STILL = """() => {
  const has = (selector) => document.querySelector(selector) !== null;
  const still = has('[data-testid="stApp"][data-test-script-state="notRunning"]') && has('[data-testid="stSidebarNav"]')
    && !has('[data-testid="stSkeleton"]') && !has('[data-stale="true"]') && !has('[data-writing="true"]');
  if (!still) window.still = null;
  else window.still ??= performance.now();
  const long = still && performance.now() - window.still > 100;
  if (long) window.still = null;
  return long;
}"""


def rest(page) -> None:
    """Until the page stands still."""
    page.wait_for_function(STILL)
