"""One probe on one model with one config, in a folder of its own: start, stop, resume, read."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import inspect
import json
import os
import shlex
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import config as configs
from workbench.core import registry
from workbench.core.context import Context, Result
from workbench.core.disk_errors import disk_errno, disk_sentence
from workbench.core.errors import Cancelled, InputError, RunFailed, WorkbenchError
from workbench.core.files import canonical, digest_path, remove_leftovers, write_json
from workbench.core.locks import folder_lock
from workbench.core.nearest_name import nearest
from workbench.core.paths import is_there, usable_path, user_path
from workbench.core.private import appending
from workbench.core.registry import Probe
from workbench.core.tables import existing, fingerprint_file, read_table
from workbench.models.load_options import DAY
from workbench.models.prompt_templates import uses_date
from workbench.runs import checksums, claim, provenance, records
from workbench.runs.folder import (
    ENDED,
    Run,
    check_file,
    check_result,
    list_runs,
    open_run,
    read_unsealed,
    run_by_id,
    runs_root,
    write_result,
)
from workbench.runs.identity import by_content, check_unchanged, model_name, own_name

if TYPE_CHECKING:
    from workbench.models.model import Model

__all__ = [
    "Context",
    "Prepared",
    "Result",
    "Run",
    "bind",
    "command_for",
    "execute",
    "figure",
    "list_runs",
    "open_run",
    "prepare",
    "run_by_id",
    "runs_root",
]

ENGINES = ("hf", "nnsight")
OPTIONS = (
    "data",
    "model",
    "seed",
    "revision",
    "adapter",
    "date",
    "device",
    "dtype",
    "engine",
    "edit",
    "edits",
    "out",
)  # of a run, beside the config of its probe
_PROGRESS_EVERY = 0.5  # seconds between lines of progress.jsonl


@dataclass(frozen=True)
class Prepared:
    """A probe with its config and data file, checked as far as that goes without a model."""

    probe: Probe
    config: Any
    data: Path | None
    data_name: str | None  # "package:path" or "model:file" where the file ships with the project or with the model


def prepare(
    probe: str | Probe, config: Any = None, data: str | Path | None = None, *, model: str | None = None
) -> Prepared:
    """Find the probe, build its config, look at its data file: where none is given, the one that goes with a model of
    that name. Raises InputError; loads no model."""
    item = registry.get(probe) if isinstance(probe, str) else probe
    where = f"the config of {item.name}"
    if isinstance(config, item.config):  # made by hand, so nothing of it was checked
        config = configs.build(item.config, configs.to_dict(config), where=where, literal=True)
    else:
        _no_options(item, config or {})
        config = configs.build(item.config, config, where=where)
    path, name = _data_file(item, config, data, model)
    if item.validate is not None:
        item.validate(config, path)
    elif path is not None and item.data is not None and item.data.required:
        read_table(path, required=item.data.required, what=item.data.what)
    return Prepared(probe=item, config=config, data=path, data_name=name)


def _no_options(item: Probe, values: Mapping[str, Any]) -> None:
    """Refuse an option of a run among the keys of a config, unless the probe has a key of that name."""
    for key in values:
        if key in OPTIONS and key not in configs.types_of(item.config):
            raise InputError(
                f"'{key}' is no key of the config of {item.name} but an option of the run: --{key} on the "
                f"command line, {key} = ... beside the config elsewhere."
            )


def execute(
    probe: str | Probe | Prepared,
    model: str | Path | Model,
    *,
    config: Any = None,
    data: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    date: str | datetime.date | None = None,
    dtype: str = "float32",
    device: str | None = None,
    engine: str = "hf",
    edits: Sequence[Any] = (),
    trust_remote_code: bool = False,
    store: Any = None,
    progress: Callable[[int, int, str], None] | None = None,
    cancel: Callable[[], bool] | Any = None,
    command: str | None = None,
    fresh: bool = False,
) -> Run:
    """Run a probe, or resume it, or return it if it is already complete.

    ``probe``: its name, or what :func:`prepare` gave for it (then ``config`` and ``data`` are that one's). ``config``:
    a dict (text values as on the command line) or the probe's config. ``model``: a name, or a loaded Model (then
    ``revision``, ``adapter``, ``date``, ``dtype`` and ``device`` are its own). ``adapter``: a folder of peft's, merged
    into the model. ``date``: the day that a chat template which prints today's date is told. ``cancel``: a function
    that says whether to stop, or a threading.Event; ``progress(done, total, label)``. ``fresh``: forget what is there
    and compute again. Raises InputError for bad input, Cancelled when it was stopped (the folder can be resumed),
    RunFailed otherwise.
    """
    begun = time.perf_counter()
    check_engine(engine)
    configs.check_seed(seed)
    name = str(model if isinstance(model, (str, Path)) else model.name)
    ready = probe if isinstance(probe, Prepared) else prepare(probe, config, data, model=name)
    if ready.data is not None and ready.data_name is None:
        check_file(ready.data)
    cancelled = getattr(cancel, "is_set", cancel)
    context = Context(
        store=store,
        seed=seed,
        data=ready.data,
        edits=tuple(edits),
        engine=engine,
        on_progress=progress,
        cancelled=cancelled,
    )
    folder: Path | None = None
    done: Run | None = None
    try:
        if isinstance(model, (str, Path)):
            context.progress(0, 0, f"loading {model}")
            from workbench.models.loading import load

            more = {name: value for name, value in (("adapter", adapter), ("date", date)) if value is not None}
            model = load(str(model), revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **more)
        else:
            _its_own(model, revision=revision, adapter=adapter, date=date)
        for warning in getattr(model, "warnings", ()):
            context.warn(warning)
        loaded = time.perf_counter() - begun
        context.check()
        ready = _with_own_data(ready, model.name)
        context.data = ready.data
        context.edits = edits = _applied(edits, model, context)
        identity = identify(ready, model, seed=seed, engine=engine, edits=edits)
        name = f"{ready.probe.name}-{hashlib.sha256(canonical(identity)).hexdigest()[:12]}"
        folder = claim.place(out, name)
        made = not os.path.lexists(folder)
        done = None if fresh else claim.finished(folder, name)
        if done is not None and not claim.left_over(folder):
            return done  # nothing is written, so that a cache that can only be read will do
        claim.own(folder, name, fresh=fresh, leaves=ready.probe.leaves)
        with folder_lock(
            folder / claim.LOCK,
            waiting=lambda who: context.progress(0, 0, f"another process computes this run ({who}); waiting for it"),
            check=context.check,
        ):
            return _locked(ready, model, context, folder, name, command, fresh, begun, loaded)
    except KeyboardInterrupt:
        raise Cancelled("Cancelled; the same command resumes the run.") from None
    except InputError:
        if folder is not None and made:  # nothing came of it, and nothing can be resumed; _locked has emptied it
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    except OSError as error:  # the first write of the run
        if done is not None:  # only the leftovers could not be removed
            return done
        raise error if folder is None else _failure(error, ready.probe, folder) from error


def check_engine(engine: str) -> None:
    """InputError for a name that is no engine."""
    if engine not in ENGINES:
        hosted = (
            " (both run on this machine; hosted models are not reached)" if engine.lower() in ("ndif", "remote") else ""
        )
        raise InputError(f"There is no engine '{engine}'; the engines are {', '.join(ENGINES)}{hosted}.")


def _its_own(model: Any, **asked: Any) -> None:
    """Refuse what can only be asked for when a model is loaded, where this one was loaded without it."""
    day = getattr(model, "day", None)
    adapter = getattr(model, "adapter", None)
    own = {"revision": model.revision, "adapter": adapter and str(adapter.path), "date": day and str(day)}
    for name, value in asked.items():
        if value is None:
            continue
        said = str(Path(value).expanduser().resolve()) if name == "adapter" else str(value)
        if said != own[name]:
            raise InputError(
                f"{model.name} is loaded already, so {name}={value} means nothing here; give it to load(...)."
            )


def _locked(ready: Prepared, model, context: Context, folder, name, command, fresh, begun, loaded) -> Run:
    """The part of a run during which no other process may touch its folder."""
    remove_leftovers(folder)
    before: dict[str, Any] = {}
    if fresh:
        claim.clear(folder, leaves=ready.probe.leaves)
    elif os.path.lexists(folder / records.RUN):
        run = read_unsealed(folder)
        if run.info["status"] == "complete":
            damage = run.damage()
            if not damage:
                shutil.rmtree(folder / "parts", ignore_errors=True)
                return run
            context.warn(f"Files of this run were damaged on disk and were computed again: {claim.in_words(damage)}.")
            claim.clear(folder, leaves=ready.probe.leaves, figures=False)
        else:
            before = run.info
    if context.store is None:
        from workbench.store.activation_store import Store

        context.store = Store()
    context.out = folder
    info: dict[str, Any] = {
        "schema": records.SCHEMA,
        "id": name,
        "probe": ready.probe.name,
        "status": "running",
        "config": configs.to_dict(ready.config),
        "model": describe_model(model),
        "data": _describe_data(ready),
        **({"material": material} if (material := _material(ready, model.name)) else {}),
        "seed": context.seed,
        "engine": context.engine,
        "edits": _edits(context.edits),
        "versions": provenance.versions(),
        "command": command or command_for(ready, model, seed=context.seed, engine=context.engine),
        "started": before.get("started") or provenance.now(),
        "finished": None,
        "resumed": (before.get("resumed") or 0) + 1 if before else 0,
        "seconds": {"load": round(loaded, 4), "compute": 0.0, "total": 0.0},
        "counters": dict(context.counters),
        "peak_memory_bytes": 0,
        "warnings": [],
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }
    write_json(folder / records.RUN, info)
    (folder / ENDED).unlink(missing_ok=True)
    context.on_progress = _recorder(folder / "progress.jsonl", context.on_progress)
    provenance.reset_peak_memory()
    start = time.perf_counter()

    def close(status: str, error: BaseException | None = None) -> None:
        compute = time.perf_counter() - start + context.seconds_saved
        total = time.perf_counter() - begun + context.seconds_saved
        info.update(
            status=status,
            finished=provenance.now(),
            seconds={"load": round(loaded, 4), "compute": round(compute, 4), "total": round(total, 4)},
            counters=dict(context.counters),
            peak_memory_bytes=provenance.peak_memory_bytes(),
            warnings=list(context.warnings),
        )
        on_device = provenance.peak_device_memory_bytes()
        if on_device is not None:
            info["peak_device_memory_bytes"] = on_device
        if context.sae is not None:
            info["sae"] = dict(context.sae)
        if context.rows_used is not None and info["data"] is not None:
            there = info["data"].get("rows_in_file", info["data"]["rows"])
            info["data"] |= {"rows": context.rows_used} | (
                {"rows_in_file": there} if there not in (None, context.rows_used) else {}
            )
        if error is not None:
            info["error"] = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        if status == "complete":
            info["files"] = checksums.of_folder(folder)
        write_json(folder / records.RUN, records.seal(info) if status == "complete" else info)

    def close_if_it_can_be(status: str, error: BaseException | None = None) -> None:
        info.pop("files", None)
        try:
            close(status, error)
        except OSError:  # the disk cannot take the note; a mark may still fit, that nobody works here any more
            with contextlib.suppress(OSError):
                (folder / ENDED).touch()

    try:
        result = ready.probe.run(model, ready.config, context)
        check_unchanged(ready.data, info["data"]["fingerprint"] if info["data"] else None)
        check_result(ready.probe, result)
        write_result(folder, result)
        close("complete")
    except (KeyboardInterrupt, Cancelled):
        if not _is_complete(folder):  # else it came too late to stop anything
            close_if_it_can_be("cancelled")
            raise Cancelled(f"Cancelled; the same command resumes the run {name}.") from None
    except BaseException as error:
        if isinstance(error, InputError) and not before and not (folder / "parts").exists():
            claim.clear(folder, leaves=ready.probe.leaves)  # refused before anything was computed: no run
            raise
        close_if_it_can_be("failed", error)
        raise _failure(error, ready.probe, folder) from error
    shutil.rmtree(folder / "parts", ignore_errors=True)
    return open_run(folder)


def _is_complete(folder: Path) -> bool:
    try:
        return read_unsealed(folder).info["status"] == "complete"
    except InputError:
        return False


def _failure(error: BaseException, probe: Probe, folder: Path) -> BaseException:
    """The error as one sentence for a person; errors that are one already, and exits, stay as they are."""
    if isinstance(error, WorkbenchError) or not isinstance(error, Exception):
        return error
    refused = disk_errno(error)
    if refused is not None:
        return RunFailed(disk_sentence(refused, _place(error, folder), then="the same command resumes the run"))
    if _out_of_memory(error):
        return RunFailed(f"The probe '{probe.name}' ran out of memory; use a smaller batch, model or dtype.")
    text = " ".join(str(error).split()).rstrip(".") or "no message"
    return RunFailed(f"The probe '{probe.name}' failed with {type(error).__name__}: {text}.")


def _place(error: BaseException, folder: Path) -> Path | str:
    """Where the disk refused: the file that the system names, where it lies outside the run's folder."""
    named = error.filename if isinstance(error, OSError) else None
    return folder if not isinstance(named, str) or Path(named).is_relative_to(folder) else named


def _out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from workbench.models.batching import is_out_of_memory

    return is_out_of_memory(error)


def identify(
    ready: Prepared, model: Any, *, seed: int, engine: str = "hf", edits: Sequence[Any] = ()
) -> dict[str, Any]:
    """Everything that the tables of a run depend on; its hash is the id of the run. Files count by content and, where
    they are one's own, by name; never by the folder they lie in."""
    values = configs.to_dict(ready.config)
    for field in dataclasses.fields(ready.config):
        if field.metadata["later"] and getattr(ready.config, field.name) == field.default:
            del values[field.name]
        elif field.metadata["file"]:
            values[field.name] = by_content(values[field.name], ready.probe)
    material = {
        name: entry.get("fingerprint", entry.get("value")) for name, entry in _material(ready, model.name).items()
    }
    return {
        "probe": ready.probe.name,
        "version": ready.probe.version,
        "model": model.fingerprint,
        "tokenizer": getattr(model, "tokenizer_fingerprint", None),
        "config": values,
        "data": None if ready.data is None else fingerprint_file(ready.data),
        "seed": seed,
        "engine": engine,
        "dtype": _dtype(model),
        "edits": _edits(edits),
        **({"material": material} if material else {}),
        **({"data_name": name} if (name := _own_data_name(ready)) else {}),
        **({"model_name": name} if (name := model_name(model)) else {}),
        **({"date": day} if (day := _template_day(model)) not in (None, str(DAY)) else {}),
    }


def _own_data_name(ready: Prepared) -> str | None:
    return None if ready.data_name is not None else own_name(ready.data, ready.probe).get("name")


def _template_day(model: Any) -> str | None:
    """The day that the model's chat template prints; None where it prints none."""
    if getattr(model, "tokenizer", None) is None or not uses_date(model):
        return None
    return str(getattr(model, "day", DAY))


def describe_model(model: Any) -> dict[str, Any]:
    """The ``model`` entry of run.json."""
    return {
        "name": str(model.name),
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "architecture": model.architecture,
        "layers": model.n_layers,
        "heads": model.n_heads,
        "kv_heads": model.n_kv_heads,
        "width": model.width,
        "dtype": _dtype(model),
        "device": str(model.device),
        **({"adapter": _describe_adapter(adapter)} if (adapter := getattr(model, "adapter", None)) else {}),
        **({"date": day} if (day := _template_day(model)) else {}),
    }


def _describe_adapter(adapter: Any) -> dict[str, str]:
    return {"path": str(adapter.path), "fingerprint": adapter.fingerprint}


def command_for(
    ready: Prepared,
    model: Any,
    *,
    seed: int = 0,
    engine: str = "hf",
    dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    date: str | None = None,
    edit: str | Path | None = None,
    out: str | Path | None = None,
) -> str:
    """The command line that does the same, from any folder: files by their absolute paths. ``model``: a Model or a
    name."""
    words = [
        "workbench",
        "run",
        ready.probe.name,
        "--model",
        _model_word(str(model if isinstance(model, (str, Path)) else model.name)),
    ]
    revision = revision or getattr(model, "revision", None)
    words += ["--revision", str(revision)] if revision else []
    adapter = adapter or getattr(getattr(model, "adapter", None), "path", None)
    words += ["--adapter", str(Path(adapter).expanduser().resolve())] if adapter else []
    day = date or getattr(model, "day", DAY)
    words += ["--date", str(day)] if str(day) != str(DAY) else []
    if ready.data is not None and ready.data_name is None and _named_in(ready.config, ready.probe) is None:
        words += ["--data", str(ready.data)]
    files = {field.name for field in dataclasses.fields(ready.config) if field.metadata["file"]}
    for key, value in configs.changed(ready.config).items():
        words += ["--set", f"{key}={configs.format_value(_absolute(value) if key in files else value)}"]
    words += ["--seed", str(seed)] if seed else []
    words += ["--engine", engine] if engine != "hf" else []
    dtype = dtype if isinstance(model, (str, Path)) else _dtype(model)
    words += ["--dtype", dtype] if dtype not in (None, "float32") else []
    words += ["--device", device] if device else []
    words += ["--edit", str(usable_path(edit, what="edit file").resolve())] if edit is not None else []
    words += ["--out", str(usable_path(out, what="--out folder").resolve())] if out is not None else []
    return shlex.join(words)


@dataclass(frozen=True)
class Bound:
    """A probe with its config, and perhaps its data file and seed: ``probe(NAME, key=value, data=FILE).run(model)``."""

    probe: Probe
    config: Any
    data: str | Path | None = None
    seed: int | None = None

    def run(
        self,
        model: str | Path | Model,
        data: str | Path | None = None,
        seed: int | None = None,
        out: str | Path | None = None,
        **options: Any,
    ) -> Run:
        """Run, resume or reopen; see :func:`execute` for the options. Data and seed may also have been given to
        ``probe``, not to both."""
        name = self.probe.name
        for key in options:
            if key in configs.types_of(self.config.__class__) or key == "config":
                raise InputError(f"The keys of the config go to probe: probe('{name}', {key}=...).run(model).")
            if key not in _of_a_run():
                raise InputError(f"A run has no option '{key}'{nearest(key, _of_a_run())}; see help(workbench.probe).")
        for key, here, before in (("data", data, self.data), ("seed", seed, self.seed)):
            if here is not None and before is not None:
                raise InputError(
                    f"'{key}' is given twice, in probe('{name}', {key}=...) and in run(model, {key}=...); keep one."
                )
        data, seed = (self.data if data is None else data), (self.seed if seed is None else seed)
        return execute(
            self.probe, model, config=self.config, data=data, seed=0 if seed is None else seed, out=out, **options
        )


def _of_a_run() -> list[str]:
    """What :meth:`Bound.run` hands on to execute, beside model, data, seed and out."""
    return [key for key in inspect.signature(execute).parameters if key not in ("probe", "config", *OPTIONS[:3], "out")]


def bind(name: str, /, **config: Any) -> Bound:
    """The probe of that name with these config values (checked now). ``data`` (a file) and ``seed`` may stand here or
    in ``run``; all other options of a run, the model first of all, go to ``run``: ``probe(NAME, key=value,
    data=FILE).run(model, device="cuda")``."""
    item = registry.get(name)
    own = configs.types_of(item.config)
    given = {key: config.pop(key) for key in ("data", "seed") if key in config and key not in own}
    for key in config:
        if key == "config" and key not in own:
            raise InputError(f"The keys of the config are written out: probe('{name}', **config).")
        if key in (*OPTIONS, *_of_a_run()) and key not in own:
            how = "model" if key == "model" else f"model, {'edits' if key == 'edit' else key}=..."
            raise InputError(
                f"'{key}' is no key of the config of {name} but an option of the run: probe('{name}', ...).run({how})."
            )
    values = configs.build(item.config, config, where=f"the config of {name}")
    if given.get("seed") is not None:
        configs.check_seed(given["seed"])
    if given.get("data") is not None:
        _data_file(item, values, given["data"])
    return Bound(probe=item, config=values, **given)


def figure(run: Run | str | Path, name: str | None = None):
    """A figure of a run: the named one, else the first."""
    from workbench.figures import build, problems

    run = open_run(run)
    figures = build(run)
    if name is None:
        if not figures:
            raise InputError(f"The run {run.id} has no figures (it is {run.status}).")
        return next(iter(figures.values()))
    if name not in figures:
        reason = problems(run).get(name)
        raise InputError(
            reason or f"The run {run.id} has no figure '{name}'{nearest(name, figures)}; it has {', '.join(figures)}."
        )
    return figures[name]


# ---- pieces


def _named_in(config: Any, item: Probe) -> str | None:
    """The data file that the config names, where the probe has a key for that and it is not left at its default."""
    key = item.data.option if item.data is not None else None
    value = getattr(config, key) if key is not None else None
    return value if isinstance(value, str) and key in configs.changed(config) else None


def _data_file(
    item: Probe, config: Any, data: str | Path | None, model: str | None = None
) -> tuple[Path | None, str | None]:
    named = _named_in(config, item)
    if named is not None:
        path = existing(named, what=item.data.what).resolve()
        if data is not None and user_path(data).resolve() != path:
            raise InputError(
                f"The {item.data.what} file is given twice, --data {data} and {item.data.option}={named}; keep one."
            )
        return path, None
    if data is not None:
        if item.data is None:
            raise InputError(f"The probe '{item.name}' takes no data file.")
        if item.data.folder and is_there(user_path(data)) and user_path(data).is_dir():
            return user_path(data).resolve(), None
        return existing(data, what=item.data.what).resolve(), None
    if item.data is None:
        return None, None
    default, name = item.data.default_file(model)
    if default is None and not item.data.optional:
        raise InputError(
            f"The probe '{item.name}' needs a {item.data.what} file (--data) with the columns "
            f"{', '.join(item.data.required)}."
        )
    return default, name


def _with_own_data(ready: Prepared, model: str) -> Prepared:
    """The same, with the data file that goes with the model where none was given."""
    spec = ready.probe.data
    if spec is None or (ready.data is not None and ready.data_name is None):
        return ready
    own, name = spec.default_file(model)
    if own is None or own == ready.data:
        return ready
    if ready.probe.validate is not None:
        ready.probe.validate(ready.config, own)
    return dataclasses.replace(ready, data=own, data_name=name)


def _describe_data(ready: Prepared) -> dict[str, Any] | None:
    if ready.data is None:
        return None
    try:
        rows = read_table(ready.data).height
    except InputError:
        rows = None
    where = {"path": str(ready.data)} if ready.data_name is None else {"name": ready.data_name}
    return {**where, "fingerprint": fingerprint_file(ready.data), "rows": rows}


def _material(ready: Prepared, model: str) -> dict[str, dict[str, Any]]:
    """What the probe says it reads besides its data: {file, fingerprint} of a path, {value} of anything else."""
    found = dict(ready.probe.material(ready.config, model)) if ready.probe.material is not None else {}
    return {
        name: {"file": value.name, "fingerprint": digest_path(value)} if isinstance(value, Path) else {"value": value}
        for name, value in found.items()
    }


def _recorder(path: Path, forward: Callable[[int, int, str], None] | None) -> Callable[[int, int, str], None]:
    """A progress function that also appends to progress.jsonl: each step that ends something, else twice a second."""
    start = time.perf_counter()
    last = {"time": -1.0, "label": None}
    if path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        with appending(path) as file:  # the open line of a process that was killed
            file.write(b"\n")

    def record(done: int, total: int, label: str) -> None:
        moment = time.perf_counter()
        if label != last["label"] or (total and done >= total) or moment - last["time"] >= _PROGRESS_EVERY:
            last.update(time=moment, label=label)
            line = {
                "time": provenance.now(),
                "seconds": round(moment - start, 3),
                "done": done,
                "total": total,
                "label": label,
            }
            with appending(path) as file:
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        if forward is not None:
            forward(done, total, label)

    return record


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _model_word(name: str) -> str:
    """The name of a model for a command line: a local folder by its absolute path."""
    from workbench import organisms

    path = usable_path(name, what="model")
    return str(path.resolve()) if path.is_dir() and name not in organisms.names() else name


def _absolute(value: Any) -> Any:
    """A path that exists as an absolute one; anything else as it is (a single word that is a folder may be a name as
    well)."""
    if isinstance(value, tuple):
        return tuple(_absolute(item) for item in value)
    if isinstance(value, str) and value:
        path = user_path(value)
        if not is_there(path):
            return value
        if path.is_file() or (path.is_dir() and value.startswith((".", "~", "/"))):
            return str(path.resolve())
    return value


def _applied(edits: Sequence[Any], model: Any, context: Context) -> tuple[Any, ...]:
    """The edits with saved masks turned into ablations; a mask that was found on other weights is warned of."""
    if not edits:
        return ()
    from workbench.engine.edits import HeadAblation
    from workbench.engine.head_masks import HeadMask

    out = []
    for edit in edits:
        if isinstance(edit, HeadMask):
            warning = edit.mismatch_warning(model)
            if warning:
                context.warn(warning)
            edit = HeadAblation(edit.heads, edit.how)
        out.append(edit)
    return tuple(out)


def _edits(edits: Sequence[Any]) -> list[dict[str, Any]]:
    if not edits:
        return []
    from workbench.engine.edits import describe

    return describe(edits)
