"""What can be chosen of a figure is said by its module, for the run at hand."""

from __future__ import annotations

import json

import pytest

from tests.support import figure_runs
from workbench import figures
from workbench.core.errors import InputError


def test_the_tree_offers_its_conditions_and_their_prompts_and_is_drawn_as_chosen():
    run = figure_runs.branching()
    condition, prompt = figures.choices_of(run, "tree", {})
    frame = run.table("tree")
    assert (condition.keyword, condition.label) == ("condition", "Condition") and condition.help and prompt.help
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    assert list(condition.options.values()) == conditions
    for name in conditions:
        _, prompt = figures.choices_of(run, "tree", {"condition": name})
        asked = sorted(frame.filter(condition=name)["prompt"].unique().to_list())
        assert list(prompt.options.values()) == [None, *asked]
        drawn = figures.drawn_with(run, "tree", {"condition": name, "prompt": asked[-1]})
        assert drawn.to_json() != figures.build(run, "tree")["tree"].to_json()
    first = {one.keyword: next(iter(one.options.values())) for one in (condition, prompt)}
    as_it_is = figures.drawn_with(run, "tree", first)
    assert json.loads(as_it_is.to_json()) == json.loads(figures.build(run, "tree")["tree"].to_json())
    with pytest.raises(InputError, match="no prompt 999"):
        figures.drawn_with(run, "tree", {"prompt": 999})


def test_one_condition_is_not_asked_for_and_other_figures_offer_nothing():
    run = figure_runs.branching(conditions=("organism",))
    run.frames = {name: frame for name, frame in run.frames.items() if name in ("samples", "prompts")}
    assert [choice.keyword for choice in figures.choices_of(run, "tree", {})] == ["prompt"]
    assert figures.choices_of(run, "prompts", {}) == []
    assert figures.choices_of(figure_runs.retrieval(), "head_map", {}) == []
