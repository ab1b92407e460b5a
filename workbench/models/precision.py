"""In which precision a model is held where nobody says: one rule for runs and for the Explorer; and whether its weights
have room at all, before any is read.

On an accelerator weights stay as they are stored (scores are read off in float32 whatever they are, see `float32`); on
a CPU, which is no faster in 16 bits, they are float32. Where float32 does not fit, a run is refused with what would
fit: its numbers, and its id, may not hang on what else happens to be in memory. The Explorer, whose numbers are not
kept, takes the 16 bits that are stored and says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.models import devices
from workbench.models.files import read_part, stored_numbers
from workbench.models.load_options import AUTOMATIC, check_device
from workbench.models.size import BYTES

CHOICES = (AUTOMATIC, "float32", "bfloat16", "float16")
SHARE = 0.6  # of the free memory that weights may take in float32 before the Explorer takes 16 bits
STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}  # names in safetensors files
FILED = {"F64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2}  # bytes; of all others 1


def dtype_for(folder: Path, device: Any = None) -> str:
    """The dtype of a model where none is asked for: float32 on a CPU; on an accelerator as most of its weights are
    stored ("auto" where that is no plain format: quantised weights).

    Raises InputError for a weight file without a readable header."""
    return "float32" if str(check_device(device)).startswith("cpu") else _as_stored(folder)


def precision_for(folder: Path, device: Any = None) -> tuple[str, str]:
    """`dtype_for` as the Explorer takes it, and why in a sentence where a CPU does not hold the weights in float32:
    weights that are stored in 16 bits stay so where in float32 they would take more than SHARE of the free memory."""
    chosen, stored = dtype_for(folder, device), _as_stored(folder)
    if chosen != "float32" or stored not in ("bfloat16", "float16"):
        return chosen, ""
    wide, free = weight_bytes(folder, chosen), free_bytes(device)
    if wide <= SHARE * free:
        return chosen, ""
    return stored, (
        f"The weights are held in {stored}, as they are stored: in float32 they would take {_said(wide)} of "
        f"{_said(free)} that are free."
    )


def weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes of the weights in the files of a folder, held in that dtype ("auto", and what is no floating-point number:
    as stored)."""
    stored = stored_numbers(folder)
    floats = {kind: count for kind, count in stored.items() if kind in STORED}
    others = sum(count * FILED.get(kind, 1) for kind, count in stored.items() if kind not in STORED)
    return others + sum(count * (FILED[kind] if dtype == "auto" else BYTES[dtype]) for kind, count in floats.items())


def check_fits(folder: Path, name: str, *, dtype: str, device: Any = None, parts: int = 1) -> None:
    """Raise InputError, with what would fit, for weights that a device has no room for. What is spread (device
    "auto") finds room on other devices, in memory and on disk, and is not refused. `parts`: over so many processes."""
    if (place := str(check_device(device))) == "auto":
        return
    wanted = weight_bytes(folder, dtype) // parts
    if wanted <= free_bytes(device):
        return
    devices.free_caches()  # of a model that is gone something may still be held
    if wanted <= (free := free_bytes(device)):
        return
    raise InputError(
        f"The weights of '{name}' take {_said(wanted)} in {dtype}, and {_said(free)} are free on {place}; "
        f"{what_fits(folder, dtype=dtype, device=device, free=free)}."
    )


def what_fits(folder: Path, *, dtype: str, device: Any, free: int, more: Sequence[str] = ()) -> str:
    """What to ask for where a model in that dtype does not fit, in words; `more`: what else would help."""
    stored = _as_stored(folder)
    least = stored if stored in BYTES else "auto"
    here = [] if weight_bytes(folder, least) > free or least == dtype else [f"--dtype {least} (as stored)"]
    elsewhere = (
        [] if str(check_device(device)).startswith("cpu") else ["--device auto (over several devices and memory)"]
    )
    elsewhere += ["--device cpu"] if elsewhere and weight_bytes(folder, "float32") <= free_bytes("cpu") else []
    ways = [*here, *more, *elsewhere]
    return f"use {' or '.join(ways)}" if ways else "use a smaller model, or a machine with more memory"


def free_bytes(device: Any = None) -> int:
    """Bytes that are free on a device (None: the one that `load` takes; "auto": the host)."""
    name = str(devices.current() if device is None else device)
    return devices.memory(devices.CPU if name == "auto" else name)[0]


def _as_stored(folder: Path) -> str:
    """The name of the format that most of a folder's numbers are in, or of which its config.json says so where there
    are no weights yet; "auto" for one that is no plain format."""
    if stored := stored_numbers(folder):
        return STORED.get(max(stored, key=lambda kind: stored[kind]), "auto")
    config = read_part(folder / "config.json", folder.name)
    said = config.get("dtype") or config.get("torch_dtype")
    return said if said in BYTES else "float32"


def _said(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
