"""The patching benchmark says nothing about speed unless the numbers agree."""

import pytest

from tests.benchmarks import patching
from workbench.patching import Effects, direct_effects


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """2 layers of 4 heads, 2 prompts of 6 tokens; the reference is timed on half of the heads."""
    monkeypatch.setitem(patching.SCALES, "small", (2, 32, 4, 2, 48, 64, 2, 6, 4))


def test_rows_hold_the_rates_their_ratio_and_how_far_the_numbers_agree():
    rows = patching.measure(rounds=2)
    assert len(rows) == 4 and len({row["name"] for row in rows}) == 4
    for row in rows:
        assert row["unit"] == "heads/s" and row["reference"] > 0 and row["ours"] > 0 and row["agreement"].startswith("max difference")
        assert row["details"]["reference timed on"] == "4 of 8 heads, scaled to all"


def test_wrong_numbers_are_not_timed(monkeypatch):
    def wrong(*args, **options):
        found = direct_effects(*args, **options)
        return Effects(found.logits, found.normaliser, found.patched_logits + 0.01, found.patched_normaliser)

    monkeypatch.setattr(patching, "direct_effects", wrong)
    with pytest.raises(AssertionError, match="no speed is reported"):
        patching.measure(rounds=1)
