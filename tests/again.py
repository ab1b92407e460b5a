"""Once more, one at a time, what the last run of the tests failed; says which of it passed only now.

A busy machine can break a time limit; a broken property fails again. What passes only the second time is named, so that
a test that fails by chance does not go unseen. Used by `make test`; leaves with 0 only when everything that had failed
passes now.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST = 20  # more failures than this are no accident


def failed(root: Path) -> list[str]:
    """The tests that the last run under `root` left as failed."""
    path = root / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return sorted(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def main(root: Path = ROOT) -> int:
    first = failed(root)
    if not first or len(first) > MOST:
        print(
            f"Not tried again: {len(first)} failures."
            if first
            else "Not tried again: the run ended without a failed test to name."
        )
        return 1
    print(f"Once more, one at a time: the {len(first)} that failed.", flush=True)
    code = pytest.main(["--rootdir", str(root), "--last-failed", "--last-failed-no-failures", "none"])
    still = set(failed(root))
    by_chance = [name for name in first if name not in still] if code in (0, 1) else []
    if by_chance:
        print(
            f"\nPassed only the second time ({len(by_chance)}); if one of these comes up again and again, it "
            f"is a fault of the test or of the code:"
        )
        print("\n".join(f"  {name}" for name in by_chance))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
