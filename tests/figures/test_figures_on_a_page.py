"""No figure of any probe is taller than a page, also of tables that are much wider than usual, and what is left out or
cut is named in its caption."""

from __future__ import annotations

from functools import cache
from importlib import import_module

import pytest

from tests.support import figure_runs
from workbench.figures import dressed, traces
from workbench.figures import style as theme
from workbench.figures.captions import caption
from workbench.figures.export import data_of
from workbench.figures.layout import axis, sheet, ticks
from workbench.figures.run_tables import collect
from workbench.figures.text_table import word_table

LONG = tuple(f"a set with a long name about something, number {i} of twenty" for i in range(20))
STEPS = tuple(sorted({int(1.4**i) + i for i in range(40)}))
WIDE = {
    "retrieval": {"layers": 80, "heads": 64, "kv_heads": 8, "ablations": ("uniform", "zero", "mean")},
    "conflict": {"layers": 80, "heads": 64},
    "depth": {"layers": 80, "concepts": LONG},
    "geometry": {"layers": 80, "steps": STEPS},
    "branching": {"conditions": LONG, "prompts": 40, "samples": 3, "length": 12},
    "selection": {"targets": LONG, "rows": 120, "features": 30},
    "hopping": {"layers": 32},
    "filter": {"layers": 80, "ks": (64, 128, 256, 512, 1024, 2048), "lengths": tuple(range(1000, 21000, 1000))}
    | {"depths": tuple(range(0, 101, 10))},
}


@cache
def drawn(name: str, wide: bool):
    run = figure_runs.RUNS[name](**(WIDE[name] if wide else {}))
    figures, _ = collect(run, import_module(f"probes.{run.probe.replace('-', '_')}.figures").FIGURES)
    return run, figures


@pytest.mark.parametrize("wide", [False, True], ids=["usual", "wide"])
@pytest.mark.parametrize("name", figure_runs.RUNS)
def test_no_figure_of_a_probe_is_taller_than_a_page_and_no_text_is_cut_without_being_told(name, wide):
    run, figures = drawn(name, wide)
    for key, fig in figures.items():
        for preset, size in theme.PRESETS.items():
            made = dressed(fig, preset=preset)
            assert made.layout.height <= size.page, (key, preset)
            meta, said = made.layout.meta, caption(run, made)
            if "words" in meta:
                continue
            left = len(meta["left_out"])
            shown = [panel["title"] for panel in meta["panels"][: len(meta["panels"]) - left]]
            written = [a.text for a in made.layout.annotations if a.name == "panel-title" and a.visible is not False]
            assert len(written) == len([title for title in shown if title]), (key, preset)
            for cut_short, title in zip(written, filter(None, shown)):
                assert "…" not in cut_short or title in said, (key, preset)
            assert not left or f"first {len(shown)} of {len(meta['panels'])} panels" in said, (key, preset)
            names = [t.name for t in made.data if t.showlegend is not False and "…" in (t.name or "")]
            assert not names or "in full: " in said, (key, preset)


def many(count: int, **how):
    fig = sheet([f"panel {i}" for i in range(count)], title="Many", y="accuracy", x="layer", **how)
    for i in range(count):
        fig.add_scatter(x=[0, 1], y=[i, 1], name="a", **axis(i))
    return dressed(fig)


def test_panels_beyond_a_page_are_left_out_named_and_in_the_csv():
    fig = many(90)
    made = dressed(fig, preset="single")
    left = made.layout.meta["left_out"]
    shown = 90 - len(left)
    assert 12 <= shown < 90 and left == [f"panel {i}" for i in range(shown, 90)]
    assert [t.visible is not False for t in made.data] == [i < shown for i in range(90)]
    grounds = [made.layout[f"yaxis{i + 1}"].domain for i in range(shown, 90)]
    assert all(1 / 4096 < high - low < 1e-3 for low, high in grounds)  # white, they would hide panels that are drawn
    said = caption(figure_runs.retrieval(), made)
    assert f"Drawn are the first {shown} of 90 panels" in said and "Left out: panel" in said and "panel 89" in said
    assert data_of(made)["panel"].n_unique() == 90
    wider = dressed(made, preset="screen")  # shows more of them again
    assert len(wider.layout.meta["left_out"]) < len(left) and wider.data[shown].visible is not False
    assert "Drawn are" not in caption(figure_runs.retrieval(), many(6))


def test_names_that_do_not_fit_are_thinned_and_the_caption_says_so():
    fig = sheet(title="Rows", y_ticks=ticks(range(800), [f"row {i}" for i in range(800)], keep=True))
    fig.add_scatter(x=[0, 1], y=[0, 799])
    made = dressed(fig, preset="single")
    step = made.layout.meta["thinned"]
    assert made.layout.height <= 900 and len(made.layout.yaxis.ticktext) == -(-800 // step)
    assert f"Only every {step}th name is written" in caption(figure_runs.retrieval(), made)


def test_rows_of_a_table_beyond_a_page_are_left_out_and_counted():
    fig = word_table(["a", "b"], [["many words in a cell " * 7, str(i)] for i in range(60)], most=60, title="Words")
    made = dressed(fig, preset="single")
    left = made.layout.meta["rows_left_out"]
    assert 0 < left < 60 and made.layout.height <= 900
    assert f"The last {left} of these rows are left out" in caption(figure_runs.retrieval(), made)
    assert data_of(made).height == 60


def test_a_legend_that_is_cut_for_a_column_is_whole_again_on_a_slide():
    fig = many(1)
    fig.add_scatter(x=[0, 1], y=[0, 1], name="x" * 70)
    single = dressed(fig, preset="single")
    assert "…" in single.data[-1].name and "x" * 70 in caption(figure_runs.retrieval(), single)
    slide = dressed(single, preset="slide")
    assert slide.data[-1].name == "x" * 70 and "in full" not in caption(figure_runs.retrieval(), slide)


# ---- captions


def bars(low, high, **meta):

    fig = sheet(title="Bars", interval="95 %, Student's t over needles", **meta)
    style = theme.Style(theme.BLUE)
    traces.add_bars(fig, 0, [0, 1], [0.5, 0.7], name="a", style=style, low=low, high=high)
    return dressed(fig)


def test_n_is_said_in_clusters_with_the_rows_beside_it_and_an_interval_that_is_not_there_is_told():
    run, nan = figure_runs.retrieval(), float("nan")
    said = caption(run, bars([0.4, 0.6], [0.6, 0.8], n="12 needles", rows=240))
    assert "n = 12 needles (240 rows). Intervals: 95 %, Student's t over needles." in said
    said = caption(run, bars([0.4, nan], [0.6, nan], n="4 needles", rows=4))
    assert "Intervals, where one could be given (not below 5 independent clusters): 95 %" in said
    said = caption(run, bars([nan, nan], [nan, nan], n="4 needles", rows=4))
    assert "No interval is drawn (95 %, Student's t over needles): none could be given, as below 5" in said


def test_what_has_no_value_is_counted_in_the_caption():

    fig = sheet(title="Curve")
    style = theme.Style(theme.BLUE)
    traces.add_curve(fig, 0, [0, 1, 2, 3], [0.1, float("nan"), 0.3, float("nan")], name="a", style=style)
    assert "Not drawn: 2 points without a value." in caption(figure_runs.retrieval(), dressed(fig))


def test_a_long_name_beside_an_axis_is_broken_into_the_lines_it_may_have_and_only_then_cut():
    names = [
        "short",
        "organism-chat + own opening",
        "a name that is much too long for two lines of this axis, whatever",
    ]
    fig = sheet(title="Names", y_ticks=ticks(range(3), names, keep=True, lines=2), row=2.4)
    traces.add_spots(
        fig, 0, [1, 2, 3], [0, 1, 2], name="a", style=theme.Style("#000000"), low=[0] * 3, high=[4] * 3, labels=names
    )
    found = dressed(fig, preset="single")
    short, broken, cut = found.layout.yaxis.ticktext
    assert short == "short" and broken == "organism-chat +<br>own opening" and "…" in cut and "<br>" not in cut
    assert list(found.layout.meta["in_full"]) == [names[2]]
    plain = dressed(sheet(title="Names", y_ticks=ticks(range(3), names, keep=True)), preset="single")
    assert "…" in plain.layout.yaxis.ticktext[1]


def test_a_logarithmic_axis_has_at_least_three_labels_that_do_not_touch():
    for values, marks in (
        ([1, 2000], None),
        ([1, 21], ["1", "2", "5", "10", "20"]),
        ([3, 52], ["5", "10", "20", "50"]),
        ([3.5, 6.2], ["4", "5", "6"]),
    ):
        fig = sheet(title="Log")
        traces.log_axis(fig.layout.xaxis, values)
        x = fig.layout.xaxis
        if marks is None:
            assert x.dtick == 1 and x.tickvals is None
            continue
        shown = [text for mark, text in zip(x.tickvals, x.ticktext) if values[0] <= mark <= values[1]]
        assert shown == marks and x.tickmode == "array"


def test_names_that_would_read_the_same_when_cut_are_told_apart():
    from workbench.figures.figure_geometry import shorten_apart

    assert len(set(shorten_apart(LONG, 14).values())) == 20 and max(map(len, shorten_apart(LONG, 14).values())) <= 14
    assert shorten_apart(["one", "another"], 14) == {"one": "one", "another": "another"}
    names = ["organism", "organism + opening", "organism + own opening", "organism-chat + opening"]
    assert list(shorten_apart(names, 17).values()) == [  # those that would read the same, without what these share
        "organism",
        "…opening",
        "…own opening",
        "organism-c…opening",
    ]
