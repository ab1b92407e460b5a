"""What the doctor found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """``status``: ok, warn (works, with something missing) or fail."""

    name: str
    status: str
    detail: str
    remedy: str = ""
