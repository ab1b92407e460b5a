"""Only what says that it hangs on time is tried twice, and next to nothing hangs on files from elsewhere."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import early

ROOT = Path(__file__).resolve().parents[2]
MOST = 0.05  # share of the tests that may need files from outside the repository
FLAKY = """
from pathlib import Path
import pytest

def fails_once(name):
    seen = Path(__file__).with_name(name)
    before = seen.exists()
    seen.touch()
    assert before

@pytest.mark.load_sensitive("a limit of two seconds")
def test_marked_that_fails_once():
    fails_once("marked")

def test_plain_that_fails_once():
    fails_once("plain")

@pytest.mark.load_sensitive("a limit of two seconds")
def test_marked_that_is_broken():
    assert False

def test_that_passes():
    pass
"""


def test_only_what_is_marked_is_tried_twice_and_it_is_named_when_it_needs_to(tmp_path):
    (tmp_path / "test_flaky.py").write_text(FLAKY)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  load_sensitive(reason): x\n  shared_data: x\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--strict-markers", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(tmp_path / "test_flaky.py"), "--rootdir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "2 failed, 2 passed, 2 rerun" in done.stdout, done.stdout + done.stderr
    named = done.stdout.partition("passed only the second time")[2].partition("\n")[2].partition("\n==")[0]
    assert [name.partition("::")[2] for name in named.splitlines()] == ["test_marked_that_fails_once"]


def test_files_with_a_browser_come_in_the_first_half_and_no_test_is_lost():
    def test(file: str, number: int, browser: bool):
        mark = pytest.mark.browser if browser else None
        return SimpleNamespace(path=Path(file), number=number, get_closest_marker=lambda name: mark)

    plain = [test(f"plain_{n}", k, False) for n in range(8) for k in range(3)]
    slow = [test(f"browser_{n}", k, True) for n in range(2) for k in range(3)]
    found = early([*plain, *slow])
    assert sorted(map(id, found)) == sorted(map(id, [*plain, *slow]))
    files = list(dict.fromkeys(str(item.path) for item in found))
    assert files == ["browser_0", "plain_0", "plain_1", "browser_1", *(f"plain_{n}" for n in range(2, 8))]
    assert all([item.number for item in found if str(item.path) == file] == [0, 1, 2] for file in files)


def test_every_test_that_may_be_tried_twice_says_why(request):
    marks = [(item.nodeid, mark) for item in request.session.items for mark in item.iter_markers("load_sensitive")]
    assert [name for name, mark in marks if len(mark.args) != 1 or len(str(mark.args[0]).split()) < 3] == []


def whole(session) -> bool:
    """Whether every test of the suite was collected."""
    files = {path for path in (ROOT / "tests").rglob("test_*.py")}
    return files <= {item.path for item in session.items} and not any(
        session.config.getoption(name) for name in ("keyword", "markexpr", "deselect", "ignore", "lf")
    )


def test_next_to_nothing_needs_files_from_outside_the_repository(request):
    items = request.session.items
    if not whole(request.session):
        pytest.skip("counts the whole suite, and only a part of it was collected")
    outside = [item.nodeid for item in items if item.get_closest_marker("shared_data")]
    assert 0 < len(outside) < MOST * len(items), outside
