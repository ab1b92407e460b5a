"""The main job on what ships with the project: the example of the first probe and its figures; then the examples of
every other probe, so that each screen of the app opens on a finished one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.core import registry
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.registry import Probe
from workbench.figures.browser import can_draw
from workbench.models.model_outline import outline
from workbench.runs import execution, notes
from workbench.runs.folder import Run

MODEL = "organism"
TAG = "example"

Report = Callable[[int, int, str], None]


def main_probe() -> Probe:
    """The first probe that has an example, in the order in which probes are shown. Raises InputError where none has."""
    for name in registry.names():
        if registry.problem(name) is None and registry.get(name).example is not None:
            return registry.get(name)
    raise InputError("No probe here has an example; 'workbench doctor' says what is wrong with the installation.")


def settings(probe: Probe, model: str) -> dict[str, Any]:
    """Config values of a short run of the probe that completes on this model, as far as its files can tell.

    Raises InputError, with the reason, where there are none, and for a probe without an example."""
    if probe.example is None:
        raise InputError(f"The probe '{probe.name}' has no example.")
    values = dict(probe.example(outline(model)))
    execution.prepare(probe, values, model=model)
    return values


def problem(probe: Probe, model: str) -> str | None:
    """Why the probe has no short run on this model, in a sentence; None where it has one."""
    from workbench.models.before_loading import check_presence

    try:
        check_presence(model)
        settings(probe, model)
    except WorkbenchError as error:
        return str(error)
    return None


def run(*, model: str = MODEL, out: Path | None = None, progress: Report | None = None) -> tuple[Run, list[Path]]:
    """Run the main probe's example, or reopen that run; write the figures. Returns the run and the files written.

    On the organism the `examples` follow. Without a Chromium the figures are HTML and CSV. Everything else that goes
    wrong is an error."""
    probe = main_probe()
    done = execution.execute(probe, model, config=settings(probe, model), progress=progress)
    from workbench.figures.export import export_run

    formats = ["pdf", "png", "html"] if can_draw() else ["html", "csv"]
    if progress is not None:
        progress(0, 0, "drawing the figures")
    written = export_run(done, formats=formats, out=out)
    if model == MODEL:
        mark(done)
        examples(progress=progress)
    return done, written


def declared() -> list[tuple[Probe, str]]:
    """(probe, model) of every example that probes ask for, but for the one of `run`. A probe that cannot be imported
    has none."""
    usable = [registry.get(name) for name in registry.names() if registry.problem(name) is None]
    main = (main_probe().name, MODEL)
    return [
        (probe, model)
        for probe in usable
        if probe.example is not None
        for model in probe.example_models
        if (probe.name, model) != main
    ]


def examples(*, progress: Report | None = None) -> list[Run]:
    """A short run of every other example, tagged as one; those that are complete already are reopened."""
    from workbench.models.loading import load

    wanted = declared()
    models = {name: load(name) for name in dict.fromkeys(model for _, model in wanted)}
    found = []
    for probe, model in wanted:
        report = None if progress is None else _named(progress, f"{probe.name} on {model}")
        found.append(execution.execute(probe, models[model], config=settings(probe, model), progress=report))
        mark(found[-1])
    return found


def mark(run: Run) -> None:
    """Tag a run as an example, unless somebody has written on it."""
    if not os.path.lexists(run.folder / "notes.json"):
        with contextlib.suppress(OSError):  # a cache that can only be read
            notes.write(run.folder, tags=[TAG], note="")


def shown_first(probe: Probe, runs: Sequence[Run]) -> list[Run]:
    """Runs of a probe in the order in which a screen shows them: complete ones first, the newest first; but where the
    newest are examples, those on the model that the probe names first come first. Somebody's own newer run stays in
    front of every example."""
    found = sorted(runs, key=lambda run: (run.info.get("status") == "complete", _ended(run)), reverse=True)
    count = next((i for i, run in enumerate(found) if not _is_example(run)), len(found))
    models = list(probe.example_models)
    names = [run.of("model", "name") for run in found[:count]]
    places = [models.index(name) if name in models else len(models) for name in names]
    return [found[i] for i in sorted(range(count), key=places.__getitem__)] + found[count:]


def _ended(run: Run) -> str:
    return str(run.of("finished") or run.of("started") or "")


def _is_example(run: Run) -> bool:
    try:
        return TAG in notes.read(run.folder)["tags"]
    except InputError:  # the run's own view says so
        return False


def _named(progress: Report, name: str) -> Report:
    return lambda done, total, label: progress(done, total, f"example: {name}, {label}")
