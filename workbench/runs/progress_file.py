"""progress.jsonl of a run: how far it was, line by line, for whoever looks at its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from workbench.core.private import appending
from workbench.core.progress import stage_of
from workbench.runs import provenance

EVERY = 0.5  # seconds between lines of one stage


def recorder(path: Path) -> Callable[[int, int, str], None]:
    """A progress function that appends to progress.jsonl: each step that ends something, else twice a second."""
    start = time.perf_counter()
    last = {"time": -1.0, "label": None}
    if path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        with appending(path) as file:  # the open line of a process that was killed
            file.write(b"\n")

    def record(done: int, total: int, label: str) -> None:
        moment = time.perf_counter()
        stage = stage_of(label)
        if stage != last["label"] or (total and done >= total) or moment - last["time"] >= EVERY:
            last.update(time=moment, label=stage)
            line = {
                "time": provenance.now(),
                "seconds": round(moment - start, 3),
                "done": done,
                "total": total,
                "label": label,
            }
            with appending(path) as file:
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())

    return record
