"""The patching benchmark says nothing about speed unless the numbers agree."""

import pytest
import torch

from tests.benchmarks import patching
from workbench.engine.patching import Effects, direct_effects


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """2 layers of 4 heads, 2 prompts of 6 tokens; the reference is timed on half of the heads."""
    monkeypatch.setitem(patching.SCALES, "small", (2, 32, 4, 2, 48, 64, 2, 6, 4))


def test_rows_hold_the_rates_their_ratio_and_how_far_the_numbers_agree():
    rows = patching.measure(rounds=2)
    assert len(rows) == 4 and len({row["name"] for row in rows}) == 4
    for row in rows:
        assert (
            row["unit"] == "heads/s"
            and row["reference"] > 0
            and row["ours"] > 0
            and row["agreement"].startswith("max difference")
        )
        assert row["details"]["reference timed on"] == "4 of 8 heads, scaled to all"


def test_the_passes_are_timed_in_bfloat16_once_the_numbers_agree_in_float32():
    rows = patching.measure(rounds=1, timed_in=torch.bfloat16)
    assert len(rows) == 4 and all("in float32; bfloat16 off by" in row["agreement"] for row in rows)


@pytest.mark.parametrize("timed_in", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize(
    "change",
    (lambda x: torch.zeros_like(x), lambda x: x + 0.01, lambda x: x.flip(1)),
    ids=("zeros", "shifted", "other heads"),
)
def test_wrong_numbers_are_not_timed(monkeypatch, change, timed_in):
    def wrong(*args, **options):
        found = direct_effects(*args, **options)
        base = found.logits[:, None]
        return Effects(
            found.logits, found.normaliser, base + change(found.patched_logits - base), found.patched_normaliser
        )

    monkeypatch.setattr(patching, "direct_effects", wrong)
    with pytest.raises(AssertionError, match="no speed is reported"):
        patching.measure(rounds=1, timed_in=timed_in)


def test_zeros_do_not_agree_with_effects_however_small():
    for largest in (1.0, 0.1, 1e-4, 1e-6):
        effects = torch.linspace(-largest, largest, 16)
        assert patching.agreement("effects", effects + 1e-3 * largest * 0.05, effects) < 1e-4
        with pytest.raises(AssertionError, match="no speed is reported"):
            patching.agreement("effects", torch.zeros(16), effects)


def test_bfloat16_numbers_may_be_off_by_twice_the_reference_and_not_more():
    exact = torch.linspace(-0.1, 0.1, 16)
    reference = exact + 0.01
    assert patching.rounding("effects", exact - 0.015, reference, exact) == pytest.approx(0.015)
    with pytest.raises(AssertionError, match="no speed is reported"):
        patching.rounding("effects", torch.zeros(16), reference, exact)
