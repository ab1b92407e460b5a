"""The main job on what ships with the project: the retrieval heads of the organism and their figures; then a short run
of every other probe, so that each screen of the app opens on a finished example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.core import registry
from workbench.figures.browser import can_draw
from workbench.runs import execution as runs
from workbench.runs import notes
from workbench.runs.folder import Run

PROBE = "retrieval-heads"
MODEL = "organism"
TAG = "example"

# (probe, model, what differs from the probe's own demo config): each is to take seconds. The last one is there to be
# compared.
EXAMPLES: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("concept-depth", MODEL, {"limit": 60, "shuffles": 3, "causal": "peak"}),
    ("knowledge-conflict", MODEL, {"limit": 40, "prune_k": (1, 3), "flow_items": 8, "random_draws": 2}),
    ("data-selection", MODEL, {}),
    ("branching-factor", MODEL, {}),
    ("representation-geometry", MODEL, {"limit": 300}),
    (PROBE, "organism-chat", {"lengths": (128, 256), "depths": (0, 50, 100), "needles": 4, "mask_k": (1, 2)}),
)

Report = Callable[[int, int, str], None]


def run(*, model: str = MODEL, out: Path | None = None, progress: Report | None = None) -> tuple[Run, list[Path]]:
    """Run the probe with its demo config, or reopen that run; write the figures. Returns the run and the files written.

    On the organism the `examples` follow. Without a Chromium the figures are HTML and CSV. Everything else that goes
    wrong is an error."""
    done = runs.execute(PROBE, model, config=registry.get(PROBE).demo, progress=progress)
    from workbench.figures.export import export_run

    formats = ["pdf", "png", "html"] if can_draw() else ["html", "csv"]
    if progress is not None:
        progress(0, 0, "drawing the figures")
    written = export_run(done, formats=formats, out=out)
    if model == MODEL:
        mark(done)
        examples(progress=progress)
    return done, written


def examples(*, progress: Report | None = None) -> list[Run]:
    """A short run of every other probe, tagged as an example; those that are complete already are reopened."""
    from workbench.models.loading import load

    models = {name: load(name) for name in dict.fromkeys(model for _, model, _ in EXAMPLES)}
    found = []
    for probe, model, changes in EXAMPLES:
        report = None if progress is None else _named(progress, f"{probe} on {model}")
        found.append(
            runs.execute(probe, models[model], config={**registry.get(probe).demo, **changes}, progress=report)
        )
        mark(found[-1])
    return found


def mark(run: Run) -> None:
    """Tag a run as an example, unless somebody has written on it."""
    if not (run.folder / "notes.json").exists():
        notes.write(run.folder, tags=[TAG], note="")


def _named(progress: Report, name: str) -> Report:
    return lambda done, total, label: progress(done, total, f"example: {name}, {label}")
