"""A runs folder with many finished runs: a few synthetic ones, copied under other ids, seeds, dates and models."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.support.app_screens import keep
from tests.support.figure_runs import depth, geometry, retrieval
from workbench.core.files import write_json
from workbench.models.loading import load
from workbench.runs import execution
from workbench.runs.checksums import of_folder
from workbench.runs.records import seal

START = datetime(2026, 1, 1, 10, tzinfo=UTC)


def keep_many(count: int, *, mine: int, model: dict, first: int = 0) -> list[str]:
    """``count`` complete runs of three probes, ``mine`` of them of ``model`` (the entry of run.json), the others of ten
    models that are not here; ids count from ``first``. As the command line leaves them: sealed, with the
    checksums of their files."""
    fakes = (
        lambda: retrieval(layers=model["layers"], heads=model["heads"]),
        lambda: depth(layers=model["layers"]),
        geometry,
    )
    made: dict[int, tuple] = {}
    ids = []
    for i in range(count):
        of = i % 3
        name = ("retrieval-heads", "concept-depth", "representation-geometry")[of]
        identifier = f"{name}-{first + i:012x}"
        if of not in made:
            keep(fakes[of](), identifier)
            folder = execution.runs_root() / identifier
            made[of] = folder, of_folder(folder), json.loads((folder / "run.json").read_text())
        source, files, info = made[of]
        folder = execution.runs_root() / identifier
        if folder != source:
            shutil.copytree(source, folder)
        ended = START + timedelta(hours=i)
        about = {
            "id": identifier,
            "seed": i,
            "model": model if i < mine else {**model, "name": f"lab/model-{i % 10}", "fingerprint": f"{i % 10:064x}"},
            "started": (ended - timedelta(minutes=1)).isoformat(timespec="milliseconds"),
            "finished": ended.isoformat(timespec="milliseconds"),
            "files": files,
        }
        write_json(folder / "run.json", seal({**info, **about}))
        ids.append(identifier)
    return ids


def make(cache: Path, count: int, *, model: str = "organism") -> list[str]:
    """``keep_many`` below another cache, all of them of one model that is there, so that the Explorer counts them."""
    opened = load(model)
    about = {
        "name": model,
        "layers": opened.n_layers,
        "heads": opened.n_heads,
        "kv_heads": opened.n_kv_heads,
        "fingerprint": opened.fingerprint,
        "dtype": "float32",
        "device": "cpu",
    }
    before = os.environ.get("WORKBENCH_CACHE")
    os.environ["WORKBENCH_CACHE"] = str(cache)
    try:
        return keep_many(count, mine=count, model=about)
    finally:
        if before is None:
            del os.environ["WORKBENCH_CACHE"]
        else:
            os.environ["WORKBENCH_CACHE"] = before
