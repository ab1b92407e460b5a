"""What a model can be asked for with, checked by itself: dtype, device, revision and day. No torch unless a GPU is
named."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.models import devices

DEVICE = r"[a-z][a-z0-9_]*(:[0-9]{1,3})?"  # how the name of one is written; which there are, PyTorch knows
DTYPE_NAMES = ("float32", "fp32", "bfloat16", "bf16", "float16", "fp16", "float64")
DAY = datetime.date(2024, 7, 26)  # what "today" is for chat templates that print it, unless a day is given


def check_dtype(dtype: str) -> None:
    """InputError for a name that is no dtype."""
    if dtype != "auto" and dtype not in DTYPE_NAMES:
        raise InputError(f"'{dtype}' is not a dtype; choose one of auto, {', '.join(DTYPE_NAMES)}.")


def check_device(device: Any) -> Any:
    """The device to load on, any that PyTorch has here, None being its accelerator if there is one; InputError for one
    that is misspelt or not there."""
    if device is None:
        return devices.current()
    name = str(device)
    kind, _, index = name.partition(":")
    if name in ("auto", "cpu", "cpu:0"):
        return device
    if not re.fullmatch(DEVICE, name) or kind in ("auto", "cpu") or not devices.known(kind):
        raise InputError(f"'{device}' is not a device; use cpu, cuda, cuda:1, mps or auto.")
    count = devices.count(kind)
    if not count:
        raise InputError(f"The device '{device}' was asked for but this machine has no usable GPU; use --device cpu.")
    if int(index or 0) >= count:
        raise InputError(
            f"The device '{device}' was asked for but this machine has {count} GPU, counted from {kind}:0."
        )
    return device


def check_revision(name: str, revision: str | None) -> None:
    """InputError for a revision of what has none: an organism, a folder; and for an empty one."""
    from workbench import organisms

    if revision is None:
        return
    if not isinstance(revision, str) or not revision.strip():
        raise InputError(
            f"The revision of '{name}' is empty; name a branch, tag or commit of the hub, or leave it out."
        )
    known = organisms.names()
    if name in known or name.split("@")[0] in known:
        own = [other for other in known if other.startswith(f"{name}@")]
        raise InputError(
            f"The organism '{name}' has no revision '{revision}'; leave it out"
            + (f", or take one of its checkpoints as the model: {', '.join(own)}." if own else ".")
        )
    if local_folder(name) is not None or looks_like_path(name):
        raise InputError(
            f"'{name}' is a folder, which has no revision '{revision}'; only models of the hub have some: "
            f"leave it out, or name the folder that holds it."
        )


def local_folder(name: str) -> Path | None:
    """The folder of that name, None where there is none (also for what can be no name of a folder)."""
    try:
        path = Path(name).expanduser()
        return path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def looks_like_path(name: str) -> bool:
    """Whether a model's name can be no hub id (owner/name) but only a path."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def read_day(date: str | datetime.date | None) -> datetime.date:
    """The day that chat templates are told, DAY where none is given; InputError for what is no day."""
    if date is None:
        return DAY
    if isinstance(date, datetime.datetime):
        return date.date()
    if isinstance(date, datetime.date):
        return date
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", date):
            raise ValueError
        return datetime.date.fromisoformat(date)
    except (TypeError, ValueError):
        raise InputError(f"'{date}' is not a day; write it as 2025-01-31.") from None
