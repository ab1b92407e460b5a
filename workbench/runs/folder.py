"""Run folders as they lie on disk: opening, listing, and writing results into them."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError, WorkbenchError
from workbench.core.files import jsonable, write_bytes, write_json
from workbench.core.nearest_name import nearest
from workbench.core.parquet import read_parquet, write_parquet
from workbench.core.paths import cache_root
from workbench.core.private import make_folder
from workbench.core.wording import one_line

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from workbench.core.context import Result
    from workbench.core.registry import Probe

SCHEMA = 1
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TABLE = re.compile(r"[a-z0-9_]+")


def runs_root() -> Path:
    """The folder that runs are kept in when no other is named."""
    return cache_root() / "runs"


@dataclass(frozen=True)
class Run:
    """A run folder. ``info`` is its run.json; tables and arrays are read when asked for."""

    folder: Path
    info: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return self.info["id"]

    @property
    def probe(self) -> str:
        return self.info["probe"]

    @property
    def status(self) -> str:
        """``complete``, ``cancelled``, ``failed``, ``running``, or ``interrupted``: said to be running by a process
        that is gone."""
        status = self.info["status"]
        if status == "running" and self.info.get("host") == socket.gethostname():
            import psutil

            if not psutil.pid_exists(int(self.info.get("pid", -1))):
                return "interrupted"
        return status

    @property
    def summary(self) -> dict[str, Any]:
        path = self.folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def tables(self) -> list[str]:
        """The names of the tables."""
        return sorted(path.stem for path in (self.folder / "tables").glob("*.parquet"))

    @property
    def arrays(self) -> list[str]:
        """The names of the arrays."""
        from safetensors import safe_open

        path = self.folder / "arrays.safetensors"
        if not path.is_file():
            return []
        with safe_open(path, framework="np") as file:
            return sorted(file.keys())

    def table(self, name: str) -> pl.DataFrame:
        """A table as a polars DataFrame; InputError for one that is not there or cannot be read."""
        if name not in self.tables:
            raise InputError(
                f"The run {self.id} has no table '{name}'{nearest(name, self.tables)}; {self._has(self.tables)}."
            )
        try:
            return read_parquet(self.folder / "tables" / f"{name}.parquet")
        except (InputError, OSError) as error:
            raise InputError(
                f"The table '{name}' of the run {self.id} cannot be read ({one_line(error)}); run it with --fresh."
            ) from None

    def array(self, name: str) -> np.ndarray:
        """An array; InputError for one that is not there."""
        from safetensors import safe_open

        names = self.arrays
        if name not in names:
            raise InputError(f"The run {self.id} has no array '{name}'{nearest(name, names)}; {self._has(names)}.")
        with safe_open(self.folder / "arrays.safetensors", framework="np") as file:
            return file.get_tensor(name)

    def progress(self) -> dict[str, Any] | None:
        """The last line of progress.jsonl: time, seconds, done, total, label."""
        path = self.folder / "progress.jsonl"
        if not path.is_file():
            return None
        for line in reversed(path.read_text(encoding="utf-8").splitlines()):
            try:
                return json.loads(line)
            except json.JSONDecodeError:  # the last line of a process that was killed
                continue
        return None

    def _has(self, names: list[str]) -> str:
        return f"it has {', '.join(names)}" if names else f"it has none (it is {self.status})"


def open_run(reference: str | Path | Run, *, root: Path | None = None) -> Run:
    """A run by its folder, its run.json, its id, or a beginning of its id that fits one run only."""
    if isinstance(reference, Run):
        return reference
    path = Path(reference).expanduser()
    if path.name == "run.json":
        path = path.parent
    if (path / "run.json").is_file():
        return _read(path)
    if isinstance(reference, Path) or "/" in str(reference) or path.is_dir():
        raise InputError(f"{path} is not a run folder (no run.json in it).")
    return run_by_id(str(reference), root=root)


def run_by_id(reference: str, *, root: Path | None = None) -> Run:
    """A run below the runs root by its id or a beginning of it; nothing else is ever looked at (ids come from URLs)."""
    root = runs_root() if root is None else root
    if _ID.fullmatch(reference.rstrip("-")):
        if (root / reference / "run.json").is_file():
            return _read(root / reference)
        found = sorted(path.parent for path in root.glob(f"{reference}*/run.json"))
        if len(found) == 1:
            return _read(found[0])
        if found:
            raise InputError(
                f"'{reference}' is the beginning of {len(found)} runs: {', '.join(path.name for path in found[:4])}."
            )
    known = [path.parent.name for path in root.glob("*/run.json")]
    raise InputError(
        f"There is no run '{reference}' in {root}{nearest(reference, known)}; `workbench runs` lists them."
    )


def list_runs(*, root: Path | None = None) -> list[Run]:
    """Every run below the runs root, the latest first. Folders without a readable run.json are left out."""
    root = runs_root() if root is None else root
    runs = []
    for path in root.glob("*/run.json"):
        try:
            runs.append(_read(path.parent))
        except InputError:
            continue
    return sorted(runs, key=lambda run: (str(run.info.get("started", "")), run.id), reverse=True)


def _read(folder: Path) -> Run:
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if not {"schema", "id", "probe", "status"} <= set(info):
            raise ValueError("fields are missing")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'run.json'} cannot be read: {error}.") from None
    if info["schema"] > SCHEMA:
        raise InputError(
            f"The run {info['id']} was written by a newer version (schema {info['schema']}); update the workbench."
        )
    return Run(folder=folder, info=info)


def check_result(probe: Probe, result: Result) -> None:
    """Hold a result to what its probe declares; WorkbenchError says what does not fit."""
    import numpy as np
    import polars as pl

    from workbench.core.context import Result

    if not isinstance(result, Result):
        raise WorkbenchError(f"The probe '{probe.name}' returned {type(result).__name__}, not a Result.")
    for name, frame in result.tables.items():
        if not _TABLE.fullmatch(name):
            raise WorkbenchError(
                f"The probe '{probe.name}' returned a table with the name '{name}'; use a-z, 0-9 and _."
            )
        if not isinstance(frame, pl.DataFrame):
            raise WorkbenchError(
                f"The table '{name}' of the probe '{probe.name}' is {type(frame).__name__}, not a polars DataFrame."
            )
    for name, columns in probe.tables.items():
        if name not in result.tables:
            raise WorkbenchError(f"The probe '{probe.name}' did not return its table '{name}'.")
        missing = [column for column in columns if column not in result.tables[name].columns]
        if missing:
            raise WorkbenchError(
                f"The table '{name}' of the probe '{probe.name}' lacks the column {', '.join(missing)}."
            )
    for name, array in result.arrays.items():
        if np.asarray(array).dtype.kind not in "biufc":
            raise WorkbenchError(f"The array '{name}' of the probe '{probe.name}' does not hold numbers.")
    try:
        jsonable(result.summary)
    except TypeError as error:
        raise WorkbenchError(f"The summary of the probe '{probe.name}' is not JSON: {error}.") from None


def write_result(folder: Path, result: Result) -> None:
    """Write tables, arrays and summary, each complete or absent."""
    import numpy as np

    make_folder(folder / "tables")
    for name, frame in result.tables.items():
        write_parquet(folder / "tables" / f"{name}.parquet", frame)
    if result.arrays:
        from safetensors.numpy import save

        arrays = {name: np.asarray(value) for name, value in result.arrays.items()}
        arrays = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in arrays.items()}
        write_bytes(folder / "arrays.safetensors", save(arrays))
    write_json(folder / "summary.json", result.summary)
