"""One figure of several runs of a probe: what it declares as `figures_of_several`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import registry
from workbench.core.errors import InputError
from workbench.core.files import write_bytes
from workbench.core.private import make_folder
from workbench.figures import export, probe_name
from workbench.figures.run_tables import info, model_name

if TYPE_CHECKING:
    import plotly.graph_objects as go


def figure_of_several(runs: Sequence[Any]) -> go.Figure:
    """The figure of several runs (several models, seeds or settings) of one probe, e.g. a curve for each.

    Raises InputError for fewer than two runs, runs of different probes, and a probe that has no such figure."""
    if len(runs) < 2:
        raise InputError("A figure of several runs needs at least two.")
    probes = list(dict.fromkeys(probe_name(run) for run in runs))
    if len(probes) > 1:
        raise InputError(f"A figure shows runs of one probe, and these are of {', '.join(probes)}.")
    place = registry.get(probes[0]).figures_of_several
    if place is None:
        raise InputError(
            f"The probe '{probes[0]}' has no figure of several runs; draw each by itself, or see 'workbench compare'."
        )
    return registry.load_function(place)(runs)


def export_of_several(
    runs: Sequence[Any], *, formats: Sequence[str] = ("pdf",), preset: str = "single", out: str | Path | None = None
) -> list[Path]:
    """Write the figure of several runs with its caption and BibTeX; returns the files.

    `out`: the folder; None: `figures/` of the first run, where the file is called after the ends of the runs' ids.
    Errors as in `export_run` and `figure_of_several`."""
    fig = figure_of_several(runs)
    folder = Path(out) if out is not None else Path(runs[0].folder) / "figures"
    name = "compare" if out is not None else "compare-" + "-".join(str(run.id)[-6:] for run in runs)
    make_folder(folder)
    others = [
        f"{model_name(run)} (weights {str(info(run, 'model', 'fingerprint', default=''))[:12]}, run {run.id})"
        for run in runs[1:]
    ]
    texts = {
        f"{name}.caption.txt": f"{export.caption(runs[0], fig)} Further runs: {'; '.join(others)}.",
        f"{name}.bib": export.bibtex(runs[0]),
    }
    written = []
    for file, text in texts.items():
        if text:
            write_bytes(folder / file, f"{text}\n".encode())
            written.append(folder / file)
    for format in sorted(dict.fromkeys(formats), key=lambda f: f in export.DRAWN):  # what needs no browser first
        written.append(export.export(fig, folder / f"{name}.{format}", format=format, preset=preset))
    return written
