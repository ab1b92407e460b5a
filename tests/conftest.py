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
    """Every test has a store and a runs folder of its own, beside its `tmp_path` and not in it. Its name holds what
    polars, shells and URLs could take for something else: no path is ever a pattern."""
    cache = tmp_path_factory.mktemp("cached") / "lab [1] *ü%"
    cache.mkdir()
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


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """The folder of a small random Llama with a tokenizer; never written into."""
    from tests.support import tiny_llama

    return tiny_llama.save(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def shared(request):
    """shared(relative) → a file of the shared data folder. The test carries the mark `shared_data`, and is skipped,
    visibly, when the folder is absent."""
    if request.node.get_closest_marker("shared_data") is None:
        raise pytest.UsageError(f"{request.node.nodeid} reads the shared data folder: mark it with `shared_data`.")

    def find(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"shared data absent: {relative} (set WORKBENCH_TEST_DATA to the folder that holds it)")
        return path

    return find


@pytest.fixture
def stories260k(shared) -> Path:
    return shared("models/stories260k")


@pytest.fixture
def gpt2_nano_sort(shared) -> Path:
    return shared("models/gpt2_nano_sort")


def pytest_collection_modifyitems(items):
    """What is marked as sensitive to load may be tried twice, and nothing else. Files with a browser come early."""
    for item in items:
        if item.get_closest_marker("load_sensitive"):
            item.add_marker(pytest.mark.flaky(reruns=1))
    items[:] = early(items)


def early(items: list) -> list:
    """The tests with the files that drive a browser spread over the first half of all: such a file lasts long where it
    is begun last, and several at once wait for each other. The order is otherwise what it was."""
    files: dict[Path, list] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    with_browser = {path for path, own in files.items() if any(item.get_closest_marker("browser") for item in own)}
    waiting, others = ([own for path, own in files.items() if (path in with_browser) == kind] for kind in (True, False))
    between = max(1, len(others) // (2 * max(1, len(waiting))))
    found = []
    while waiting or others:
        found += [*waiting[:1], *others[:between]]
        waiting, others = waiting[1:], others[between:]
    return [item for own in found for item in own]


def pytest_terminal_summary(terminalreporter):
    """Names what passed only the second time."""
    named = {
        kind: {report.nodeid for report in terminalreporter.stats.get(kind, ())}
        for kind in ("rerun", "failed", "error")
    }
    if late := sorted(named["rerun"] - named["failed"] - named["error"]):
        terminalreporter.section("passed only the second time: if it comes up again and again, it is a fault")
        for name in late:
            terminalreporter.line(name)
