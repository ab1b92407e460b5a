"""The probes: declared with a decorator, found by name, imported when they are used.

A probe is a folder (or a module) with a frozen config dataclass and one decorated function::

    @dataclass(frozen=True)
    class Entropy:
        samples: int = option(100, "how many texts to read", low=1)

    @probe("entropy", summary="Entropy of the next token.", tables={"texts": ("row", "entropy")}, bibtex="@misc{...}")
    def run(model: Model, config: Entropy, context: Context) -> Result:
        ...

Found are the sub-packages of every package that the entry-point group ``workbench.probe_folders`` names (the folder
``my_probe`` is the probe ``my-probe``; ``WORKBENCH_PROBES`` adds folders of one's own to those of the project), then
the modules that the group ``workbench.probes`` names. ``workbench run entropy`` then finds it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from workbench.core.config import check_class, option
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.nearest_name import nearest

__all__ = ["DataSpec", "Probe", "get", "names", "option", "probe", "problem", "register", "unregister"]

MODULES = "workbench.probes"  # name of the probe -> its module
FOLDERS = "workbench.probe_folders"  # any name -> a package whose sub-packages are probes
LINK_ENDS = ("source_layer", "source_head", "target_layer", "target_head")  # of the tables of `head_links`
HEAD_MASK = "head mask"  # what `leaves` calls a file that `--edit` reads; the explorer offers these


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
    # The file that goes with a model of that name (an organism): a path where it ships with the model, "package:path"
    # where it ships with the project; None for any other model. Goes before `default`.
    for_model: Callable[[str], Path | str | None] | None = None
    folder: bool = False
    option: str | None = None

    def default_path(self, model: str | None = None) -> Path | None:
        """The file that is read where none is given: the model's own where it comes with one, else the shipped one;
        None where there is neither."""
        return self.default_file(model)[0]

    def default_file(self, model: str | None = None) -> tuple[Path | None, str | None]:
        """:meth:`default_path` and the name that a run keeps of it: "package:path", or "model:file" where it ships with
        the model."""
        own = self.for_model(model) if model is not None and self.for_model is not None else None
        if isinstance(own, Path):
            return own, f"{model}:{own.name}"
        name = self.default if own is None else own
        if name is None:
            return None, None
        package, _, inside = name.partition(":")
        from importlib.resources import files

        return Path(str(files(package).joinpath(inside))), name


@dataclass(frozen=True)
class Probe:
    """What the house knows of a probe; see :func:`probe` for the fields."""

    name: str
    summary: str
    run: Callable[..., Any]
    config: type
    tables: Mapping[str, tuple[str, ...]]
    bibtex: str
    data: DataSpec | None = None
    validate: Callable[..., None] | None = None
    before_loading: str | None = None
    figures: str | None = None
    figures_of_several: str | None = None
    estimate: Callable[[Any, Path | None, Any], Any] | None = None
    example: Callable[[Any], Mapping[str, Any]] | None = None
    example_models: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    leaves: Mapping[str, str] = field(default_factory=dict)
    head_scores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shares: tuple[str, ...] = ()
    layer_curves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    token_groups: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    title: str = ""
    version: int = 1
    material: Callable[[Any, str], Mapping[str, Any]] | None = None
    imports: Mapping[str, str] = field(default_factory=dict)
    comparable: str | None = None
    fed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    head_links: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def check(self, config: Any, data: Path | None, model: str | None = None, facts: Any = None) -> None:
        """What the probe's `validate` says; of the model too, where it asks for its name or for what is known of
        it."""
        if self.validate is not None:
            asked = inspect.signature(self.validate).parameters
            about = {"model": model, "facts": facts}
            self.validate(config, data, **{name: value for name, value in about.items() if name in asked})


_registered: dict[str, Probe] = {}


def probe(
    name: str,
    *,
    summary: str,
    tables: Mapping[str, tuple[str, ...]],
    bibtex: str,
    data: DataSpec | None = None,
    validate: Callable[..., None] | None = None,
    before_loading: str | None = None,
    figures: str | None = None,
    figures_of_several: str | None = None,
    estimate: Callable[[Any, Path | None, Any], Any] | None = None,
    example: Callable[[Any], Mapping[str, Any]] | None = None,
    example_models: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    leaves: Mapping[str, str] | None = None,
    head_scores: Mapping[str, tuple[str, ...]] | None = None,
    shares: tuple[str, ...] = (),
    layer_curves: Mapping[str, tuple[str, ...]] | None = None,
    token_groups: Mapping[str, tuple[str, str]] | None = None,
    keys: Mapping[str, tuple[str, ...]] | None = None,
    title: str = "",
    version: int = 1,
    material: Callable[[Any, str], Mapping[str, Any]] | None = None,
    imports: Mapping[str, str] | None = None,
    comparable: str | None = None,
    fed: Mapping[str, Mapping[str, str]] | None = None,
    head_links: Mapping[str, tuple[str, ...]] | None = None,
) -> Callable[[Callable], Callable]:
    """Register ``run(model, config: MyConfig, context) -> Result`` as the probe ``name``; the function itself is
    unchanged.

    ``summary``: one sentence. ``tables``: table -> columns that it always has (it may have more). ``validate(config,
    data_path)``: raises InputError before any model is loaded; one with a parameter ``model`` is also given its name,
    or None where it is not known yet, one with a parameter ``facts`` what is known of the model from its files
    (:class:`workbench.models.model_outline.Facts`), or None. ``before_loading``: ``"module:function"``, called as
    function(model, config, context) with the model as it is without its weights
    (:class:`workbench.models.unloaded_model.UnloadedModel`); it raises InputError for what tokenizer, config,
    autoencoder or checkpoints say against the run, so that it is known before an hour of loading. ``needs``: what a
    model must have for the probe to run on it at all, ``"tokenizer"`` or names of
    :class:`workbench.models.facts.ModelFacts`; a model that lacks it by its files is refused before it is loaded.
    ``version``: raise it when the numbers change, so that
    old runs are not taken for new ones. ``material(config, model name)``: what the numbers depend on besides config and
    data file, for example a text that ships with the project, by name: paths, which count by their content, or plain
    values. It goes into the identity of a run and into run.json.

    What the command line, the app and the explorer show of it:

    ``figures``: ``"module:function"`` giving ``{name: Figure}`` of a run. ``figures_of_several``: ``"module:function"``
    giving one Figure of a list of runs. ``estimate(config, data path, Facts)``: the Plan of a run, see
    :mod:`workbench.runs.cost`; None where nothing is known. ``example(Facts)``: config values of a short run that
    completes on that model; raises InputError, with the reason, where there are none. ``example_models``: the models on
    which ``workbench demo`` makes one.

    ``keys``: table -> columns that identify a row (for ``compare``; what stands left of the first measured number where
    absent). ``comparable``: ``"module:function"`` that says of two runs what of them is not of one measure, see
    :mod:`workbench.runs.comparable`. ``head_scores``: table with one row per ``layer`` and ``head`` -> columns that say
    something about a head; the first is the one that the explorer opens on, and ``ci_low``, ``ci_high`` are its
    interval. ``shares``: those of them that are shares or frequencies, drawn on the whole scale from 0 to 1.
    ``head_links``: table with links from one head to a later one (``source_layer``, ``source_head``, ``target_layer``,
    ``target_head``) -> the column of their strength and, where not all rows count, one that says which do; the explorer
    draws the strongest as arrows.
    ``layer_curves``: table with rows per ``layer`` -> columns that are a course over the layers, the interval as above.
    ``token_groups``: table with a row per group of tokens -> (column of the group's name, column of its token ids, a
    list); the explorer's lens map shows how much of what a layer would say is of each.
    ``leaves``: pattern of a file's name -> what it is, for files that a run leaves in its folder beside the usual ones;
    ``HEAD_MASK`` for one that ``--edit`` reads. ``fed``: table -> what finds the prompt of one of its rows in the table
    ``inputs``: a column of ``inputs`` -> the table's column of the same value; where a table is not named, the key
    columns of ``inputs`` that it has, too. ``imports``: what a file with results of others is called, in a few
    words -> ``"module:function"`` that reads it, see :mod:`workbench.runs.imported`.
    """

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
                tables=_columns(tables),
                bibtex=bibtex.strip(),
                data=data,
                validate=validate,
                before_loading=before_loading,
                figures=figures,
                figures_of_several=figures_of_several,
                estimate=estimate,
                example=example,
                example_models=tuple(example_models),
                needs=tuple(needs),
                leaves=dict(leaves or {}),
                head_scores=_columns(head_scores),
                shares=tuple(shares),
                layer_curves=_columns(layer_curves),
                token_groups={table: (name, ids) for table, (name, ids) in (token_groups or {}).items()},
                keys=_columns(keys),
                title=title or name.replace("-", " ").capitalize(),
                version=version,
                material=material,
                imports=dict(imports or {}),
                comparable=comparable,
                fed={table: dict(columns) for table, columns in (fed or {}).items()},
                head_links=_columns(head_links),
            )
        )
        return run

    return decorate


def _columns(declared: Mapping[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]]:
    return {table: tuple(columns) for table, columns in (declared or {}).items()}


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
def _entry_points(group: str) -> Mapping[str, str]:
    """name -> module or package, from the installed packages; read once, nothing is imported."""
    from importlib.metadata import entry_points

    return {point.name: point.value.partition(":")[0] for point in entry_points(group=group)}


def _modules() -> dict[str, str]:
    """name -> module of every probe that is not registered by hand. The folders are looked through anew each time; none
    of them is imported."""
    found: dict[str, str] = {}
    for name, package in _entry_points(FOLDERS).items():
        try:
            parent = importlib.import_module(package)
            folders = list(_folders(parent))
        except Exception:  # `get` of its name says what is wrong with it
            found.setdefault(name, package)
            continue
        order = [part for part in getattr(parent, "ORDER", ()) if part in folders]
        for part in [*order, *(part for part in folders if part not in order)]:
            found.setdefault(part.replace("_", "-"), f"{package}.{part}")
    for name, module in _entry_points(MODULES).items():
        found.setdefault(name, module)
    return found


def _folders(parent: Any) -> Iterator[str]:
    """The sub-packages of a package, by name; those that begin with an underscore are none of its probes."""
    for part in pkgutil.iter_modules(parent.__path__):
        if part.ispkg and not part.name.startswith("_"):
            yield part.name


def names() -> list[str]:
    """The names of all probes in the order in which they are shown, without importing one: folders, modules, then what
    was registered by hand."""
    return list(dict.fromkeys([*_modules(), *_registered]))


def get(name: str) -> Probe:
    """The probe of that name, imported now if need be. Raises InputError with the nearest name for an unknown one,
    WorkbenchError for one that cannot be imported."""
    if name in _registered:
        return _registered[name]
    module = _modules().get(name)
    if module is None:
        raise InputError(f"There is no probe '{name}'{nearest(name, names())}; the probes are {', '.join(names())}.")
    try:
        importlib.import_module(module)
    except Exception as error:
        for declared in [name for name, item in _registered.items() if item.run.__module__ == module]:
            unregister(declared)  # before it failed
        said = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise WorkbenchError(
            f"The probe '{name}' is in the module {module}, which cannot be imported: {said.rstrip('.')}."
        ) from error
    if name not in _registered:
        raise WorkbenchError(f"The module {module} was to define the probe '{name}' and does not.")
    return _registered[name]


def problem(name: str) -> str | None:
    """Why a probe cannot be used, or None."""
    try:
        get(name)
    except Exception as error:  # a broken third-party probe must not take the list of probes with it
        return f"{type(error).__name__}: {error}" if not isinstance(error, WorkbenchError) else str(error)
    return None


def load_function(place: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names. Raises WorkbenchError where there is none."""
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise WorkbenchError(f"It must be 'module:function', not '{place}'.")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise WorkbenchError(f"The module {module} cannot be imported: {error}.") from error
    if not callable(found):
        raise WorkbenchError(f"The module {module} has no function '{name}'.")
    return found
