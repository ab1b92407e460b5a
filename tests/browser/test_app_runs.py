"""The list of runs and the comparison of several, by hand."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.browser.conftest import cut_buttons, shot, too_wide
from tests.browser.serving import rest

MODEL = {"name": "mine", "fingerprint": "a" * 64, "layers": 2, "heads": 4, "kv_heads": 2, "dtype": "float32"}


def tick(page, *rows: int) -> None:
    """Tick rows of the list, which is a canvas, at their boxes."""
    table = page.locator('[data-testid="stDataFrame"]').last
    for row in rows:
        table.locator(".dvn-scroller").click(position={"x": 18, "y": 35 * (row + 1) + 17})
        rest(page)


@pytest.fixture
def many(cache, monkeypatch):
    """Runs that are there for one test only: the others know which runs there are."""
    from tests.support.many_runs import keep_many
    from workbench.runs.execution import runs_root

    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    ids = keep_many(30, mine=12, model=MODEL, first=100)
    yield ids
    for identifier in ids:
        shutil.rmtree(runs_root() / identifier, ignore_errors=True)


def test_runs_are_found_grouped_tagged_and_deleted_together(visit, cache, many):
    page = visit("/runs?search=model%3Dmine+retrieval&metrics=retrieval_heads&group=probe", size=(1280, 900))
    page.get_by_text(re.compile("^4 of [0-9]+ runs$")).wait_for()
    rest(page)
    tick(page, 0, 1, 2)
    shot(page, "runs-several")
    assert cut_buttons(page) == [] and too_wide(page) == []
    page.get_by_role("button", name="Tag 3 runs").click()
    box = page.get_by_label("Tags", exact=True).last
    box.fill("mine")
    box.press("Enter")
    rest(page)
    page.get_by_role("button", name="Add", exact=True).click()
    rest(page)
    tagged = [i for i in many if (cache / "runs" / i / "notes.json").exists()]
    newest = [i for i in reversed(many[:12]) if i.startswith("retrieval")][:3]
    assert sorted(tagged) == sorted(newest)
    assert all(json.loads((cache / "runs" / i / "notes.json").read_text())["tags"] == ["mine"] for i in newest)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete 3 runs").click()
    page.get_by_text("Yes, delete 3 runs").click()
    rest(page)
    page.get_by_role("button", name="Delete them").click()
    page.get_by_text(re.compile("^1 of [0-9]+ runs$")).wait_for()
    assert not any((cache / "runs" / i).exists() for i in newest)
