"""``check_probe``: the battery that every probe passes, the project's own and third parties' alike.

    from workbench.runs.checks import check_probe
    check_probe("my-probe", "organism", config={"samples": 4})

Each check is a function of its own below; the first that fails raises :class:`CheckFailed` with its name and what it
saw.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import config as configs
from workbench.core import registry
from workbench.core.context import Context, Result
from workbench.core.errors import Cancelled, InputError, WorkbenchError
from workbench.core.files import TEMPORARY, canonical
from workbench.core.nearest_name import nearest
from workbench.core.registry import LINK_ENDS, Probe
from workbench.runs import cost, execution
from workbench.runs.folder import Run

# What a complete run folder holds, and what may be added to it; a probe declares what else it leaves.
USUAL = ("run.json", "summary.json", "arrays.safetensors", "progress.jsonl", "tables", "figures")
BESIDE = ("notes.json",)


class CheckFailed(WorkbenchError):
    """A probe does not keep to the contract: which check, and what was seen."""


@dataclass
class Case:
    """What is checked, and the undisturbed run that the others are held to."""

    probe: Probe
    model: Any
    config: dict[str, Any]
    data: Path | None
    seed: int
    folder: Path
    tolerance: float
    count: int = 0
    calls: int = 0  # how often the undisturbed run reported progress or asked whether to stop
    reference: Run | None = None

    def run(self, *, fresh_folder: bool = True, probe: Probe | None = None, **options: Any) -> Run:
        """Run the probe (or another in its place) in a folder and with a store of its own (or again in the last
        ones)."""
        from workbench.store.activation_store import Store

        self.count += fresh_folder
        place = self.folder / str(self.count)
        arguments: dict[str, Any] = {"config": self.config, "data": self.data, "seed": self.seed, **options}
        return execution.execute(
            probe or self.probe, self.model, out=place / "run", store=Store(place / "store"), **arguments
        )


def check_probe(
    probe: str | Probe,
    model: Any,
    *,
    config: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    seed: int = 0,
    tolerance: float = 1e-4,
    skip: tuple[str, ...] = (),
) -> list[str]:
    """Run the battery on ``probe`` with ``model`` (a name or a loaded Model); the names of the checks that passed.

    ``config``: values of a short run; default: the probe's ``example`` on this model. ``tolerance``: the largest
    difference, relative to the largest number of a column (or absolute below 1), that batching may make. ``skip``:
    names of checks that cannot apply. Raises CheckFailed at the first check that fails, InputError for a check name
    that does not exist.
    """
    item = registry.get(probe) if isinstance(probe, str) else probe
    for name in skip:
        if name not in CHECKS:
            raise InputError(f"There is no check '{name}'{nearest(name, CHECKS)}; the checks are {', '.join(CHECKS)}.")
    if isinstance(model, (str, Path)):
        from workbench.models.loading import load

        model = load(str(model))
    passed = []
    with tempfile.TemporaryDirectory(prefix="check-probe-") as folder:
        path = None if data is None else Path(data)
        case = Case(item, model, dict(config or {}), path, seed, Path(folder), tolerance)
        if config is None:
            case.config = example_of(item, model)
        for name, check in CHECKS.items():
            if name in skip:
                continue
            try:
                check(case)
            except AssertionError as error:
                raise CheckFailed(f"The probe '{item.name}' fails the check '{name}': {error}") from error
            except WorkbenchError as error:
                raise CheckFailed(
                    f"The probe '{item.name}' fails the check '{name}': {type(error).__name__}: {error}"
                ) from error
            passed.append(name)
    return passed


# ---- the checks, in the order they are made. `case.reference` is there from "run" on.


def check_declaration(case: Case) -> None:
    """Summary, BibTeX, documented config, shipped data file, example, figures, estimate and what else is declared are
    there and fit."""
    probe = case.probe
    expect(probe.summary, "the summary is empty")
    expect(probe.bibtex.startswith("@") and probe.bibtex.endswith("}"), "bibtex must be one or more BibTeX entries")
    expect(probe.tables, "no tables are declared")
    configs.check_class(probe.config, where=f"probe '{probe.name}'")
    configs.build(probe.config, example_of(probe, case.model), where="example")
    for table, keys in probe.keys.items():
        declared = {*probe.tables.get(table, keys), *optional_columns(probe)}
        expect(set(keys) <= declared, f"the keys of '{table}' are not among its declared columns")
    for what in ("figures", "figures_of_several"):
        if (place := getattr(probe, what)) is not None:
            try:
                registry.load_function(place)
            except WorkbenchError as error:
                raise AssertionError(f"{what}: {error}") from error
    scored = {column for columns in probe.head_scores.values() for column in columns}
    expect(set(probe.shares) <= scored, "shares names columns that are not among the head scores")
    for pattern, what in probe.leaves.items():
        expect(pattern and "/" not in pattern, f"leaves: '{pattern}' is not the name of a file in the run's folder")
        expect(what, f"leaves: nothing is said of '{pattern}'")
        taken = [name for name in (*USUAL, *BESIDE) if fnmatch.fnmatchcase(name, pattern)]
        expect(not taken, f"leaves: '{pattern}' also means {', '.join(taken)}")
    check_estimate(case)
    if probe.data is not None and probe.data.default is not None:
        path = probe.data.default_path()
        expect(
            path is not None and (path.is_file() or (probe.data.folder and path.is_dir())),
            f"the data file {probe.data.default} is not there",
        )


def check_estimate(case: Case) -> None:
    """The estimate of the run that is checked is a Plan, or None."""
    probe, model = case.probe, case.model
    data = case.data if case.data is not None or probe.data is None else probe.data.default_path(str(model.name))
    if probe.estimate is None or (data is None and probe.data is not None and not probe.data.optional):
        return
    found = probe.estimate(configs.build(probe.config, case.config), data, outline_of(model))
    expect(found is None or isinstance(found, cost.Plan), f"estimate gives {type(found).__name__}, not a Plan or None")


def check_config(case: Case) -> None:
    """A config survives JSON and the command line unchanged; unknown keys and wrong types are refused."""
    chosen = configs.build(case.probe.config, case.config)
    for value in (chosen, configs.build(case.probe.config, example_of(case.probe, case.model))):
        again = configs.build(type(value), json.loads(json.dumps(configs.to_dict(value))), literal=True)
        expect(again == value, f"JSON changes the config: {value} -> {again}")
        texts = {name: configs.format_value(item) for name, item in configs.changed(value).items()}
        again = configs.build(type(value), texts)
        expect(again == value, f"the command line changes the config: {value} -> {again}")
    hash(chosen)
    expect_input_error(
        lambda: configs.build(case.probe.config, {"no_such_key": 1}), "an unknown config key is accepted"
    )
    for field in dataclasses.fields(case.probe.config):
        if configs.types_of(case.probe.config)[field.name] in (int, float):
            expect_input_error(
                lambda: configs.build(case.probe.config, {field.name: "word"}),  # noqa: B023
                f"{field.name}=word is accepted",  # noqa: B023
            )  # noqa: B023


def check_bad_data(case: Case) -> None:
    """A data file that is absent, empty, not UTF-8 or without a required column is refused before a model is needed."""
    spec = case.probe.data
    if spec is None:
        return
    name = spec.what.replace(" ", "-")
    bad = {"absent.csv": None, "empty.csv": b"", "latin.csv": b"text\ncaf\xe9\n"}
    if spec.required:
        bad["columns.csv"] = b"unrelated\nvalue\n"
    for file, content in bad.items():
        path = case.folder / f"{name}-{file}"
        if content is not None:
            path.write_bytes(content)
        expect_input_error(
            lambda: execution.prepare(case.probe, case.config, path),  # noqa: B023
            f"a data file that is bad ({file.partition('.')[0]}) is accepted by `validate`",
            naming=path.name,
        )


def check_run(case: Case) -> None:
    """A run completes; tables have their columns, JSON is strict, nothing temporary or pickled is left, progress was
    told."""
    told: list[tuple[int, int]] = []
    before = fingerprint_of(case.model)
    with watching(case.model) as hooks:

        def listened(model: Any, config: Any, context: Context) -> Result:
            passed_on = context.progress

            def progress(done: int, total: int, label: str = "") -> None:
                told.append((done, total))
                passed_on(done, total, label)

            context.progress = progress  # what the probe says, before it is made a share of the whole
            return case.probe.run(model, config, context)

        def heard(done: int, total: int, label: str) -> None:
            if 0 < done < total:  # the end is told of every run
                told.append((done, total))

        def count() -> bool:
            case.calls += 1
            return False

        listening = dataclasses.replace(case.probe, run=listened)
        run = case.reference = case.run(probe=listening, progress=heard, cancel=count)
    expect(run.status == "complete", f"the run is {run.status}")
    expect(any(done > 0 for done, _ in told), "no progress was reported (context.progress)")
    expect(all(total == 0 or 0 <= done <= total for done, total in told), "progress went beyond its total")
    for table, columns in case.probe.tables.items():
        frame = run.table(table)
        expect(set(columns) <= set(frame.columns), f"the table '{table}' lacks {set(columns) - set(frame.columns)}")
    for what in ("keys", "head_scores", "head_links", "layer_curves", "token_groups"):
        for table, columns in getattr(case.probe, what).items():
            needed = [column for column in columns if what != "keys" or column not in optional_columns(case.probe)]
            check_columns(run, what, table, needed)
    strict_json(run.folder / "run.json")
    strict_json(run.folder / "summary.json")
    expect(run.summary, "the summary is empty")
    check_folder(run.folder, tuple(case.probe.leaves))
    expect(hooks() == [], f"hooks were left on {', '.join(hooks())}")
    expect(fingerprint_of(case.model) == before, "the model was changed (weights, training mode, dtype or config)")


def check_reopening(case: Case) -> None:
    """The same command again returns the complete run and computes nothing."""
    assert case.reference is not None
    stamp = (case.reference.folder / "run.json").stat().st_mtime_ns

    def refuse(*_: Any) -> None:
        raise AssertionError("a complete run was computed again")

    again = dataclasses.replace(case.probe, run=refuse)
    found = execution.execute(
        again, case.model, config=case.config, data=case.data, seed=case.seed, out=case.reference.folder
    )
    expect(found.id == case.reference.id, "the id of the same run changed")
    expect((found.folder / "run.json").stat().st_mtime_ns == stamp, "a complete run.json was written again")


def check_determinism(case: Case) -> None:
    """The same seed gives the same tables, whatever the state of the global generators."""
    import numpy as np

    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(state)
        same(case, case.run(), "the same seed gives other tables", 0.0)


def check_cancel(case: Case) -> None:
    """A run stopped on the way is cancelled, leaves no hooks, and resumes to the same tables."""
    for share in (0.1, 0.5, 0.9):
        stop_at = max(1, int(case.calls * share))
        asked = [0]

        def cancel(stop_at: int = stop_at, asked: list[int] = asked) -> bool:
            asked[0] += 1
            return asked[0] >= stop_at

        with watching(case.model) as hooks:
            try:
                stopped = case.run(cancel=cancel)
            except Cancelled:
                stopped = None
        where = f"cancelled at {stop_at} of {case.calls} checks"
        expect(stopped is None or asked[0] < stop_at, f"{where}, the run went on to the end")
        expect(hooks() == [], f"{where}, hooks were left on {', '.join(hooks())}")
        folder = case.folder / str(case.count) / "run"
        if (folder / "run.json").is_file():
            status = execution.open_run(folder).info["status"]
            expect(stopped is not None or status == "cancelled", f"{where}, run.json says {status}")
        same(case, case.run(fresh_folder=False), f"{where} and resumed, the tables differ", 0.0)


def check_batching(case: Case) -> None:
    """One prompt at a time gives the same tables within the tolerance; a probe that runs a model has batches to take
    apart."""
    with one_at_a_time() as split:
        run = case.run()
    # with nothing split, the run would be compared with itself
    expect(
        split or not hasattr(case.model, "hf"),
        "no batch of more than one prompt was planned by workbench.models.batching.batches; plan batches with "
        "it, give a config with more prompts, or skip this check",
    )
    same(case, run, "one prompt at a time gives other tables", case.tolerance)


def check_threads(case: Case) -> None:
    """A run in another thread than the main one works and gives the same tables (the app's workers do that)."""
    found: list[Any] = []
    torch = sys.modules.get("torch")
    compute_threads = (
        torch.get_num_threads() if torch else 0
    )  # a new thread starts with the default, and other sums round otherwise

    def work() -> None:
        try:
            if torch:
                torch.set_num_threads(compute_threads)
            found.append(case.run())
        except BaseException as error:  # carried over to this thread
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    same(case, found[0], "in another thread the tables differ", 0.0)


CHECKS: dict[str, Callable[[Case], None]] = {
    "declaration": check_declaration,
    "config": check_config,
    "bad-data": check_bad_data,
    "run": check_run,
    "reopening": check_reopening,
    "determinism": check_determinism,
    "cancel": check_cancel,
    "batching": check_batching,
    "threads": check_threads,
}


# ---- what they are made of


def example_of(probe: Probe, model: Any) -> dict[str, Any]:
    """The config values of the probe's example on this model; empty where it has none."""
    return dict(probe.example(outline_of(model))) if probe.example is not None else {}


def outline_of(model: Any) -> cost.Facts:
    """What is known of a model before it is loaded; of one without files, what its object says."""
    name = str(model.name)
    context = getattr(model, "context_length", None)
    return cost.facts(name) or cost.Facts(None, model.n_layers, model.width, model.n_heads, context, name=name)


def optional_columns(probe: Probe) -> tuple[str, ...]:
    """Columns of the data file that are taken over where it has them."""
    return probe.data.columns if probe.data is not None else ()


def check_columns(run: Run, what: str, table: str, columns: list[str]) -> None:
    """The columns that are declared of a table are there, where this run has the table."""
    if table not in run.tables:
        return
    frame = run.table(table)
    address = {"head_scores": ("layer", "head"), "head_links": LINK_ENDS, "layer_curves": ("layer",)}.get(what, ())
    absent = [column for column in (*address, *columns) if column not in frame.columns]
    expect(not absent, f"{what} of '{table}': there is no column {', '.join(absent)}")
    if what == "head_scores":
        expect(not frame.select(address).is_duplicated().any(), f"head_scores: '{table}' has several rows of one head")


def expect(condition: Any, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def expect_input_error(call: Callable[[], Any], otherwise: str, *, naming: str = "") -> None:
    try:
        call()
    except InputError as error:
        expect(naming in str(error), f"the error does not name {naming}: {error}")
        return
    except Exception as error:
        raise AssertionError(f"{otherwise}: {type(error).__name__} instead of InputError ({error})") from error
    raise AssertionError(otherwise)


def same(case: Case, run: Run, otherwise: str, tolerance: float) -> None:
    """Tables, arrays and summary equal those of the reference; numbers within ``tolerance`` of the column's scale."""
    import numpy as np
    import polars as pl

    reference = case.reference
    assert reference is not None
    expect(
        run.tables == reference.tables and run.arrays == reference.arrays, f"{otherwise}: the names of tables or arrays"
    )
    for name in reference.tables:
        one, two = reference.table(name), run.table(name)
        expect(one.schema == two.schema and one.height == two.height, f"{otherwise}: {name} has another shape")
        for column in one.columns:
            a, b = one[column], two[column]
            if (
                isinstance(a.dtype, pl.List)
                and a.dtype.inner.is_float()
                and a.list.len().equals(b.list.len(), null_equal=True)
            ):
                a, b = a.explode(), b.explode()  # lists of numbers have a tolerance too
            if a.dtype.is_float():
                expect(close(a.to_numpy(), b.to_numpy(), tolerance), f"{otherwise}: {name}.{column}")
            else:
                expect(a.equals(b, null_equal=True), f"{otherwise}: {name}.{column}")
    for name in reference.arrays:
        a, b = reference.array(name), run.array(name)
        expect(a.shape == b.shape and a.dtype == b.dtype, f"{otherwise}: the array {name} has another shape")
        expect(
            close(a, b, tolerance) if a.dtype.kind == "f" else np.array_equal(a, b), f"{otherwise}: the array {name}"
        )
    if tolerance == 0:
        expect(canonical(run.summary) == canonical(reference.summary), f"{otherwise}: the summary")


def close(a: Any, b: Any, tolerance: float) -> bool:
    """Equal, NaN and infinities in the same places, finite numbers within ``tolerance`` times max(1, largest)."""
    import numpy as np

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    if not finite.any():
        return True
    return bool(np.abs(a[finite] - b[finite]).max() <= tolerance * max(1.0, np.abs(a[finite]).max()))


def check_folder(folder: Path, leaves: tuple[str, ...]) -> None:
    """Only what a complete run folder holds, and what the probe says that it leaves (patterns)."""
    names = {
        path.name for path in folder.iterdir() if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in leaves)
    }
    more = sorted(names - set(USUAL))
    expect(not more, f"the run folder also holds {', '.join(more)}")
    left = [
        path.name
        for path in folder.rglob("*")
        if TEMPORARY in path.name or path.suffix in (".pkl", ".pt", ".npy", ".npz")
    ]
    expect(not left, f"left in the run folder: {', '.join(left)}")


def strict_json(path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{path.name} holds {word}, which is not JSON")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@contextmanager
def watching(model: Any) -> Iterator[Callable[[], list[str]]]:
    """Yields a function that names the modules of the model whose hooks are not those they had."""
    modules = dict(model.hf.named_modules()) if hasattr(model, "hf") else {}

    def hooks(module: Any) -> tuple[int, ...]:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return tuple(len(getattr(module, kind)) for kind in kinds) + (int("forward" in vars(module)),)

    before = {name: hooks(module) for name, module in modules.items()}
    yield lambda: [name or "the model" for name, module in modules.items() if hooks(module) != before[name]]


def fingerprint_of(model: Any) -> Any:
    """What a probe must leave as it was: weights (their sums), gradients, dtypes, training mode, the config."""
    if not hasattr(model, "hf"):
        return None
    weights = tuple(
        (name, str(value.dtype), value.requires_grad, value.grad is None, float(value.detach().double().sum()))
        for name, value in [*model.hf.named_parameters(), *model.hf.named_buffers()]
    )
    return weights, model.hf.training, str(model.hf.config.to_dict())


@contextmanager
def one_at_a_time() -> Iterator[list[int]]:
    """Every plan of batches that :func:`workbench.models.batching.batches` makes holds one prompt per batch meanwhile.

    Yields a list that gets the size of every batch of several prompts that was taken apart."""
    from workbench.models import batching

    usual = batching.batches
    taken_apart: list[int] = []

    def single(lengths, **options: Any) -> list[list[int]]:
        taken_apart.extend(len(batch) for batch in usual(lengths, **options) if len(batch) > 1)
        return usual(lengths, max_rows=1)

    # Modules that took the function by name hold a reference of their own.
    holders = [module for module in list(sys.modules.values()) if getattr(module, "batches", None) is usual]
    for module in holders:
        module.batches = single
    try:
        yield taken_apart
    finally:
        for module in holders:
            module.batches = usual
