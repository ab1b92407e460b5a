"""Where values lie on a colour scale, heads by value, and sets of heads as text."""

import math

import polars as pl
import pytest

from workbench.core.errors import InputError
from workbench.explorer.colour_scales import SCALES, spread
from workbench.explorer.head_sets import SIDES, heads_from
from workbench.explorer.head_text import read_heads, write_heads


def one_by_one(values, low, high, scale, diverging):
    """Each place by itself, in plain Python."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    most = max(abs(low), abs(high))

    def share(v):
        return min(abs(v) / most, 1) if diverging else min(max((v - low) / (high - low), 0), 1)

    def ranked(v):
        if len(known) == 1:
            return 0.5
        below = sum(share(other) < share(v) for other in known)
        same = sum(share(other) == share(v) for other in known)
        return (below + (same - 1) / 2) / (len(known) - 1)

    places = []
    for v in values:
        if v is None or not math.isfinite(v):
            places.append(None)
            continue
        size = {"linear": share, "root": lambda v: math.sqrt(share(v)), "rank": ranked}[scale](v)
        places.append((0.5 + math.copysign(size, v) / 2 if v else 0.5) if diverging else size)
    return places


@pytest.mark.parametrize("scale", [name for name in SCALES if name != "automatic"])
@pytest.mark.parametrize(
    ("values", "low", "high", "diverging"),
    [
        ([0.0, 0.01, 0.01, 0.5, None, float("nan"), 1.0], 0.0, 1.0, False),
        ([3.0, 2.0, 2.5], 2.0, 3.0, False),
        ([-2.0, -0.5, 0.0, 0.25, 1.0, float("inf")], -2.0, 2.0, True),
        ([0.7], 0.0, 1.0, False),
        ([0.2, 1.7], 0.0, 1.0, False),  # beyond an end
    ],
)
def test_each_value_lies_where_it_does_when_it_is_placed_by_itself(values, low, high, diverging, scale):
    found = spread(values, ends=(low, high), scale=scale, diverging=diverging)
    assert list(found.places) == pytest.approx(one_by_one(values, low, high, scale, diverging))
    assert found.name == scale and not found.automatic


def test_what_is_said_of_a_scale_is_true_of_it():
    values = [0.0, 0.1, 0.3, 0.6, 0.9]
    for scale in ("linear", "root"):
        found = spread([*values, spread(values, ends=(0.0, 1.0), scale=scale).middle], ends=(0.0, 1.0), scale=scale)
        assert found.places[-1] == pytest.approx(0.5)
    ranks = spread(values, ends=(0.0, 1.0), scale="rank")
    assert ranks.ends == (0.0, 0.9) and ranks.middle == 0.3 and ranks.places[2] == 0.5
    assert "rank scale, half way: 0.3" in ranks.in_words


def test_values_that_crowd_at_zero_are_spread_by_their_root_and_others_stay_in_proportion():
    crowded = [0.01] * 30 + [0.95]
    found = spread(crowded, ends=(0.0, 1.0))
    assert found.name == "root" and found.automatic and "three of four heads are near zero" in found.in_words
    assert found.places[0] == pytest.approx(0.1)
    assert spread([0.01] * 30 + [0.95] * 11, ends=(0.0, 1.0)).name == "linear"
    assert spread([-0.1] * 9 + [2.0], ends=(-2.0, 2.0), diverging=True).name == "root"
    assert spread([5.1] * 9 + [9.0], ends=(5.0, 9.0)).name == "linear"  # zero is not on that scale
    with pytest.raises(InputError, match="not 'log'"):
        spread([1.0], ends=(0.0, 1.0), scale="log")
    with pytest.raises(InputError, match="two numbers, the lower first"):
        spread([1.0], ends=(1.0, 1.0))


@pytest.mark.parametrize("side", SIDES)
def test_heads_from_a_value_on_are_those_that_a_loop_finds(side):
    rows = [(0, 0, 0.5), (0, 1, -0.7), (1, 0, None), (1, 1, float("nan")), (0, 2, 0.4999), (2, 3, 0.9), (3, 0, -0.5)]
    frame = pl.DataFrame(rows, schema=["layer", "head", "score"], orient="row")
    holds = {
        "at least": lambda v: v >= 0.5,
        "at most": lambda v: v <= 0.5,
        "at least in size": lambda v: abs(v) >= 0.5,
    }[side]
    expected = sorted((a, b) for a, b, v in rows if v is not None and math.isfinite(v) and holds(v))
    assert heads_from(frame, "score", 0.5, side) == expected
    with pytest.raises(InputError, match="not 'about'"):
        heads_from(frame, "score", 0.5, "about")


@pytest.mark.parametrize(
    ("heads", "text"),
    [
        ([], ""),
        ([(1, 1)], "1.1"),
        ([(0, 1), (0, 0)], "0.0,0.1"),
        ([(2, 5), (1, 0), (1, 1), (1, 2), (1, 2)], "1.0-2,2.5"),
        ([(0, 30), (0, 31), (1, 0), (1, 1), (1, 3)], "0.30,0.31,1.0,1.1,1.3"),
    ],
)
def test_a_set_of_heads_is_written_short_and_read_back(heads, text):
    assert write_heads(heads) == text
    assert read_heads(text, layers=32, heads=32) == tuple(sorted(set(heads)))


def test_every_head_of_a_large_model_fits_into_an_address():
    heads = tuple((layer, head) for layer in range(80) for head in range(64))
    assert len(write_heads(heads)) < 700 and read_heads(write_heads(heads), layers=80, heads=64) == heads


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7.7,x,<script>", ()),
        ("1.3-1", ()),
        ("1.2-9999", ((1, 2), (1, 3))),
        ("1.2.3 0.1", ((0, 1),)),
        ("99999.0", ()),
        ("².²", ()),
        ("1.0-", ((1, 0),)),
        ("2.0,0.4", ()),
    ],
)
def test_an_address_with_nonsense_names_only_heads_that_there_are(text, found):
    assert read_heads(text, layers=2, heads=4) == found
