"""What a probe gives back, held to what it declares and written into the folder of its run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.errors import WorkbenchError
from workbench.core.files import jsonable, write_bytes, write_json
from workbench.core.parquet import write_parquet
from workbench.core.private import make_folder

if TYPE_CHECKING:
    from workbench.core.context import Result
    from workbench.core.registry import Probe

_TABLE = re.compile(r"[a-z0-9_]+")


def check_result(probe: Probe, result: Result, *, whole: bool = True) -> None:
    """Hold a result to what its probe declares; WorkbenchError says what does not fit. ``whole``: False where some of
    its tables may be absent."""
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
        if name not in result.tables and not whole:
            continue
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
