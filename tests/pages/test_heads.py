"""The heads of a model on the Explorer: the grid's data, heads selected together, sets, the list, the patterns."""

import json
import math

import polars as pl
import pytest

from pages.widgets import head_cells, head_grid, styling
from tests.support.app_screens import open_page, words
from workbench.explorer import head_sets, readings
from workbench.explorer.head_text import write_heads
from workbench.explorer.opened_model import Opened, encode
from workbench.explorer.switches import Switches
from workbench.models.loading import load

PROMPT = "lantern velvet harbor quartz lantern velvet"


class Shape:
    """A model, as far as the grid asks for it."""

    def __init__(self, layers, heads, kv_heads):
        self.name, self.n_layers, self.n_heads, self.n_kv_heads = "shape", layers, heads, kv_heads

    def heads(self):
        return [(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]


def scored(layers, heads, value):
    rows = [(a, b, value(a, b)) for a in range(layers) for b in range(heads)]
    return pl.DataFrame(rows, schema={"layer": pl.Int64, "head": pl.Int64, "induction": pl.Float64}, orient="row")


def test_the_grid_gets_every_head_its_own_value_and_the_colour_of_that_value():
    model, missing = Shape(3, 4, 2), (1, 2)
    frame = scored(3, 4, lambda a, b: None if (a, b) == missing else (4 * a + b) / 11).sample(
        fraction=1, shuffle=True, seed=0
    )
    switches = Switches(((2, 3),), mlps=(1,))
    data = head_cells.data(
        model, frame, "induction", switches, (1, 0), share=True, scale="linear", selected=((0, 1), (2, 0))
    )
    for i, (layer, head) in enumerate(model.heads()):
        value = None if (layer, head) == missing else (4 * layer + head) / 11
        colour, ink = data["palette"][data["shades"][i]]
        if value is None:
            assert (data["values"][i], data["shown"][i]) == ("–", "") and [(colour, ink)] == styling.shades([None])
        else:
            assert float(data["values"][i]) == pytest.approx(value, abs=6e-4)
            exact = styling.shades([round(64 * value) / 64], ends=(0.0, 1.0))[0]
            assert (colour, ink) == exact
    assert (data["off"], data["selected"], data["mlps"], data["group"]) == ([11], [1, 8], [1], 2)


def test_links_between_heads_are_arrows_from_number_to_number_and_are_said_under_the_grid():
    links = pl.DataFrame(
        [(0, 1, 2, 3, 8.0), (1, 0, 2, 0, 2.0), (0, 9, 1, 0, 1.0)],
        schema=["source_layer", "source_head", "target_layer", "target_head", "weight"],
        orient="row",
    )
    frame = scored(3, 4, lambda a, b: 0.5)
    plain, drawn = (
        head_cells.data(Shape(3, 4, 4), frame, "induction", Switches(), (0, 0), share=True, links=x)
        for x in (None, (links, "z"))
    )
    assert plain["arrows"] == [] and "arrow" not in plain["say"]
    assert [arrow[:3] for arrow in drawn["arrows"]] == [[1, 11, 1.0], [4, 8, 0.25]]  # head 0.9 is not of this model
    assert drawn["arrows"][0][3] == "0.1 → 2.3, 8" and "the 2 strongest links by z" in drawn["say"]


@pytest.mark.parametrize(("layers", "heads"), [(2, 4), (12, 12), (24, 14), (32, 32), (80, 64)])
def test_cells_of_any_model_can_be_hit_and_what_a_click_sends_grows_by_a_few_bytes_a_head(layers, heads):
    wide, tall = head_grid.size_of_cells(layers, heads)
    assert wide >= 14 and tall >= 14
    frame = scored(layers, heads, lambda a, b: math.sin(1 + a * heads + b) ** 2)
    data = head_cells.data(Shape(layers, heads, heads), frame, "induction", Switches(), (0, 0), share=True)
    size = len(json.dumps(data).encode())
    assert size < 4_000 + 24 * layers * heads  # 21 kB at 32 × 32; it was 190 kB with a title in every cell


def test_heads_are_selected_switched_and_kept_together_and_the_address_holds_them():
    at = open_page("explorer", model="circuit-copy-gqa", prompt=PROMPT, selected="0.1,1.1-2,9.9")
    assert "3 heads selected: 0.1, 1.1, 1.2" in words(at).replace("\\", "")
    press(at, "Switch them off")
    assert param(at, "off") == "0.1,1.1,1.2" and "with the heads switched" in words(at)
    press(at, "Switch them on")
    assert "off" not in at.query_params
    at.text_input(key="mask name").set_value("three").run()
    press(at, "Save")
    press(at, "Clear")
    assert "selected" not in at.query_params and "heads selected" not in words(at)
    press(at, "Select its heads")
    assert param(at, "selected") == "0.1,1.1,1.2"


def test_heads_are_selected_by_value_and_by_rank_of_the_present_colour():
    at = open_page("explorer", model="circuit-copy-gqa", prompt=PROMPT, colour="previous_token")
    opened = Opened(load("circuit-copy-gqa"))
    frame = readings.head_scores(opened, [encode(opened, PROMPT)])
    middle = frame["previous_token"].sort()[5]
    at.number_input(key="select value").set_value(middle).run()
    press(at, "Select these")
    high = [(a, b) for a, b, v in frame.select("layer", "head", "previous_token").iter_rows() if v >= middle]
    assert param(at, "selected") == write_heads(high) and 2 <= len(high) <= 4
    at.selectbox(key="select side").set_value("at most").run()
    press(at, "Select these")
    assert param(at, "selected") != write_heads(high)
    at.number_input(key="select value").set_value(-1.0).run()
    press(at, "Select these")
    assert "selected" not in at.query_params and "No head's previous token is at most -1" in words(at).replace("\\", "")
    at.selectbox(key="colour").set_value("output norm").run()
    at.number_input(key="top k").set_value(2).run()
    press(at, "Select top heads")
    norms = readings.output_norms(readings.read(opened, encode(opened, PROMPT)))
    assert param(at, "selected") == write_heads(head_sets.top_heads(norms, "norm", 2))


def param(at, key):
    found = at.query_params[key]
    return found if isinstance(found, str) else found[0]


def press(at, label):
    at.button[[b.label for b in at.button].index(label)].click().run()
    assert not at.exception, at.exception


@pytest.mark.parametrize("params", [{"selected": "7.7,<script>"}, {"scale": "bogus"}, {"selected": "0.0-99999"}])
def test_a_link_with_nonsense_about_heads_gives_a_screen(params):
    at = open_page("explorer", model="circuit-copy-gqa", prompt=PROMPT, **params)
    assert "next token" in words(at) and "<script" not in words(at)


def test_the_list_has_every_head_filters_them_and_selects_what_the_grid_selects():
    at = open_page("explorer", model="circuit-copy-gqa", prompt=PROMPT, card="Heads", selected="0.1,1.1")
    assert len(at.dataframe) == 1 and at.dataframe[0].value.shape[0] == 8
    assert "8 of 8 heads" in words(at)
    at.text_input(key="filter").set_value("1.").run()
    assert at.dataframe[0].value.shape[0] == 4 and "4 of 8 heads" in words(at)
    press(at, "Select all 4")
    assert param(at, "selected") == "1.0-3" and "4 heads selected" in words(at)
    at.text_input(key="filter").set_value("induction>bogus").run()
    assert "is no number" in at.error[0].value and at.dataframe[0].value.shape[0] == 8


def test_patterns_are_of_the_layer_or_of_the_selected_heads_and_say_so():
    at = open_page("explorer", model="circuit-copy-gqa", prompt=PROMPT, map="Patterns", head="1.2")
    assert "Attention of layer 1" in words(at) and "view.patterns(layer=1)" in words(at)
    at.selectbox(key="patterns of").set_value("selected heads").run()
    assert any("Select heads in the grid" in item.value for item in at.info)
    at = open_page("explorer", model="circuit-copy-gqa", prompt=PROMPT, map="Patterns", selected="0.1,1.2")
    at.selectbox(key="patterns of").set_value("selected heads").run()
    assert not at.exception and "Attention of the selected heads" in words(at)
    assert "view.patterns(heads=[(0, 1), (1, 2)])" in words(at)
