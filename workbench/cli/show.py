"""How the command line prints: JSON, small tables, progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from workbench.core.files import jsonable


def print_json(value: Any) -> None:
    print(json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_columns(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table, columns aligned; cells never wrap, so that it can be piped."""
    cells = [[_one_line(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def number(value: Any) -> str:
    """A number as people read it: four significant digits, whole numbers whole."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return "-" if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}"


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """One line per summary entry, with its interval and n where it has them."""
    lines = []
    for name, entry in summary.items():
        if isinstance(entry, dict) and "value" in entry:
            text = number(entry["value"])
            if entry.get("low") is not None and entry.get("high") is not None:
                text += f"  [{number(entry['low'])}, {number(entry['high'])}]"
            if entry.get("n") is not None:
                text += f"  n = {number(entry['n'])}"
        elif isinstance(entry, (dict, list)):
            text = json.dumps(jsonable(entry), ensure_ascii=False)
        else:
            text = number(entry)
        lines.append(f"{name.replace('_', ' ')}: {text}")
    return lines


def size(n: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


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
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def report(done: int, total: int, label: str) -> None:
            bars.update(task, completed=done, total=total or None, description=label or "working")

        yield report


def _lines() -> Callable[[int, int, str], None]:
    last = {"label": None, "time": 0.0}

    def report(done: int, total: int, label: str) -> None:
        now = time.monotonic()
        if label == last["label"] and now - last["time"] < 10 and not (total and done >= total):
            return
        last.update(label=label, time=now)
        print(f"{label or 'working'}: {done}/{total}" if total else label, file=sys.stderr, flush=True)

    return report


def _one_line(cell: Any) -> str:
    return " ".join(("-" if cell is None else str(cell)).split())
