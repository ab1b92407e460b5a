"""Fixtures that every test may use; torch is imported only by the tests that need it."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

SHARED = Path(os.environ.get("WORKBENCH_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def _circuits(tmp_path_factory) -> Path:
    """Hand-built models are built once per test session."""
    return tmp_path_factory.mktemp("circuits")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch, _circuits):
    """Every test has a store and a runs folder of its own, beside its `tmp_path` and not in it."""
    cache = tmp_path_factory.mktemp("cached")
    (cache / "organisms").symlink_to(_circuits)
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    monkeypatch.delenv("WORKBENCH_STORE_BUDGET", raising=False)


@pytest.fixture(autouse=True)
def _own_threads():
    """numba's thread pool (UMAP) sets torch's too: the next test would be slower, and round otherwise."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if "torch" in sys.modules and before not in (None, sys.modules["torch"].get_num_threads()):
        sys.modules["torch"].set_num_threads(before)


def shared(relative: str) -> Path:
    """A file of the shared data folder; the test is skipped, visibly, when the folder is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"shared data absent: {relative} (set WORKBENCH_TEST_DATA to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def stories260k() -> Path:
    return shared("models/stories260k")


@pytest.fixture(scope="session")
def gpt2_nano_sort() -> Path:
    return shared("models/gpt2_nano_sort")
