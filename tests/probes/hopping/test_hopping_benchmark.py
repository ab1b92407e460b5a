"""The benchmark of back-patching says nothing about speed unless every text is the same."""

import pytest

from tests.benchmarks import hopping, patching


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """3 layers, 2 prompts of 6 tokens, 6 cells of which the reference is timed on 3."""
    monkeypatch.setitem(patching.SCALES, "small", (3, 32, 4, 2, 48, 64, 2, 6, 4))
    monkeypatch.setitem(hopping.SCALES, "small", (2, 6, 3))
    monkeypatch.setattr(hopping, "NEW", 3)


def test_rows_hold_the_rates_and_how_many_texts_are_identical():
    rows = hopping.measure(rounds=1)
    assert [row["agreement"] for row in rows] == ["6 of 6 texts identical"] * 2
    assert all(row["unit"] == "texts/s" and row["reference"] > 0 and row["ours"] > 0 for row in rows)
    assert rows[0]["details"]["reference timed on"] == "3 of 6 cells, scaled to all"


def test_other_texts_are_not_timed(monkeypatch):
    monkeypatch.setattr(hopping, "patched", lambda model, ids, states, cells: [[0]] * (len(cells) * len(ids)))
    with pytest.raises(AssertionError, match="no speed is reported"):
        hopping.measure(rounds=1)
