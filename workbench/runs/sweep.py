"""Several runs from one file: models x seeds x probes x configs.

::

    models = ["organism", "organism-chat"]      # or model = "organism"
    seeds = [0, 1]                              # optional, as are device, dtype, engine and revision
    [[probes]]
    name = "my-probe"
    data = "texts.csv"                          # optional; relative to this file
    config = { lengths = [128, 256] }           # the same in every run
    grid = { score = ["set", "count"] }         # one run for each combination
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.config import check_seed, read_toml, to_dict
from workbench.core.errors import Cancelled, InputError, WorkbenchError
from workbench.core.nearest_name import nearest
from workbench.core.paths import user_path
from workbench.runs import execution

_TOP = ("model", "models", "seed", "seeds", "probes", "device", "dtype", "engine", "revision")
_PROBE = ("name", "data", "config", "grid", "models", "seeds")


@dataclass(frozen=True)
class PlannedRun:
    """One run to be."""

    probe: str
    model: str
    seed: int
    config: dict[str, Any]
    data: Path | None
    options: dict[str, Any]  # device, dtype, engine, revision


def read(path: str | Path) -> list[PlannedRun]:
    """The runs that a sweep file asks for, each checked as far as that goes without a model, grouped by model."""
    path = Path(path)
    found = read_toml(path)
    _known(found, _TOP, path, "the sweep")
    probes = found.get("probes")
    if not isinstance(probes, list) or not probes or not all(isinstance(item, dict) for item in probes):
        raise InputError(f"{path} needs at least one [[probes]] with a name.")
    options = {key: _text(found[key], key, path) for key in ("device", "dtype", "engine", "revision") if key in found}
    models = _list(found, "model", "models", str, path, None)
    seeds = _seeds(found, "seed", path, [0])
    jobs = []
    for number, item in enumerate(probes, 1):
        where = f"[[probes]] number {number}"
        _known(item, _PROBE, path, where)
        if "name" not in item:
            raise InputError(f"{path}: {where} has no name.")
        data = path.parent / user_path(_text(item["data"], "data", path)) if "data" in item else None
        mine = _list(item, None, "models", str, path, models)
        if not mine:
            raise InputError(f'{path} names no model: write models = ["organism"].')
        configs = []
        for values in _combinations(item, path, where):
            try:
                configs.append(to_dict(execution.prepare(item["name"], values, data).config))
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


def run(jobs: list[PlannedRun], *, progress: Callable[[int, int, str], None] | None = None) -> list[dict[str, Any]]:
    """Run them all; one that fails does not stop the others. A dict per run: status, probe, model, seed, run, folder,
    config, summary, error. Raises Cancelled when it was stopped; what is complete is kept."""
    outcomes: list[dict[str, Any]] = []
    loaded: tuple[str, Any] = ("", None)
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
            if loaded[0] != job.model:
                from workbench.models.loading import load

                loaded = ("", None)  # the last model goes before the next one comes
                report(0, 0, "loading the model")
                options = {key: job.options[key] for key in ("device", "dtype") if key in job.options}
                loaded = (job.model, load(job.model, job.options.get("revision"), **options))
            done = execution.execute(
                job.probe,
                loaded[1],
                config=job.config,
                data=job.data,
                seed=job.seed,
                engine=job.options.get("engine", "hf"),
                progress=report,
            )
            outcome.update(status=done.status, run=done.id, folder=str(done.folder), summary=done.summary)
        except Cancelled:
            raise Cancelled(
                f"Cancelled after {len(outcomes)} of {len(jobs)} runs; the same command goes on from there."
            ) from None
        except WorkbenchError as error:
            outcome["error"] = str(error)
        outcomes.append(outcome)
    return outcomes


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
