"""What a run records about its surroundings: versions, peak memory, time."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime

from workbench.models import devices

PACKAGES = (
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "sae-lens",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "polars",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Versions of Python, of this project and of what the numbers rest on; nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    from workbench import __version__

    found = {"python": platform.python_version(), "workbench": __version__, "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def reset_peak_memory() -> None:
    """Start a new peak, where the system can (Linux) and on the accelerator."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
    devices.reset_peak_memory()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process since :func:`reset_peak_memory` (since its start, where that is not
    known)."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
