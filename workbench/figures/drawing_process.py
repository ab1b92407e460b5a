"""The process that draws: ``python drawing_process.py FOLDER CHROMIUM FIRST``, started by workbench/figures/drawing.py.

FOLDER holds 0.json, 1.json …, a figure and its options each; N.drawn appears beside each when it is complete, and
``failure``, one line, when it cannot go on. Chromium runs headless and without its sandbox (Kaleido's default, and the
only way that works as root in a container); it is given our own pages only, and no network is used: Plotly's script
comes from the installed package and MathJax is switched off. Nothing of the workbench is imported.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path


async def draw(folder: Path, chromium: str, first: int) -> None:
    from kaleido import Kaleido

    for name in ("kaleido", "choreographer"):  # what goes wrong is said in `failure`, in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # who started this waits, and knows how long
    async with Kaleido(n=1, mathjax=False, timeout=None, path=chromium) as kaleido:
        i = first
        while (folder / f"{i}.json").exists():
            job = json.loads((folder / f"{i}.json").read_text(encoding="utf-8"))
            content = await kaleido.calc_fig(job["figure"], opts=job["options"])
            (folder / f"{i}.part").write_bytes(content)
            os.replace(folder / f"{i}.part", folder / f"{i}.drawn")
            i += 1


def end_with(parent: int, folder: Path) -> None:
    """Take everything down when who started this is gone: nobody else will."""
    while os.getppid() == parent:
        time.sleep(0.5)
    try:
        import psutil

        for one in psutil.Process().children(recursive=True):
            one.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGKILL)


def in_words(error: BaseException) -> str:
    """Why nothing was drawn. What fails on an answer of the browser fails on one that Chromium does not give: a key
    that is not in it, a value of another kind, a message that is no JSON."""
    if isinstance(error, (LookupError, TypeError, AttributeError, ValueError)):
        return (
            "it gives answers that are not Chromium's: install Chromium, or set BROWSER_PATH to it if it names another "
            "program"
        )
    said = str(error.args[0] if error.args else "").strip().splitlines()
    return type(error).__name__ + (f": {said[0][:300]}" if said else "")


def main() -> None:
    folder, chromium, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    threading.Thread(target=end_with, args=(os.getppid(), folder), daemon=True).start()
    try:
        asyncio.run(draw(folder, chromium, first))
    except BaseException as error:
        (folder / "failure").write_text(in_words(error))
        os._exit(1)  # at once: a thread may wait for a browser that never answers


if __name__ == "__main__":
    main()
