"""Several runs from one file: models x seeds x probes x configs.

::

    models = ["organism", "organism-chat"]      # or model = "organism"
    seeds = [0, 1]                              # optional, as are device, dtype, engine, revision, adapter and date
    [[probes]]
    name = "my-probe"
    data = "texts.csv"                          # optional; relative to this file
    config = { lengths = [128, 256] }           # the same in every run
    grid = { score = ["set", "count"] }         # one run for each combination
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.config import check_seed, read_toml, to_dict
from workbench.core.errors import Cancelled, InputError, WorkbenchError
from workbench.core.hub_files import is_address
from workbench.core.nearest_name import nearest
from workbench.core.paths import user_path
from workbench.core.wording import one_line
from workbench.models.before_loading import check_presence, check_request
from workbench.models.devices import free_caches
from workbench.models.load_options import check_device, read_day
from workbench.runs import execution

_OPTIONS = ("device", "dtype", "engine", "revision", "adapter", "date")
_TOP = ("model", "models", "seed", "seeds", "probes", *_OPTIONS)
_PROBE = ("name", "data", "config", "grid", "models", "seeds")


@dataclass(frozen=True)
class PlannedRun:
    """One run to be."""

    probe: str
    model: str
    seed: int
    config: dict[str, Any]
    data: Path | str | None
    options: dict[str, Any]  # device, dtype, engine, revision, adapter, date: those that are given


def read(path: str | Path) -> list[PlannedRun]:
    """The runs that a sweep file asks for, each checked as far as that goes without a model, grouped by model."""
    path = Path(path)
    found = read_toml(path)
    _known(found, _TOP, path, "the sweep")
    probes = found.get("probes")
    if not isinstance(probes, list) or not probes or not all(isinstance(item, dict) for item in probes):
        raise InputError(f"{path} needs at least one [[probes]] with a name.")
    options = _options(found, path)
    models = _list(found, "model", "models", str, path, None)
    seeds = _seeds(found, "seed", path, [0])
    jobs = []
    for number, item in enumerate(probes, 1):
        where = f"[[probes]] number {number}"
        _known(item, _PROBE, path, where)
        if "name" not in item:
            raise InputError(f"{path}: {where} has no name.")
        data = _data(_text(item["data"], "data", path), path) if "data" in item else None
        mine = _list(item, None, "models", str, path, models)
        if not mine:
            raise InputError(f'{path} names no model: write models = ["organism"].')
        configs = []
        for values in _combinations(item, path, where):
            try:
                ready = [execution.prepare(item["name"], values, data, model=model) for model in mine]
                configs.append(to_dict(ready[0].config))
            except InputError as error:
                raise InputError(f"{path}, {where}: {error}") from None
        jobs += [
            PlannedRun(item["name"], model, seed, config, data, options)
            for model in mine
            for seed in _seeds(item, None, path, seeds)
            for config in configs
        ]
    order = list(dict.fromkeys(job.model for job in jobs))  # a model is loaded once
    return sorted(jobs, key=lambda job: order.index(job.model))


def _data(text: str, path: Path) -> Path | str:
    """A data file of a sweep: relative to the sweep's file, or an address on the hub."""
    return text if is_address(text) else path.parent / user_path(text)


def check(jobs: Sequence[PlannedRun]) -> list[str | None]:
    """What is known to be wrong with the model of each run, without loading it; None where nothing is."""
    found: dict[str, str | None] = {}
    for job in jobs:
        if job.model not in found:
            try:
                _check_options(job.model, job.options)
                check_presence(job.model, revision=job.options.get("revision"), device=job.options.get("device"))
                found[job.model] = None
            except InputError as error:
                found[job.model] = str(error)
    return [found[job.model] for job in jobs]


def run(jobs: list[PlannedRun], *, progress: Callable[[int, int, str], None] | None = None) -> list[dict[str, Any]]:
    """Run them all; one that fails, however it does, does not stop the others, and a model that cannot be loaded is
    tried once. A dict per run: status, probe, model, seed, run, folder, config, summary, error. Raises Cancelled when
    it was stopped; what is complete is kept."""
    outcomes: list[dict[str, Any]] = []
    models = _Models()
    for index, job in enumerate(jobs):
        label = f"run {index + 1} of {len(jobs)}, {job.probe} on {job.model}"

        def report(done: int, total: int, what: str, label: str = label) -> None:
            if progress is not None:
                progress(done, total, f"{label}: {what}")

        outcome = {
            "status": "failed",
            "probe": job.probe,
            "model": job.model,
            "seed": job.seed,
            "run": None,
            "config": job.config,
        }
        try:
            done = execution.execute(
                job.probe,
                models.of(job, report),
                config=job.config,
                data=job.data,
                seed=job.seed,
                engine=job.options.get("engine", "hf"),
                progress=report,
            )
            outcome.update(status=done.status, run=done.id, folder=str(done.folder), summary=done.summary)
        except (Cancelled, KeyboardInterrupt):
            raise Cancelled(
                f"Cancelled after {len(outcomes)} of {len(jobs)} runs; the same command goes on from there."
            ) from None
        except BaseException as error:  # also what is no Exception: a panic in Rust, a library that wants to exit
            outcome["error"] = _said(error)
        if "error" in outcome:
            free_caches()  # out here: the error held on to the frames, and so to the memory, of the run that failed
        outcomes.append(outcome)
    return outcomes


@dataclass
class _Models:
    """The model that is loaded, one at a time, and what kept the last one from being loaded."""

    key: tuple = ()
    model: Any = None
    error: str = ""

    def of(self, job: PlannedRun, report: Callable[[int, int, str], None]) -> Any:
        """The model of a run. Raises InputError at once where it could not be loaded before."""
        key = (job.model, *sorted(job.options.items()))
        if key != self.key:
            self.key, self.model, self.error = key, None, ""  # the last model goes before the next one comes
            free_caches()
            report(0, 0, "loading the model")
            from workbench.models.loading import load

            options = {name: job.options[name] for name in _OPTIONS if name in job.options and name != "engine"}
            try:
                self.model = load(job.model, options.pop("revision", None), **options)
            except (Cancelled, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.error = _said(error)
        if self.model is None:
            raise InputError(self.error)
        return self.model


def _said(error: BaseException) -> str:
    """One sentence of why a run failed."""
    if isinstance(error, WorkbenchError):
        return str(error)
    said = one_line(error)
    return f"{type(error).__name__}: {said}" if said != type(error).__name__ else said


def _options(found: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The options that hold for every run; InputError for those that no model could be loaded with."""
    options = {}
    for key in _OPTIONS:
        if key in found:
            value = found[key]
            if key == "date" and isinstance(value, datetime.date):  # TOML knows dates
                value = str(read_day(value))
            options[key] = _text(value, key, path)
    if "adapter" in options:
        options["adapter"] = str((path.parent / Path(options["adapter"]).expanduser()).resolve())
    try:
        execution.check_engine(options.get("engine", "hf"))
        _check_options("", {key: value for key, value in options.items() if key != "revision"})
        if "device" in options:
            check_device(options["device"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return options


def _check_options(model: str, options: Mapping[str, str]) -> None:
    check_request(model, **{key: options[key] for key in ("revision", "adapter", "date", "dtype") if key in options})


def _combinations(item: Mapping[str, Any], path: Path, where: str) -> list[dict[str, Any]]:
    fixed, grid = item.get("config", {}), item.get("grid", {})
    if not isinstance(fixed, dict) or not isinstance(grid, dict):
        raise InputError(f"{path}, {where}: config and grid are tables, as in config = {{ key = value }}.")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}, {where}: grid.{key} must be a list of the values to try.")
        if key in fixed:
            raise InputError(f"{path}, {where}: '{key}' is in config and in grid.")
    return [{**fixed, **dict(zip(grid, values))} for values in itertools.product(*grid.values())]


def _list(
    table: Mapping[str, Any], one: str | None, many: str, kind: type, path: Path, default: list | None
) -> list | None:
    """``seeds = [0, 1]``, ``seeds = 0`` or ``seed = 0``."""
    if one is not None and one in table and many in table:
        raise InputError(f"{path} has both '{one}' and '{many}'; keep one.")
    name = many if many in table else one
    if name is None or name not in table:
        return default
    values = table[name] if isinstance(table[name], list) else [table[name]]
    if not values or any(not isinstance(value, kind) or isinstance(value, bool) for value in values):
        raise InputError(f"{path}: '{name}' must be {'text' if kind is str else 'a whole number'} or a list of it.")
    return values


def _seeds(table: Mapping[str, Any], one: str | None, path: Path, default: list) -> list:
    """The seeds, each as a run takes it."""
    try:
        return [check_seed(seed) for seed in _list(table, one, "seeds", int, path, default) or ()]
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _text(value: Any, name: str, path: Path) -> str:
    if not isinstance(value, str):
        raise InputError(f"{path}: '{name}' must be text.")
    return value


def _known(table: Mapping[str, Any], known: tuple[str, ...], path: Path, where: str) -> None:
    for key in table:
        if key not in known:
            raise InputError(
                f"{path}: {where} has no key '{key}'{nearest(key, known)}; its keys are {', '.join(known)}."
            )
