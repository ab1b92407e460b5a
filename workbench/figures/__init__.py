"""Figures: one house style, pure functions of a run's tables, and files for papers.

``build(run)`` gives every figure that a run's tables allow; ``dressed`` sizes and colours one;
``workbench.figures.export`` writes files.
Plotly is imported when the first figure is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.figures.choices import Choice

__all__ = ["build", "choices_of", "collected", "dressed", "drawn_with", "problems"]


def build(run: Any, name: str | None = None) -> dict[str, go.Figure]:
    """``{name: figure}`` of a run, light and at screen size; with ``name``, that figure only.

    The probe declares its function in the registry. Raises InputError when the probe draws none, when no table allows
    one, and for an unknown name.
    """
    from workbench.core.nearest_name import nearest

    made = _function(run)(run)
    if name is None:
        return made
    if name not in made:
        reason = problems(run).get(name)
        raise InputError(reason or f"There is no figure '{name}'{nearest(name, made)}; this run has {', '.join(made)}.")
    return {name: made[name]}


def problems(run: Any) -> dict[str, str]:
    """Why a figure of this probe is not drawn, in a sentence each."""
    return collected(run)[1]


def collected(run: Any) -> tuple[dict[str, go.Figure], dict[str, str]]:
    """(figures, reasons): what a run's tables allow, and in a sentence each why the rest was not drawn. Raises nothing
    for a run without a figure; a third-party probe that has no FIGURES gives its figures and no reasons."""
    from workbench.figures.run_tables import collect

    function = _function(run)
    table = _beside(function, "FIGURES")
    if table is not None:
        return collect(run, table)
    try:
        return function(run), {}
    except InputError as error:
        return {}, {"figures": str(error)}


def choices_of(run: Any, name: str, chosen: Mapping[str, Any]) -> list[Choice]:
    """What can be chosen of a figure of a run: the entry of the figures module's ``CHOICES`` for this figure, called
    with the run and what is chosen so far (by keyword); none where the module has no such entry."""
    offered = (_beside(_function(run), "CHOICES") or {}).get(name)
    return [] if offered is None else offered(run, chosen)


def drawn_with(run: Any, name: str, values: Mapping[str, Any]) -> go.Figure:
    """A figure that has choices, drawn with these keywords. Raises InputError where it cannot be."""
    return _beside(_function(run), "FIGURES")[name](run, **values)


def dressed(fig: go.Figure, **how: Any) -> go.Figure:
    """See :func:`workbench.figures.layout.dressed`."""
    from workbench.figures.layout import dressed as dress

    return dress(fig, **how)


def _function(run: Any) -> Callable[[Any], dict]:
    from workbench.core import registry

    probe = registry.get(probe_name(run))
    if not probe.figures:
        raise InputError(f"The probe '{probe.name}' draws no figures.")
    return registry.load_function(probe.figures)


def _beside(function: Callable, name: str) -> Any:
    """A table in the module of a probe's figures function; None where there is none."""
    import sys

    return getattr(sys.modules[function.__module__], name, None)


def probe_name(run: Any) -> str:
    """The name of a run's probe, whether the run keeps the name or the probe itself."""
    value = getattr(run, "probe", None) or (run.info or {}).get("probe")
    return value if isinstance(value, str) else value.name
