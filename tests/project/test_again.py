"""`make test` names what passed only the second time."""

import subprocess
import sys
from pathlib import Path

from tests.again import main

PROJECT = Path(__file__).resolve().parents[2]
FLAKY = """
from pathlib import Path

def test_that_passes():
    pass

def test_that_fails_once():
    mark = Path(__file__).with_name("seen")
    before = mark.exists()
    mark.touch()
    assert before

def test_that_is_broken():
    assert False
"""


def test_a_test_that_fails_by_chance_is_named_and_a_broken_one_still_fails(tmp_path):
    (tmp_path / "test_two.py").write_text(FLAKY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    assert subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True).returncode == 1
    again = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(PROJECT)!r}); from tests.again import "
        f"main; sys.exit(main(Path('.')))"
    )
    done = subprocess.run([sys.executable, "-c", again], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    told = done.stdout.partition("Passed only the second time (1)")[2]
    assert (
        "test_two.py::test_that_fails_once" in told
        and "test_that_is_broken" not in told
        and "test_that_passes" not in done.stdout
    )


def test_nothing_to_try_again_is_a_failure(tmp_path, capsys):
    """A run that broke down before any test failed must not become a success."""
    assert main(tmp_path) == 1 and "Not tried again" in capsys.readouterr().out
