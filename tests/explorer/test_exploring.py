"""The Explorer from a notebook: the same panels, each a table and a figure of it."""

import numpy as np
import polars as pl
import pytest

from workbench import explore
from workbench.core.errors import InputError
from workbench.explorer import drawn
from workbench.explorer.patch_maps import PatchMap

PROMPT = "The secret of the lantern is {} walrus cactus. Question: What is the secret of the lantern? Answer:"


@pytest.fixture(scope="module")
def view():
    return explore("organism", PROMPT.format("insect"))


def cells(fig, i: int = 0) -> dict[tuple[int, int], float]:
    """(row, column) → value of every cell that is drawn in a panel."""
    axis = "x" if i == 0 else f"x{i + 1}"
    bars = [t for t in fig.data if t.type == "bar" and (t.xaxis or "x") == axis and not isinstance(t.marker.color, str)]
    return {
        (round(base + 0.465), int(x)): float(value)
        for bar in bars
        for x, base, value in zip(bar.x, bar.base, bar.marker.color)
    }


def test_the_target_is_the_plain_models_top_token_and_stays_it_when_the_answer_changes(view):
    assert view.said == "log p(“ insect”)"
    off = view.switched(heads=[(1, 0), (1, 1)], mlps=[2])
    assert off.target == view.target and int(off.reading.logits.argmax()) != view.target.token
    assert view.switched().reading.logits.allclose(view.reading.logits, atol=1e-5)


@pytest.mark.parametrize("colour", list(drawn.LENS_COLOURS))
def test_a_lens_figure_draws_the_column_that_it_is_coloured_by(view, colour):
    table, fig = view.lens(colour=colour)
    found = cells(fig)
    column = table[drawn.COLUMN_OF.get(colour, colour)].cast(pl.Float64)
    expected = column.to_numpy() if not colour.endswith("rank") else np.log10(column.to_numpy() + 1)
    for layer, position, value in zip(table["layer"], table["position"], expected):
        if np.isfinite(value):
            assert found[layer + 1, position] == pytest.approx(value)
    assert len(found) == np.isfinite(expected).sum()
    with pytest.raises(InputError, match="not coloured by 'blue'"):
        drawn.lens_figure(table, view.tokens, colour="blue")


@pytest.mark.parametrize("heads", [0, 4])
def test_the_bars_of_a_waterfall_go_on_where_the_last_ended_and_end_at_the_sum(view, heads):
    parts, fig = view.waterfall(heads=heads)
    (bar,) = fig.data
    steps, starts = np.array(bar.x, float), np.array(bar.base, float)
    np.testing.assert_allclose(starts[1:-1], np.cumsum(steps)[:-2], atol=1e-9)
    whole = parts.filter(pl.col("part").is_in(["embedding", "attention", "mlp", "bias"]))["contribution"].sum()
    assert steps[:-1].sum() == pytest.approx(whole) and steps[-1] == pytest.approx(whole, abs=1e-3) and starts[-1] == 0
    names = [text for text in fig.layout.yaxis.ticktext]
    assert sum(name.startswith("head ") for name in names) == heads


def test_patching_finds_the_word_that_differs_and_the_heads_that_copy_it(view):
    donor = PROMPT.format("panther")
    table, fig = view.patch_map(donor)
    early = table.filter(pl.col("layer") == 0).sort("recovered", descending=True)
    assert early["position"][0] == 7 and early["recovered"][0] == pytest.approx(1, abs=1e-3)
    assert early["recovered"][1:].abs().max() < 0.05
    assert cells(fig)[0, 7] == pytest.approx(early["change"][0])
    heads, _ = view.patch_map(donor, kind="heads")
    best = heads.sort("recovered", descending=True).head(2)
    assert set(best.select("layer", "head").iter_rows()) == {(1, 0), (1, 1)}  # the organism's copying heads


def test_paths_are_drawn_side_by_side_for_query_key_and_value(view):
    table, fig = view.paths(PROMPT.format("panther"), (1, 1))
    for i, side in enumerate("qkv"):
        mine = table.filter(pl.col("through") == side)
        found = cells(fig, i)
        assert {(layer, head): change for layer, head, _, change in mine.iter_rows()} == pytest.approx(found)


def test_no_gap_between_two_prompts_is_said_and_gives_no_share():
    same = PatchMap(
        pl.DataFrame({"layer": [0], "position": [0], "value": [1.0], "change": [0.5], "recovered": [None]}), 1.0, 1.0
    )
    fig = drawn.patch_figure(same, ["a"], kind="resid_pre", said="log p")
    assert "no gap to close" in str(fig.data[0].customdata)


def test_direct_effects_are_of_the_target_and_drawn_for_every_head(view):
    table, fig = view.direct_effects()
    assert table.height == 48 and len(cells(fig)) == 48
    pair = explore(view.opened, PROMPT.format("insect"), target="insect", other="panther")
    assert pair.said == "logit(“ insect”) − logit(“ panther”)"
    assert pair.direct_effects()[0]["direct_effect"].to_list() != table["direct_effect"].to_list()
