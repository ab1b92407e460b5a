"""Is this installation whole? Each thing looked at, what was found, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

from workbench.cli import device_checks
from workbench.cli.finding import Finding
from workbench.core import registry
from workbench.core.errors import WorkbenchError
from workbench.core.paths import cache_root
from workbench.core.private import make_folder
from workbench.core.wording import human_bytes

DISTRIBUTION = "interpretability-workbench"
_LITTLE, _TOO_LITTLE = 5_000_000_000, 200_000_000  # bytes of free disk


def examine() -> list[Finding]:
    """Look at everything. Never raises: what cannot be looked at is a finding."""
    checks: tuple[Callable[[], Finding], ...] = (
        python,
        packages,
        torch,
        *device_checks.CHECKS,
        chromium,
        model,
        probes,
        cache,
        store,
        disk,
        offline,
    )
    found = []
    for check in checks:
        try:
            found.append(check())
        except Exception as error:
            found.append(Finding(check.__name__, "fail", f"{type(error).__name__}: {error}"))
    return found


def python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()}, {platform.platform()}")


def lock_file() -> Path | None:
    """requirements.lock of the checkout; an installed wheel has none."""
    path = Path(__file__).resolve().parents[2] / "requirements.lock"
    return path if path.is_file() else None


def packages() -> Finding:
    """What is installed against the lock file, or, in a wheel, against what the package asks for."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    lock = lock_file()
    texts = lock.read_text(encoding="utf-8").splitlines() if lock else requires(DISTRIBUTION) or []
    wanted = [
        Requirement(text) for line in texts if (text := line.partition("#")[0].strip()) and not text.startswith("-")
    ]
    missing, other = [], []
    for item in wanted:
        if item.marker is not None and not item.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(item.name)
        except PackageNotFoundError:
            missing.append(item.name)
            continue
        if not item.specifier.contains(installed, prereleases=True):
            other.append(f"{item.name} {installed} ({item.specifier})")
    against = "the lock file" if lock else "the requirements"
    if missing:
        return Finding("packages", "fail", f"missing: {_some(missing)}", "make setup")
    if other:
        return Finding("packages", "warn", f"not as in {against}: {_some(other)}", "make setup")
    return Finding("packages", "ok", f"{len(wanted)} packages as in {against}")


def torch() -> Finding:
    import torch

    return Finding("torch", "ok", f"{torch.__version__}; {torch.get_num_threads()} threads")


def chromium() -> Finding:
    from workbench.figures.browser import browser

    try:
        return Finding("chromium", "ok", browser())
    except WorkbenchError:
        return Finding(
            "chromium", "warn", "not found; figures are exported as HTML and CSV only", "sudo apt-get install chromium"
        )


def model() -> Finding:
    """The model that ships with the project."""
    from workbench import organisms

    names = list(organisms.names())
    if "organism" not in names:
        return Finding("model", "fail", "the organism is not there", "git checkout workbench/organisms/weights")
    return Finding("model", "ok", f"{len(names)} ship with the project: {_some(names)}")


def probes() -> Finding:
    broken = [f"{name} ({problem})" for name in registry.names() if (problem := registry.problem(name)) is not None]
    if broken:
        return Finding("probes", "fail", _some(broken), "make setup, or remove the package or folder that brings it")
    named = [Path(place).expanduser() for place in os.environ.get("WORKBENCH_PROBES", "").split(os.pathsep) if place]
    absent = [str(place) for place in named if not place.is_dir()]
    if absent:
        return Finding("probes", "warn", f"WORKBENCH_PROBES names what is no folder: {_some(absent)}", "correct it")
    return Finding("probes", "ok", ", ".join(registry.names()))


def cache() -> Finding:
    """Can runs be written?"""
    import tempfile

    root = cache_root()
    try:
        make_folder(root)
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"x")
    except OSError as error:
        return Finding("cache", "fail", f"{root}: {error.strerror}", "set WORKBENCH_CACHE to a folder you can write to")
    return Finding("cache", "ok", f"{root}" + (" (WORKBENCH_CACHE)" if os.environ.get("WORKBENCH_CACHE") else ""))


def store() -> Finding:
    """What the stored activations take, and what limits them."""
    from workbench.store.activation_store import Store

    kept = Store()
    entries = kept.ls()
    held = (
        f"{entries.height} {'entry' if entries.height == 1 else 'entries'}, {human_bytes(int(entries['bytes'].sum()))}"
    )
    if kept.budget_bytes is None:
        return Finding("store", "ok", f"{held}; no budget, nothing is evicted (WORKBENCH_STORE_BUDGET=50GB sets one)")
    return Finding("store", "ok", f"{held} of {human_bytes(kept.budget_bytes)} (WORKBENCH_STORE_BUDGET)")


def disk() -> Finding:
    root = cache_root()
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free
    status = "fail" if free < _TOO_LITTLE else "warn" if free < _LITTLE else "ok"
    return Finding(
        "disk",
        status,
        f"{human_bytes(free)} free",
        "" if status == "ok" else "workbench cache gc, or move WORKBENCH_CACHE",
    )


def offline() -> Finding:
    """Says whether hub ids can be downloaded; without looking at the network."""
    flag = os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")
    return Finding(
        "offline",
        "ok",
        "HF_HUB_OFFLINE is set: only local models" if flag else "no: hub ids are downloaded when asked for",
    )


def _some(items: list[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
