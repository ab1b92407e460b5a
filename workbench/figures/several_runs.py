"""One figure of several runs of a probe: what it declares as `figures_of_several`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import registry
from workbench.core.errors import InputError
from workbench.figures import export, probe_name
from workbench.figures.run_tables import model_name, source

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
    name = "compare" if out is not None else "compare-" + "-".join(str(run.id)[-6:] for run in runs)
    others = [f"{model_name(run)} ({source(run)}, run {run.id})" for run in runs[1:]]
    words = f"{export.caption(runs[0], fig)} Further runs: {'; '.join(others)}."
    folder = export.place_for([name], formats, runs[0], out)
    return export.write_figures(
        {name: fig}, {name: words}, folder, formats=formats, entry=export.bibtex(runs[0]), preset=preset
    )
