"""In which precision a model is held to be looked at: float32, unless that would crowd this machine's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.models.files import stored_numbers

AUTOMATIC = "automatic"
CHOICES = (AUTOMATIC, "float32", "bfloat16", "float16")
SHARE = 0.6  # of the free memory that weights may take in float32
HALF = {"BF16": "bfloat16", "F16": "float16"}  # by their name in safetensors files


def precision_for(folder: Path, device: Any = None) -> tuple[str, str]:
    """The dtype to hold the model of a folder in, and why in a sentence where that is not float32: weights that are
    stored in 16 bits stay as they are where in float32 they would take more than SHARE of the free memory.

    Raises InputError for a weight file without a readable header."""
    stored = stored_numbers(folder)
    of_halves = {name: stored.get(name, 0) for name in HALF}
    most = max(of_halves, key=lambda name: of_halves[name])
    wide, free = 4 * sum(stored.values()), free_bytes(device)
    if 2 * of_halves[most] <= sum(stored.values()) or wide <= SHARE * free:
        return "float32", ""
    return HALF[most], (
        f"The weights are held in {HALF[most]}, as they are stored: in float32 they would take {_said(wide)} of "
        f"{_said(free)} that are free."
    )


def free_bytes(device: Any = None) -> int:
    """Bytes that are free on a device (None: the one that `load` takes); of a CPU what the system could give, or what a
    limit of the process's control group leaves."""
    import psutil
    import torch

    name = str(device) if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(name))[0])
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / file).read_text().strip() for file in ("memory.max", "memory.current"))
        return max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):  # no such limit
        return free


def _said(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
