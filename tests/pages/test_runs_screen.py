"""The list of runs: what is searched for, grouped, tagged and deleted is what the rows say."""

from __future__ import annotations

import pytest

from tests.support.app_screens import keep, open_page, words
from tests.support.figure_runs import retrieval
from tests.support.many_runs import keep_many
from workbench.core import registry
from workbench.runs import demo, notes
from workbench.runs.execution import open_run, runs_root

MODEL = {"name": "mine", "fingerprint": "a" * 64, "layers": 2, "heads": 4, "kv_heads": 2, "dtype": "float32"}


@pytest.fixture
def ids():
    return keep_many(9, mine=3, model=MODEL)


def test_the_list_says_how_many_runs_there_are_and_how_many_are_left():
    ids = keep_many(9, mine=3, model=MODEL)
    at = open_page("runs")
    assert "9 runs" in words(at) and at.dataframe[0].value.shape[0] == 9
    at = open_page("runs", search="concept seed>1")
    assert "2 of 9 runs" in words(at) and set(at.dataframe[0].value["id"]) == {ids[4], ids[7]}
    at = open_page("runs", search="nothing>1")
    assert "There is no column 'nothing'" in at.error[0].value.replace("\\", "")
    assert at.dataframe[0].value.shape[0] == 9


def test_numbers_of_summaries_are_columns_and_a_search_that_names_one_shows_it(ids):
    at = open_page("runs")
    assert "retrieval_heads" not in at.dataframe[0].value.columns
    at.multiselect(key="metrics").set_value(["retrieval_heads"]).run()
    assert list(at.dataframe[0].value["retrieval_heads"]) == [4.0] * 9
    at = open_page("runs", search="retrieval_heads>5")
    assert "retrieval_heads" in at.dataframe[0].value.columns and "0 of 9 runs" in words(at)


def test_groups_are_counted_above_the_list(ids):
    at = open_page("runs", group="probe", of="seconds")
    groups, rows = (table.value for table in at.dataframe)
    assert list(groups["runs"]) == [3, 3, 3] and list(groups["mean"]) == [3.0] * 3 and rows.shape[0] == 9


def test_another_page_or_the_tags_of_several_runs_are_not_written_over_by_what_the_boxes_showed(ids):
    at = open_page("runs", run=ids[0])
    at.text_input(key=f"tags {ids[0]}").set_value("mine, good").run()
    assert notes.read(runs_root() / ids[0]) == {"tags": ["mine", "good"], "note": ""}
    notes.retag(runs_root() / ids[0], add=["later"])
    at.run()
    assert at.text_input(key=f"tags {ids[0]}").value == "mine, good, later"
    at.text_area(key=f"note {ids[0]}").set_value("a note").run()
    assert notes.read(runs_root() / ids[0]) == {"tags": ["mine", "good", "later"], "note": "a note"}


def test_notes_that_cannot_be_written_are_said_and_stay_in_the_box(ids, monkeypatch):
    at = open_page("runs", run=ids[0])
    monkeypatch.setattr(notes, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    at.text_input(key=f"tags {ids[0]}").set_value("mine").run()
    assert len(at.error) == 1 and at.text_input(key=f"tags {ids[0]}").value == "mine"


def order(block) -> list[str]:
    """The kinds of elements on the screen from top to bottom, boxes that open by their label."""
    found = []
    for child in block.children.values():
        found.append(getattr(child, "label", "") if child.type == "expander" else child.type)
        found += order(child) if hasattr(child, "children") else []
    return found


@pytest.mark.parametrize("count, label", [(0, None), (1, "1 warning"), (14, "14 warnings")])
def test_the_warnings_of_a_run_are_one_line_with_their_number_after_the_figure(count, label):
    identifier = f"retrieval-heads-{count:012x}"
    keep(retrieval(), identifier, warnings=[f"Warning {i}." for i in range(count)])
    at = open_page("retrieval_heads", run=identifier)
    assert len(at.warning) == count
    seen = order(at.main)
    lines = [kind for kind in seen if "warning" in str(kind) and kind != "warning"]
    assert lines == ([label] if label else [])
    if label:
        assert seen.index("plotly_chart") < seen.index(label) < seen.index("warning")


@pytest.mark.parametrize("own", [None, "older", "newer"])
def test_the_first_example_is_the_one_on_the_model_that_the_probe_names_first_unless_one_has_newer_runs(own):
    ids = {}
    for i, name in enumerate(registry.get("retrieval-heads").example_models):  # the last of them ends last
        ids[name] = keep(retrieval(name=name), f"retrieval-heads-{i:012x}", finished=f"2026-01-02T10:0{i}:00.000+00:00")
        demo.mark(open_run(runs_root() / ids[name]))
    if own:
        day = 1 if own == "older" else 3
        ids["own"] = keep(
            retrieval(name="lab"), "retrieval-heads-00000000000f", finished=f"2026-01-0{day}T10:00:00.000+00:00"
        )
    at = open_page("retrieval_heads")
    assert at.selectbox(key="retrieval-heads run").value == ids["own" if own == "newer" else demo.MODEL]


@pytest.mark.parametrize("view, charts", [("Curves", 0), ("Ranks", 1), ("Small multiples", 3)])
def test_three_runs_are_compared_and_a_link_restores_the_view(ids, view, charts):
    mine = [i for i in ids if i.startswith("retrieval")]
    at = open_page("compare", runs=",".join(mine), several=view)
    assert not at.error and len(at.get("plotly_chart")) == charts
    assert "seed" in words(at) and all(i in words(at) for i in mine)
    assert bool(at.info) == (view == "Curves")  # the probe has no figure of several runs, and says so
    if view == "Ranks":
        assert at.dataframe[0].value.shape == (8, 5) and at.dataframe[0].value["mean rank"].is_monotonic_increasing


def test_runs_are_added_to_two_and_taken_away_again(ids):
    mine = [i for i in ids if i.startswith("retrieval")]
    at = open_page("compare", a=mine[0], b=mine[1])
    (box,) = at.multiselect
    box.set_value(mine).run()
    assert at.query_params["runs"] == ",".join(mine) and "several" in [c.key for c in at.segmented_control]
    at.multiselect[0].set_value(mine[1:]).run()
    assert "runs" not in at.query_params and (at.query_params["a"], at.query_params["b"]) == (mine[1], mine[2])
    assert not at.error and "view" in [c.key for c in at.segmented_control]


@pytest.mark.parametrize("odd", ["concept", "../../etc", "nothing"])
def test_runs_that_cannot_be_compared_are_a_sentence(ids, odd):
    mine = [i for i in ids if i.startswith("retrieval")][:2]
    third = next(i for i in ids if i.startswith("concept")) if odd == "concept" else odd
    at = open_page("compare", runs=",".join([*mine, third]))
    assert len(at.error) == 1 and ("different probes" if odd == "concept" else "no run") in at.error[0].value


def test_courses_over_the_layers_are_in_one_figure(ids):
    at = open_page("compare", runs=",".join(i for i in ids if i.startswith("concept")))
    assert not at.error and len(at.get("plotly_chart")) >= 1
    assert at.selectbox(key="several column").options == ["accuracy", "selectivity"]


def test_an_old_link_to_a_runs_colour_leads_to_it_and_the_screen_can_be_drawn_again():
    from workbench.models.loading import load

    about = {**MODEL, "name": "circuit-copy-gqa", "fingerprint": load("circuit-copy-gqa").fingerprint}
    (first, *_) = keep_many(3, mine=3, model=about)
    at = open_page("explorer", model="circuit-copy-gqa", colour=f"score · {first}")
    for _ in range(2):
        assert not at.exception and at.selectbox(key="colour").value == f"score · {first}"
        assert f"score · seed 0 · 2026-01-01 · {first}" in at.selectbox(key="colour").options
        at.run()
    at.segmented_control(key="card").set_value("Layer").run()
    assert not at.exception and at.selectbox(key="colour").value.endswith(first)
