"""One probe on one model with one config, in a folder of its own: start, stop, resume, read."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import inspect
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import config as configs
from workbench.core import registry
from workbench.core.context import Context, Result
from workbench.core.disk_errors import disk_errno, disk_sentence
from workbench.core.errors import Cancelled, InputError, RunFailed, WorkbenchError
from workbench.core.files import canonical, remove_leftovers, write_json
from workbench.core.locks import folder_lock
from workbench.core.nearest_name import nearest
from workbench.core.progress import SCALE
from workbench.core.registry import Probe
from workbench.models import devices
from workbench.models.load_options import AUTOMATIC
from workbench.runs import checksums, claim, provenance, records
from workbench.runs.description import (
    command_for,
    describe_data,
    describe_edits,
    describe_material,
    describe_model,
    identify,
    with_dtype,
)
from workbench.runs.folder import (
    ENDED,
    Run,
    check_file,
    list_runs,
    open_run,
    read_unsealed,
    run_by_id,
    runs_root,
)
from workbench.runs.identity import check_unchanged
from workbench.runs.preparation import (
    OPTIONS,
    Prepared,
    check_engine,
    check_unloaded,
    data_file,
    prepare,
    stamps,
    with_own_data,
)
from workbench.runs.progress_file import recorder
from workbench.runs.results import check_result, write_result

if TYPE_CHECKING:
    from workbench.models.model import Model

__all__ = [
    "Context",
    "Prepared",
    "Result",
    "Run",
    "bind",
    "check_unloaded",
    "command_for",
    "execute",
    "figure",
    "list_runs",
    "open_run",
    "prepare",
    "run_by_id",
    "runs_root",
    "stamps",
]


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
    dtype: str = AUTOMATIC,
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
            check_unloaded(
                ready,
                str(model),
                seed=seed,
                revision=revision,
                adapter=adapter,
                date=date,
                engine=engine,
                edits=edits,
                trust_remote_code=trust_remote_code,
            )
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
        ready = with_own_data(ready, model.name)
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


def _its_own(model: Any, **asked: Any) -> None:
    """Refuse what can only be asked for when a model is loaded, where this one was loaded without it; and a model of
    which other processes have a part."""
    from workbench.models.tensor_parallel import processes_of

    if (count := processes_of(getattr(model, "hf", None))) > 1:
        raise InputError(
            f"{model.name} is spread over {count} processes (tp_plan), and a run is made by one; load it with "
            f"device='auto'."
        )
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
        "data": describe_data(ready),
        **({"material": material} if (material := describe_material(ready, model.name)) else {}),
        "seed": context.seed,
        "engine": context.engine,
        "edits": describe_edits(context.edits),
        "versions": provenance.versions(),
        "command": with_dtype(command, model)
        if command
        else command_for(ready, model, seed=context.seed, engine=context.engine),
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
    told = context.on_progress
    recorded = recorder(folder / "progress.jsonl")

    def tell(done: int, total: int, label: str) -> None:
        recorded(done, total, label)
        if told is not None:
            told(done, total, label)

    context.on_progress = tell
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
        on_device = devices.peak_memory_bytes()
        if on_device is not None:
            info["peak_device_memory_bytes"] = on_device
        if context.sae is not None:
            info["sae"] = dict(context.sae)
        if context.readings and info["data"] is not None:
            info["data"] |= {"read_as": list(context.readings)}
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
        recorded(SCALE, SCALE, "complete")
        close("complete")
        if told is not None:
            told(SCALE, SCALE, "complete")
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
        data_file(item, values, given["data"])
    return Bound(probe=item, config=values, **given)


def figure(
    run: Run | str | Path, name: str | None = None, *, colour: Run | str | Path | None = None, column: str | None = None
):
    """A figure of a run: the named one, else the first. ``colour``: another run, of any probe, whose scores of heads
    colour the heads in it (the main score, or ``column``). Raises InputError for what there is not."""
    from workbench.figures import build, problems
    from workbench.figures.coloured_heads import coloured_by

    run = open_run(run)
    figures = build(run)
    if name is None:
        if not figures:
            raise InputError(f"The run {run.id} has no figures (it is {run.status}).")
        name = next(iter(figures))
    if name not in figures:
        reason = problems(run).get(name)
        raise InputError(
            reason or f"The run {run.id} has no figure '{name}'{nearest(name, figures)}; it has {', '.join(figures)}."
        )
    return figures[name] if colour is None else coloured_by(figures[name], run, open_run(colour), column)


# ---- pieces


def _applied(edits: Sequence[Any], model: Any, context: Context) -> tuple[Any, ...]:
    """The edits with saved ones turned into what they do; one that was found on other weights is warned of."""
    if not edits:
        return ()
    from workbench.engine.edit_files import SavedEdit

    out = []
    for edit in edits:
        if isinstance(edit, SavedEdit):
            warning = edit.mismatch_warning(model)
            if warning:
                context.warn(warning)
            edit = edit.edit
        out.append(edit)
    return tuple(out)
