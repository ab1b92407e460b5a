"""Pictures drawn by Chromium, in a process that can be stopped.

A browser may start and never answer, exit, or leave something behind that does not end. So it runs below a process of
its own session, with a deadline over the whole call; what is left of them when it ends, however it ends, is killed, and
their profile goes with the temporary folder that all of it works in.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError, WorkbenchError
from workbench.core.wording import one_line
from workbench.figures import drawing_process
from workbench.figures.browser import browser

LIMIT = "WORKBENCH_EXPORT_SECONDS"
SECONDS, SECONDS_PER_PICTURE = 60, 20  # of the deadline, where LIMIT does not say it
STALL = 40  # a message lost between Kaleido and Chromium stalls one picture; after so long a fresh browser draws it
LONGEST = 32  # characters of a temporary folder that has room for Chromium's names
MARK = "WORKBENCH_DRAWING"  # in the environment of every process that draws, with the folder it draws in
WITHOUT = "'workbench doctor' checks the browser, and html and csv work without it"


@dataclass(frozen=True)
class Picture:
    """One file to draw: a figure that is already dressed, the format and where it goes."""

    figure: Any
    format: str
    path: Path
    scale: float = 1.0


def draw(pictures: Sequence[Picture], *, save: Callable[[Path, bytes], Any], progress: Any = None) -> None:
    """Draw pictures with one browser, each given to ``save(path, content)`` when it is done.

    Raises WorkbenchError when there is no browser, when it fails twice, or at the deadline. Ctrl-C stops at once.
    """
    if not pictures:
        return
    path = browser()  # a clear error before anything is started
    limit = limit_for(len(pictures))
    end = time.monotonic() + limit
    done, problem = 0, ""
    with _workplace() as folder:
        for i, picture in enumerate(pictures):
            _hand_over(folder, i, picture)
        for attempt in (1, 2):
            patience = min(STALL, (end - time.monotonic()) / 2) if attempt == 1 else math.inf
            with _drawing(folder, path, done) as process:
                for content in _drawn(folder, process, done, len(pictures), end, patience):
                    _told(progress, done, pictures)
                    save(pictures[done].path, content)
                    done += 1
                if done == len(pictures):
                    _told(progress, done, pictures)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.0, min(5.0, end - time.monotonic())))  # it closes the browser
                    return
                problem = _problem(folder, process)
            if time.monotonic() >= end:
                break
    name = pictures[done].path.name
    if time.monotonic() >= end:
        raise WorkbenchError(
            f"Chromium ({path}) did not draw {name} within the {limit:g} seconds that it has for all of this, and was "
            f"stopped; {LIMIT} gives it more time, {WITHOUT}."
        )
    raise WorkbenchError(f"Chromium could not draw {name} ({problem}); {WITHOUT}.")


def limit_for(pictures: int) -> float:
    """Seconds in which all of so many pictures must be drawn. Raises InputError where the environment names none."""
    said = os.environ.get(LIMIT, "")
    if not said:
        return float(SECONDS + SECONDS_PER_PICTURE * pictures)
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e6:
        raise InputError(f"{LIMIT} is '{said}', which is no number of seconds above 0; set it to 120, or unset it.")
    return seconds


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """A folder for figures, pictures and the browser's profile, removed at the end.

    The name of a socket that Chromium makes in it may have 107 characters: below a long TMPDIR there is no room."""
    try:
        usual = tempfile.gettempdir()
        place = "/tmp" if len(usual) > LONGEST and os.access("/tmp", os.W_OK) else usual
        made = tempfile.TemporaryDirectory(prefix="workbench-drawing-", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from error
    with made as name:
        yield Path(name)


def _hand_over(folder: Path, i: int, picture: Picture) -> None:
    layout = picture.figure.layout
    options = {
        "format": picture.format,
        "scale": picture.scale,
        "width": int(layout.width),
        "height": int(layout.height),
    }
    try:
        text = f'{{"options": {json.dumps(options)}, "figure": {picture.figure.to_json()}}}'
        (folder / f"{i}.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> WorkbenchError:
    return WorkbenchError(
        f"There is no temporary folder to draw in ({error.strerror or one_line(error)}); make room, or set TMPDIR to a "
        f"folder that has some (html and csv need none)."
    )


@contextlib.contextmanager
def _drawing(folder: Path, path: str, first: int) -> Iterator[subprocess.Popen]:
    """The process that draws from picture ``first`` on. No pipes: what holds one open could not be waited for."""
    for left in ("failure", "log"):
        (folder / left).unlink(missing_ok=True)
    environment = {**os.environ, MARK: str(folder), "TMPDIR": str(folder)}
    command = [sys.executable, "-P", drawing_process.__file__, str(folder), path, str(first)]
    process = None
    try:
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        yield process
    except OSError as error:
        if process is not None:
            raise
        raise _no_room(error) from error
    finally:
        if process is not None:
            _end(process, folder)


def _drawn(
    folder: Path, process: subprocess.Popen, first: int, pictures: int, end: float, patience: float
) -> Iterator[bytes]:
    """The pictures in their order as they come, until all are there, the process ends or the time is over."""
    last = time.monotonic()
    for i in range(first, pictures):
        ready = folder / f"{i}.drawn"
        while not ready.exists():
            now = time.monotonic()
            if now >= end or now - last >= patience or (process.poll() is not None and not ready.exists()):
                return
            time.sleep(0.03)
        yield ready.read_bytes()
        last = time.monotonic()


def _problem(folder: Path, process: subprocess.Popen) -> str:
    with contextlib.suppress(OSError):
        said = (folder / "failure").read_text(encoding="utf-8").strip()
        if said:
            return said
    code = process.poll()
    return "it gave no answer" if code is None else f"the process that draws ended with code {code}"


def _end(process: subprocess.Popen, folder: Path) -> None:
    """Kill what still runs of a process and of all that it started, also what has left its group or lost its
    parent."""
    if process.poll() == 0:
        return
    import psutil

    for _ in range(20):  # until nothing is found: something may have been started while we looked
        found = _started_for(folder)
        with contextlib.suppress(psutil.Error):
            if process.poll() is None:
                tree = psutil.Process(process.pid)
                found += [*tree.children(recursive=True), tree]
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if not found:
            return
        time.sleep(0.02)


def _started_for(folder: Path) -> list[Any]:
    """The processes of this user that were started to draw in a folder."""
    import psutil

    found, user = [], os.getuid() if hasattr(os, "getuid") else None
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (user is None or one.uids().real == user) and one.environ().get(MARK) == str(folder):
                if one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
    return found


def _told(progress: Any, done: int, pictures: Sequence[Picture]) -> None:
    if progress is not None:
        progress(done, len(pictures), pictures[done].path.name if done < len(pictures) else "")
