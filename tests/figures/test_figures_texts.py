"""Texts from outside are shown as they are: no link, no markup, no formula, no template, no line of their own."""

import html
import re
from functools import cache
from importlib import import_module

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest

from tests.support import figure_runs
from tests.support.figure_runs import FakeRun
from workbench.figures import dressed, export, heads, traces
from workbench.figures.layout import axis, sheet, ticks
from workbench.figures.plotly_text import read, safe
from workbench.figures.run_tables import collect
from workbench.figures.text_table import word_table

HOSTILE = '<a href="http://x.example">k</a><b>b</b>&amp;<br>$e^x$%{y}\n'
# Columns whose words come from data, models and configs; the others hold words of ours, which figures look for.
FREE = "dataset|subject|answer|distractor|before|after|group|colour|text|promotes|tokens|opening|target|checkpoint"
# What stands in a figure when a text was not escaped. Our own marks are <br>, <b> in tables, <i>, <extra> and %{x:…}.
RAW = re.compile(r"<a\b|</a>|<b>b|\$|%\{y\}|\n")


def hostile(name: str) -> FakeRun:
    """The synthetic run of this name, with every word from outside turned into something else."""
    run = figure_runs.RUNS[name]()
    frames = {table: frame.with_columns(_columns(frame)) for table, frame in run.frames.items()}
    model = run.info["model"] | {"name": f"org/{HOSTILE.replace('/', '')}"}
    return FakeRun(run.probe, frames, run.info | {"model": model}, run.summary)


def _columns(frame: pl.DataFrame) -> list[pl.Expr]:
    words = [name for name in frame.columns if re.fullmatch(FREE, name)]
    changed = []
    for name in words:
        if frame[name].dtype == pl.String:
            changed.append((pl.lit(HOSTILE) + pl.col(name)).alias(name))
        elif frame[name].dtype == pl.List(pl.String):
            changed.append(pl.col(name).list.eval(pl.lit(HOSTILE) + pl.element()).alias(name))
    return changed


@cache
def drawn(name: str) -> tuple[dict, dict]:
    run = hostile(name)
    return collect(run, import_module(f"probes.{run.probe.replace('-', '_')}.figures").FIGURES)


def texts(fig: go.Figure) -> list[str]:
    """Every text of a figure that Plotly may show."""
    found: list[str] = []

    def walk(value, key=""):
        if key in ("meta", "template", "legendgroup"):  # kept for us; never shown
            return
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            hidden = value.get("hoverinfo") == "skip"  # customdata of these is for the layout
            for name, item in value.items():
                if not (hidden and name == "customdata"):
                    walk(item, name)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item, key)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "OU":
            walk(value.tolist(), key)

    walk(fig.layout.to_plotly_json())
    for trace in fig.data:
        walk(trace.to_plotly_json())
    return found


@pytest.mark.parametrize("name", list(figure_runs.RUNS))
def test_no_figure_of_a_probe_lets_a_text_become_markup(name):
    figures, reasons = drawn(name)
    assert reasons == {}
    shown = 0
    for key, fig in figures.items():
        for made in (fig, dressed(fig, preset="single")):  # a figure is dressed again for each use
            for text in texts(made):
                assert not RAW.search(text), f"{key}: {text}"
                shown += "&lt;a href" in text
    assert shown or name in ("retrieval", "conflict")  # the hostile words are in the figures


def test_the_pieces_that_figures_are_made_of_escape_each_name_once():
    fig = sheet((HOSTILE, "b"), title=HOSTILE, x=HOSTILE, y=HOSTILE, x_ticks=ticks([0, 1], [HOSTILE] * 2, keep=True))
    style = traces.theme.Style(traces.theme.BLUE)
    traces.colour_scale(fig, (0, 1), HOSTILE)
    traces.add_cells(fig, 0, np.eye(2), custom=np.zeros((2, 2, 1)), hover=safe(HOSTILE), ends=(0, 1))
    traces.add_curve(fig, 1, [0, 1, 2], [0, 1, 2], name=HOSTILE, style=style, low=[0, 0, 0], high=[1, 2, 3])
    traces.add_bars(fig, 1, [0, 1], [0, 1], name=HOSTILE + "2", style=style, labels=[HOSTILE] * 2)
    traces.add_spots(fig, 1, [0], [1], name=HOSTILE + "3", style=style, low=[0], high=[1], labels=[HOSTILE])
    traces.add_points(fig, 1, [0], [1], name=HOSTILE + "4", style=style, hover=[safe(HOSTILE)])
    traces.add_rule(fig, 1, y=0.5, text=HOSTILE)
    traces.add_area(fig, 1, 0, 1, style=style, text=HOSTILE)
    traces.add_histogram(fig, 1, [0, 1], edges=np.array([0, 1, 2]), name=HOSTILE + "5", style=style)
    once = [dressed(fig), dressed(dressed(fig)), dressed(dressed(fig, preset="single"), mode="dark")]
    table = word_table([HOSTILE, "other"], [[HOSTILE, "x"]], title=HOSTILE)
    by_head = pl.DataFrame({"layer": [0, 0], "head": [0, 1], "score": [0.1, 0.2], HOSTILE: [1.0, 2.0]})
    mapped = heads.head_map(by_head, label=HOSTILE, title=HOSTILE, more=(HOSTILE,))
    for made in (*once, table, dressed(table, mode="dark"), mapped, heads.ranked(by_head, label=HOSTILE)):
        for text in texts(made):
            assert not RAW.search(text), text
            assert "&amp;lt;" not in text and "&amp;#" not in text, text  # escaped twice
    assert axis(1)["xaxis"] == "x2" and any("⏎" in text for text in texts(once[0]))


def test_what_is_escaped_reads_as_it_was_and_goes_so_into_the_csv():
    for text in (HOSTILE, "&lt;", "$5 and $6", "%{x}", "{}", "a & b", "<", "&#36;", "𝄞\u202e"):
        assert read(safe(text)) == text.replace("\n", "⏎")
        assert not re.search(r"[$<>{\n]", safe(text))
    assert read(safe("<b>" * 9, 5)) == "<b><…"
    fig = sheet(("panel",))
    style = traces.theme.Style(traces.theme.BLUE)
    traces.add_curve(fig, 0, [0, 1, 2], [0, 1, 2], name="<b> & $x$", style=style)
    traces.add_bars(fig, 0, [0], [1], name="bars", style=style, labels=["<i>$y$"])
    frame = export.data_of(dressed(fig))
    assert frame["trace"].to_list() == ["<b> & $x$"] * 3 + ["bars"] and frame["text"][-1] == "<i>$y$"


@pytest.fixture
def chromium():
    from workbench.figures.browser import can_draw

    if not can_draw():
        pytest.skip("no Chromium on this machine: `make setup` installs one")


@pytest.mark.slow
def test_exported_files_show_the_text_and_link_nowhere(chromium, tmp_path):
    """As Chromium draws it: the words are in the picture, and nothing in it is a link or bold."""
    fig = sheet(("panel",), title=HOSTILE, y_ticks=ticks([0, 1, 2], [HOSTILE, "$x$", "&lt;b&gt;"], keep=True))
    for i, name in enumerate((HOSTILE, "plain")):
        traces.add_curve(fig, 0, [0, 1, 2], [i, 1, 2], name=name, style=traces.theme.Style(traces.theme.PALETTE[i]))
    svg = export.export(fig, tmp_path / "a.svg", preset="slide").read_text()
    assert "<a " not in svg and "http://x.example" not in re.sub(r">[^<]*<|data-unformatted=\"[^\"]*\"", "", svg)
    said = html.unescape(" ".join(re.findall(r">([^<>]+)<", svg)))
    assert '<a href="http://x.example">k</a>' in said and "$x$" in said and "&lt;b&gt;" in said
    page = export.export(fig, tmp_path / "a.html").read_text()
    title = re.search(r"<title>(.*?)</title>", page, re.S)
    assert title and html.unescape(title[1]) == HOSTILE and "<a href=" not in title[1]
