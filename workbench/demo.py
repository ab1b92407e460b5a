"""The main job on what ships with the project: the retrieval heads of the organism, and their figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench import registry, runs
from workbench.doctor import chromium
from workbench.runfolder import Run

PROBE = "retrieval-heads"


def run(
    *, model: str = "organism", out: Path | None = None, progress: Callable[[int, int, str], None] | None = None
) -> tuple[Run, list[Path]]:
    """Run the probe with its demo config, or reopen that run; write the figures. Returns the run and the files written.

    Without a Chromium the figures are HTML and CSV. Everything else that goes wrong is an error."""
    done = runs.execute(PROBE, model, config=registry.get(PROBE).demo, progress=progress)
    from workbench.figures.export import export_run

    formats = ["html", "csv"] if chromium().status != "ok" else ["pdf", "png", "html"]
    if progress is not None:
        progress(0, 0, "drawing the figures")
    return done, export_run(done, formats=formats, out=out)
