"""The probes: declared with a decorator, found by name, imported when they are used.

A probe is a module with a frozen config dataclass and one decorated function::

    @dataclass(frozen=True)
    class Entropy:
        samples: int = option(100, "how many texts to read", low=1)

    @probe("entropy", summary="Entropy of the next token.", tables={"texts": ("row", "entropy")},
    bibtex="@article{...}") def run(model: Model, config: Entropy, context: Context) -> Result:
        ...

Its package names the module in the entry-point group ``workbench.probes``; ``workbench run entropy`` then finds it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from workbench.core.config import check_class, option
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.nearest_name import nearest

__all__ = ["DataSpec", "Probe", "get", "names", "option", "probe", "problem", "register", "unregister"]

GROUP = "workbench.probes"


@dataclass(frozen=True)
class DataSpec:
    """The data file of a probe. ``required``: columns. ``default``: the file that ships with the project, as
    ``"package:path/inside/it"``. ``optional``: the probe also runs without one. ``folder``: a folder of such files also
    does. ``option``: the config key that may name the file in place of --data (any text but its default does)."""

    required: tuple[str, ...] = ()
    default: str | None = None
    what: str = "data"
    optional: bool = False
    columns: tuple[str, ...] = ()  # further columns that are read where they are present
    # The file that ships with a model of that name (an organism), None for any other model; goes before `default`.
    for_model: Callable[[str], Path | None] | None = None
    folder: bool = False
    option: str | None = None

    def default_path(self) -> Path | None:
        """The shipped file; None where there is none."""
        if self.default is None:
            return None
        package, _, inside = self.default.partition(":")
        from importlib.resources import files

        return Path(str(files(package).joinpath(inside)))


@dataclass(frozen=True)
class Probe:
    """What the registry knows of a probe; see :func:`probe` for the fields."""

    name: str
    summary: str
    run: Callable[..., Any]
    config: type
    tables: Mapping[str, tuple[str, ...]]
    bibtex: str
    data: DataSpec | None = None
    validate: Callable[[Any, Path | None], None] | None = None
    figures: str | None = None
    demo: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    title: str = ""
    version: int = 1
    material: Callable[[Any, str], Mapping[str, Any]] | None = None


_registered: dict[str, Probe] = {}


def probe(
    name: str,
    *,
    summary: str,
    tables: Mapping[str, tuple[str, ...]],
    bibtex: str,
    data: DataSpec | None = None,
    validate: Callable[[Any, Path | None], None] | None = None,
    figures: str | None = None,
    demo: Mapping[str, Any] | None = None,
    keys: Mapping[str, tuple[str, ...]] | None = None,
    title: str = "",
    version: int = 1,
    material: Callable[[Any, str], Mapping[str, Any]] | None = None,
) -> Callable[[Callable], Callable]:
    """Register ``run(model, config: MyConfig, context) -> Result`` as the probe ``name``; the function itself is
    unchanged.

    ``summary``: one sentence. ``tables``: table -> columns that it always has (it may have more). ``validate(config,
    data_path)``: raises InputError before any model is loaded. ``figures``: ``"module:function"`` giving ``{name:
    Figure}`` of a run. ``demo``: config values of a short run. ``keys``: table -> columns that identify a row (for
    ``compare``; found by itself where absent). ``version``: raise it when the numbers change, so that old runs are not
    taken for new ones. ``material(config, model name)``: what the numbers depend on besides config and data file, for
    example a text that ships with the project, by name: paths, which count by their content, or plain values. It goes
    into the identity of a run and into run.json.
    """
    import inspect

    def decorate(run: Callable) -> Callable:
        where = f"probe '{name}'"
        parameters = list(inspect.signature(run).parameters)
        if parameters[:3] != ["model", "config", "context"]:
            raise TypeError(
                f"{where}: the function must be run(model, config, context), not run({', '.join(parameters)})"
            )
        annotation = run.__annotations__.get("config")
        if isinstance(annotation, str):  # `from __future__ import annotations`
            here = inspect.currentframe()
            caller = here.f_back if here else None
            annotation = _named(annotation, [caller.f_locals if caller else {}, sys.modules[run.__module__].__dict__])
        if annotation is None:
            raise TypeError(f"{where}: annotate the argument `config` with the config dataclass")
        check_class(annotation, where=where)
        if data is not None and data.option is not None and data.option not in annotation.__dataclass_fields__:
            raise TypeError(f"{where}: the config has no key '{data.option}' that could name the data file")
        register(
            Probe(
                name=name,
                summary=" ".join(summary.split()),
                run=run,
                config=annotation,
                tables={table: tuple(columns) for table, columns in tables.items()},
                bibtex=bibtex.strip(),
                data=data,
                validate=validate,
                figures=figures,
                demo=dict(demo or {}),
                keys={table: tuple(columns) for table, columns in (keys or {}).items()},
                title=title or name.replace("-", " ").capitalize(),
                version=version,
                material=material,
            )
        )
        return run

    return decorate


def _named(annotation: str, namespaces: list[Mapping[str, Any]]) -> Any:
    """The class that an annotation such as ``Config`` or ``module.Config`` names; None where there is none."""
    first, *rest = annotation.split(".")
    found = next((names[first] for names in namespaces if first in names), None)
    for name in rest:
        found = getattr(found, name, None)
    return found


def register(item: Probe) -> None:
    """Add a probe at run time (the decorator does). A name belongs to one module."""
    if not item.name or not all(part.isalnum() and part.islower() or part.isdigit() for part in item.name.split("-")):
        raise TypeError(f"probe '{item.name}': a name is lower-case words joined by hyphens")
    known = _registered.get(item.name)
    if known is not None and known.run.__module__ != item.run.__module__:
        raise WorkbenchError(
            f"Two modules define the probe '{item.name}': {known.run.__module__} and {item.run.__module__}; rename one."
        )
    _registered[item.name] = item


def unregister(name: str) -> None:
    """Forget a probe that was registered at run time."""
    _registered.pop(name, None)


@cache
def _entry_points() -> Mapping[str, str]:
    """name -> module, from the installed packages; read once, nothing is imported."""
    from importlib.metadata import entry_points

    return {point.name: point.value.partition(":")[0] for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """The names of all probes, without importing one; the installed ones first."""
    return list(dict.fromkeys([*_entry_points(), *_registered]))


def get(name: str) -> Probe:
    """The probe of that name, imported now if need be. Raises InputError with the nearest name for an unknown one."""
    if name in _registered:
        return _registered[name]
    points = _entry_points()
    if name not in points:
        raise InputError(f"There is no probe '{name}'{nearest(name, names())}; the probes are {', '.join(names())}.")
    try:
        importlib.import_module(points[name])
    except ImportError as error:
        raise WorkbenchError(
            f"The probe '{name}' is in the module {points[name]}, which cannot be imported: {error}."
        ) from error
    if name not in _registered:
        raise WorkbenchError(f"The module {points[name]} was to define the probe '{name}' and does not.")
    return _registered[name]


def problem(name: str) -> str | None:
    """Why a probe cannot be used, or None."""
    try:
        get(name)
    except Exception as error:  # a broken third-party probe must not take the list of probes with it
        return f"{type(error).__name__}: {error}" if not isinstance(error, WorkbenchError) else str(error)
    return None
