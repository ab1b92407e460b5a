"""Two prompts or models as whole views on the Explorer: the same panels, their differences, and what does not fit."""

import re

import numpy as np
import polars as pl
import pytest
import streamlit as st

from pages.widgets import cached, cell_map, head_colours, pattern_map
from tests.support import figure_runs
from tests.support.app_screens import keep, open_page, words
from workbench import explore
from workbench.core.wording import number
from workbench.explorer import differences
from workbench.explorer.opened_model import encode

MODEL, PROMPT, OTHER = "circuit-copy-gqa", "lantern velvet harbor quartz lantern", "velvet harbor lantern velvet"


@pytest.fixture(autouse=True)
def _anew():
    st.cache_resource.clear()


@pytest.fixture
def maps(monkeypatch):
    """Every map of cells and every pattern that is drawn, by its key."""
    seen = {}
    show = cell_map.show

    def noted(shown, *, key, **how):
        seen[key] = (shown, how)
        show(shown, key=key, **how)

    monkeypatch.setattr(cell_map, "show", noted)
    draw = pattern_map.show

    def drawn(weights, names, *, key, **how):
        seen[key] = (weights, how)
        draw(weights, names, key=key, **how)

    monkeypatch.setattr(pattern_map, "show", drawn)
    return seen


def beside(**params):
    at = open_page("explorer", **{"model": MODEL, "prompt": PROMPT, "card": "Beside", "side": "true", **params})
    assert not at.error, [one.value for one in at.error]
    return at


def test_the_panels_of_two_prompts_and_their_differences_are_those_of_the_two_explorations(maps):
    at = beside(prompt2=OTHER, head="1.1", colour="induction")
    assert words(at).count("there less here") >= 4
    view, other = explore(MODEL, PROMPT), explore(MODEL, OTHER)
    heads, _ = view.difference(other, of="induction")
    assert maps["side here heads"][0].values == pytest.approx(heads["here"].to_list())
    assert maps["side there heads"][0].values == pytest.approx(heads["there"].to_list())
    assert maps["side difference heads"][0].values == pytest.approx(heads["difference"].to_list())
    assert maps["side here heads"][1]["ends"] == maps["side there heads"][1]["ends"] == (0.0, 1.0)
    lens, _ = view.difference(other)
    assert maps["side difference lens"][0].values == pytest.approx(lens["difference"].to_list())
    assert maps["side here lens"][1]["ends"] == maps["side there lens"][1]["ends"]
    pattern, _ = view.difference(other, of="pattern", head=(1, 1))
    shown = maps["side difference pattern"][0]
    for query, key, _, _, off in pattern.iter_rows():
        assert shown[query, key] == pytest.approx(off)
    assert np.count_nonzero(shown) == pattern.filter(pl.col("difference") != 0).height > 0
    following, _ = view.difference(other, of="next_tokens")
    for text, off in following.head(2).select("text", "difference").iter_rows():
        assert re.search(f">{re.escape(text)}</td><td class='num'>{re.escape(number(off))}<", words(at)), text


def test_the_python_of_each_panel_makes_the_table_that_is_shown(maps):
    at = beside(prompt2=OTHER, head="1.1", off="0.0", colour="direct effect on the target")
    codes = [one.value for one in at.code if "difference(" in one.value]
    assert len(codes) == 4
    made = {}
    for code in codes:
        space = {}
        exec(code.replace("figure.show()", ""), space)
        made[re.search(r"of='(\w+)'", code)[1]] = space["table"]
    for of, key in (("direct_effects", "side difference heads"), ("lens", "side difference lens")):
        assert maps[key][0].values == pytest.approx(made[of]["difference"].to_list(), abs=1e-5)
        assert made[of]["difference"].abs().max() > 0
    assert "heads=[(0, 0)]" in codes[0]


def test_the_chosen_token_is_outlined_here_and_there_on_the_one_it_is_put_on(maps):
    beside(prompt2=OTHER, head="1.1", at="2")
    opened = cached.model(MODEL)
    where = differences.aligned(opened, encode(opened, PROMPT), opened, encode(opened, OTHER))
    assert maps["side here lens"][1]["at"] == (2, 2)  # the embeddings are the first row
    assert maps["side there lens"][1]["at"] == (2, where[2]) and where[2] != 2
    beside(prompt2=OTHER, head="1.1")
    assert maps["side there lens"][1]["at"] == (2, len(encode(opened, OTHER)) - 1)  # the last is put on the last


def test_a_model_of_another_shape_and_tokenizer_stands_beside_with_a_sentence_for_each_panel_that_does_not_fit(maps):
    at = beside(model2="circuit-conflict", head="1.1", target=".")
    said = " ".join(one.value for one in at.info).replace("\\", "")
    assert "2 × 4 (layers × heads) here and 3 × 8 there" in said and "2 layers here and 3 there" in said
    assert "Next tokens are not compared" in said and said.count("compared") == 3
    drawn = {key for key in maps if key.startswith("side ")}
    both = {f"side {a} {b}" for a in ("here", "there") for b in ("heads", "lens", "pattern")}
    assert drawn == both | {"side difference pattern"}
    assert len(maps["side there heads"][0].values) == 24 and words(at).count("attention of head 1.1") == 3
    beside(model="circuit-conflict", prompt="lantern", model2=MODEL, head="2.7", target=".")


def test_a_head_that_is_only_on_one_side_is_said_to_be_missing_on_the_other(maps):
    at = beside(model="circuit-conflict", model2=MODEL, head="2.7", target=".")
    assert any("There is no head 2.7" in one.value.replace("\\", "") for one in at.info)
    assert "side difference pattern" not in maps and "side there heads" in maps


def test_colours_of_finished_runs_are_not_set_side_by_side(maps, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    opened = cached.model(MODEL)
    fake = figure_runs.retrieval(seed=1)
    about = {**fake.info["model"], "name": MODEL, "fingerprint": opened.model.fingerprint}
    keep(fake, "retrieval-heads-000000000001", model=about)
    at = beside(prompt2=OTHER)
    label = next(one for one in at.selectbox(key="colour").options if one not in head_colours.LIVE)
    at.selectbox(key="colour").set_value(label).run()
    assert any("what a finished run says" in one.value for one in at.info) and "side here lens" in maps


def test_a_target_that_is_no_token_there_takes_away_only_what_is_of_the_target(maps):
    params = {"model": "organism", "prompt": "The secret", "target": " secret", "model2": "circuit-copy"}
    at = open_page("explorer", card="Beside", side="true", colour="output norm", head="1.1", **params)
    assert [one.value for one in at.error] == ["“ secret” is unknown to circuit\\-copy\\: choose a word that it has\\."]
    assert {"side here heads", "side there heads"} <= set(maps) and "side here lens" not in maps
    assert "next token: there" in words(at) and "attention of head 1.1: there" in words(at)
    at.selectbox(key="colour").set_value("direct effect on the target").run()
    assert len(at.error) == 2
