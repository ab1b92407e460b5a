"""requirements.lock names one version of everything that what it names needs, is made by a command, and is checked."""

import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
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


# What a virtual environment answers to `make lock`: itself when it is made, then nothing, then its packages.
STUB = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *"pip list"*) printf 'Jinja2==3.1.6\\npip==26.0\\nnvidia-cublas-cu12==1.2\\ntriton==3.0\\ntorch==2.13.0+cpu\\n\
interpretability-workbench==0.1.0\\nwheel==1\\n' ;;
esac
"""


def test_the_lock_is_made_by_a_command_whatever_build_of_torch_the_machine_has(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "stub"
    python.write_text(STUB)
    python.chmod(0o755)
    subprocess.run(["make", "lock", f"PYTHON={python}"], cwd=tmp_path, check=True, capture_output=True)
    lines = (tmp_path / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["Jinja2==3.1.6", "torch==2.13.0"]
    assert "`make lock`" in "\n".join(lines) and not (tmp_path / ".venv-lock").exists()
    assert not any("--hash" in line for line in LOCK.read_text().splitlines())


def test_the_forge_runs_what_we_run_and_asks_for_known_vulnerabilities():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())
    jobs = workflow["jobs"]
    run = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert run == {"lint": ["make lint"], "test": ["make test"], "audit": ["make audit"]}
    assert workflow["permissions"] == {"contents": "read"} and "schedule" in workflow[True]  # YAML reads `on` as true
    made = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{name}:", made, re.M) for name in jobs)
    assert "pip-audit --requirement requirements.lock --no-deps" in made
