"""What can be known to be wrong of a model that is asked for before it is loaded: a sentence now, not in an hour."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from workbench import organisms
from workbench.core.errors import InputError
from workbench.models.adapters import read_adapter
from workbench.models.files import check_folder, resolve
from workbench.models.load_options import (
    AUTOMATIC,
    check_device,
    check_dtype,
    check_revision,
    local_folder,
    read_day,
)


def check_request(
    name: str,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    date: str | datetime.date | None = None,
    dtype: str = AUTOMATIC,
) -> None:
    """Raise InputError for a revision, adapter, day or dtype that cannot be had, whatever the model is."""
    check_revision(name, revision)
    check_dtype(dtype)
    read_day(date)
    if adapter is not None:
        read_adapter(adapter)


def check_presence(name: str, *, revision: str | None = None, device: str | None = None) -> None:
    """Raise InputError for a model or device that is not there, as far as this machine knows: a model of the hub is
    looked for only where the hub is not to be asked (HF_HUB_OFFLINE)."""
    if not name.strip():
        raise InputError("Name a model: an organism, a local folder or a hub id.")
    if device is not None:
        check_device(device)
    if name in organisms.names():
        return
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline or name.count("/") != 1 or name.startswith((".", "~", "/")) or local_folder(name) is not None:
        check_folder(resolve(name, revision=revision), name)
