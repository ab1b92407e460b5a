"""The installed wheel works as the checkout does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_wheel_holds_probes_pages_app_and_organisms_and_runs_outside_the_checkout(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = set(archive.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "workbench", "probes", "pages"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\n")
    missing = [name for name in tracked if name and name not in names and (ROOT / name).exists()]
    assert len(tracked) > 20 and missing == [] and "workbench/app_entry/app.py" in names
    # streamlit reads the settings beside the script that it runs: without them the app would listen on every interface
    settings = site / "workbench" / "app_entry" / ".streamlit" / "config.toml"
    assert (
        settings.read_text() == (ROOT / ".streamlit" / "config.toml").read_text()
        and 'address = "localhost"' in settings.read_text()
    )

    # What is installed beside it (torch and the rest) stays; the checkout itself must not be what is found.
    code = (
        "import workbench, probes, sys; assert workbench.__file__.startswith(sys.argv[1]) and "
        "probes.__file__.startswith(sys.argv[1]);"
    )
    code += "from workbench.cli.upkeep import app_file; assert str(app_file()).startswith(sys.argv[1]);"
    code += "from workbench.core.paths import cache_root; assert 'site' not in str(cache_root());"
    code += "from workbench.cli import main; main(['probes', 'retrieval-heads', '--json'])"
    environment = {name: value for name, value in os.environ.items() if name != "WORKBENCH_CACHE"} | {
        "PYTHONPATH": str(site)
    }
    found = subprocess.run(
        [sys.executable, "-c", code, str(site)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)[0]["name"] == "retrieval-heads"
