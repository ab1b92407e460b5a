"""A cache with hundreds of finished runs of one model, made in seconds: one run is written, the others are copies of
its files with an id, a seed and a date of their own."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from pathlib import Path

from tests.support import figure_runs
from tests.support.app_screens import keep
from workbench.models.loading import load
from workbench.runs.folder import open_run

FIRST_DAY = datetime.datetime(2026, 1, 1, 10, tzinfo=datetime.UTC)


def make(cache: Path, count: int, *, model: str = "organism") -> list[str]:
    """Write ``count`` complete runs below ``cache``, one a minute, with the shape and the weights' fingerprint of
    ``model``, so that the Explorer counts them; gives their ids."""
    opened = load(model)
    fake = figure_runs.retrieval(
        layers=opened.n_layers, heads=opened.n_heads, kv_heads=opened.n_kv_heads, name=model, seed=1
    )
    before = os.environ.get("WORKBENCH_CACHE")
    os.environ["WORKBENCH_CACHE"] = str(cache)
    try:
        first = keep(
            fake, named(0), model={**fake.info["model"], "fingerprint": opened.fingerprint}, finished=minute(0)
        )
    finally:
        if before is None:
            del os.environ["WORKBENCH_CACHE"]
        else:
            os.environ["WORKBENCH_CACHE"] = before
    template = cache / "runs" / first
    info = open_run(template).info
    for i in range(1, count):
        folder = cache / "runs" / named(i)
        shutil.copytree(template, folder)
        about = info | {"id": named(i), "seed": i, "finished": minute(i)}
        (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")  # `write_json` waits for the disk
    return [named(i) for i in range(count)]


def named(i: int) -> str:
    return f"retrieval-heads-{i:012x}"


def minute(i: int) -> str:
    """When run number ``i`` ended."""
    return (FIRST_DAY + datetime.timedelta(minutes=i)).isoformat(timespec="milliseconds")
