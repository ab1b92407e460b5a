"""How the command line prints: JSON, small tables, progress."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from workbench.core.files import jsonable
from workbench.core.progress import stage_of
from workbench.core.wording import UNSEEN, harmless, quantity, significant

_UNSEEN = re.compile(f"[{UNSEEN}]")  # JSON leaves these as they are; outside of texts it holds none of them


def say(text: object = "", *, error: bool = False) -> None:
    """Print a text that may hold anything: it cannot steer the terminal. ``error``: on stderr."""
    print(harmless(text), file=sys.stderr if error else sys.stdout, flush=error)


def say_data(text: str) -> None:
    """Print CSV: exactly what it is into a file or a pipe, harmlessly on a terminal."""
    print(harmless(text) if sys.stdout.isatty() else text, end="")


def print_json(value: Any) -> None:
    """JSON with the same values, in which what could steer a terminal is escaped as JSON escapes."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
    print(_UNSEEN.sub(_as_json, text))


def _as_json(found: re.Match[str]) -> str:
    letter = found[0]
    return "\\u007f" if letter == "\x7f" else json.dumps(letter)[1:-1]


def print_columns(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table, columns aligned; cells never wrap, so that it can be piped."""
    cells = [[_one_line(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())  # cells are harmless


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """One line per summary entry, with its interval and n where it has them."""
    lines = []
    for name, entry in summary.items():
        if isinstance(entry, list) or (isinstance(entry, dict) and "value" not in entry):
            text = json.dumps(jsonable(entry), ensure_ascii=False)
        else:
            text = quantity(entry, significant)
        lines.append(_one_line(f"{name.replace('_', ' ')}: {text}"))
    return lines


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A progress function that writes to stderr: a bar on a terminal, elsewhere a line when something new begins, when
    it ends, and every ten seconds between."""
    if quiet:
        yield lambda done, total, label: None
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def report(done: int, total: int, label: str) -> None:
            bars.update(task, completed=done, total=total or None, description=_one_line(label) or "working")

        yield report


def _lines() -> Callable[[int, int, str], None]:
    last = {"label": None, "time": 0.0}

    def report(done: int, total: int, label: str) -> None:
        now = time.monotonic()
        stage = stage_of(label)
        if stage == last["label"] and now - last["time"] < 10 and not (total and done >= total):
            return
        last.update(label=stage, time=now)
        say(f"{_one_line(label) or 'working'} ({done / total:.0%})" if total else _one_line(label), error=True)

    return report


def _one_line(cell: Any) -> str:
    return harmless(" ".join(("-" if cell is None else str(cell)).split()))
