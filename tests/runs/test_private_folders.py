"""What runs and models leave in the cache is for its owner alone, whatever the umask; a folder that somebody made and
named keeps its mode."""

import os
import stat
import sys
from pathlib import Path

import pytest

from workbench.core.paths import cache_root
from workbench.runs import execution

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import tiny_probes  # noqa: E402


def modes(folder: Path) -> set[tuple[bool, int]]:
    """(is it a folder, its mode) of everything below; links are not followed."""
    return {(path.is_dir(), stat.S_IMODE(path.lstat().st_mode)) for path in folder.rglob("*") if not path.is_symlink()}


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_run_from_python_leaves_nothing_that_others_can_read(open_umask, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "new" / "cache"))
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "a b"}\n')
    execution.execute("parts", tiny_probes.fake_model(), config={"parts": 2})
    execution.execute("next-token-entropy", "circuit-copy", data=data)
    assert modes(tmp_path / "new") == {(True, 0o700), (False, 0o600)}
    assert cache_root().is_dir() and stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_folder_that_is_named_and_there_keeps_its_mode_and_what_comes_into_it_is_private(open_umask, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o755)
    execution.execute("parts", tiny_probes.fake_model(), config={"parts": 2}, out=out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o755 and modes(out) == {(True, 0o700), (False, 0o600)}
