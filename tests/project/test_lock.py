"""requirements.lock names one version of everything that what it names needs."""

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
# What CUDA builds of torch pin themselves; a CPU build has none of it, so the lock cannot hold it.
OF_CUDA_TORCH = re.compile(r"nvidia-|cuda-|triton")


def locked() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines()]
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line) for line in lines if line]
    assert all(pairs), "a line of the lock is no exact version"
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs}


def needs(name: str, extra: str = "") -> list[Requirement]:
    found = [Requirement(text) for text in requires(name) or []]
    return [item for item in found if item.marker is None or item.marker.evaluate({"extra": extra})]


def test_everything_that_is_needed_is_pinned_to_a_version_that_will_do():
    pins, lacking = locked(), []
    for name in [*pins, "interpretability-workbench"]:
        try:
            wanted = needs(name, "test" if name == "interpretability-workbench" else "")
        except PackageNotFoundError:  # pinned for another system
            continue
        for item in wanted:
            pin = pins.get(canonicalize_name(item.name))
            if pin is None and not (name == "torch" and OF_CUDA_TORCH.match(item.name)):
                lacking.append(f"{name} needs {item}, which is not pinned")
            elif pin is not None and not item.specifier.contains(pin, prereleases=True):
                lacking.append(f"{name} needs {item}, and {pin} is pinned")
    assert lacking == []
