"""The heads of one run in the colours of another: every point has its head's own value, maps outline the highest."""

import numpy as np
import polars as pl
import pytest

from tests.support.figure_runs import conflict, depth, retrieval
from workbench.core.errors import InputError
from workbench.figures import build
from workbench.figures.coloured_heads import OUTLINED, all_coloured, coloured_by, scores_of
from workbench.figures.export import bibtex, export_run
from workbench.figures.layout import HEAD_POINTS


def values_of(run, column):
    return {(a, b): v for a, b, v in run.table("heads").select("layer", "head", column).iter_rows()}


def points(fig):
    """(layer, head) → every colour value with which a point of it is drawn."""
    found: dict = {}
    for trace in fig.data:
        if trace.meta == HEAD_POINTS:
            colour = trace.marker.color
            shades = [colour] * len(trace.x) if isinstance(colour, str) else list(colour)
            for head, shade in zip(trace.customdata, shades):
                found.setdefault((int(head[0]), int(head[1])), []).append(shade)
    return found


def test_each_point_has_the_value_of_its_own_head_and_none_is_lost():
    mine, other = retrieval(), conflict()
    want = values_of(other, "memory_importance")
    plain = build(mine, "activation")["activation"]
    fig = coloured_by(plain, mine, other, "memory_importance")
    drawn = points(fig)
    assert set(drawn) == set(points(plain)) and len(drawn) > 10
    assert all(shades == [want[head]] for head, shades in drawn.items())
    assert plain.layout.coloraxis.cmin is None  # the figure that was given is as it was


def test_a_head_without_a_value_stays_and_is_grey():
    mine, other = retrieval(), conflict()
    other.frames["heads"] = other.table("heads").filter(pl.col("layer") > 2)
    drawn = points(coloured_by(build(mine, "activation")["activation"], mine, other, "memory_importance"))
    assert set(drawn) == set(points(build(mine, "activation")["activation"]))
    assert all(isinstance(shades[0], str) == (head[0] <= 2) for head, shades in drawn.items())


def test_a_map_outlines_the_highest_heads_of_the_other_run():
    mine, other = retrieval(), conflict()
    want = values_of(other, "memory_importance")
    top = set(sorted(want, key=lambda head: -want[head])[:OUTLINED])
    fig = coloured_by(build(mine, "head_map")["head_map"], mine, other, "memory_importance")
    outlined = {
        (int(cell[0]), int(cell[1]))
        for trace in fig.data
        if trace.type == "bar"
        for cell, width in zip(trace.customdata, trace.marker.line.width)
        if width
    }
    assert outlined == top and "memory_importance" in fig.layout.meta["note"]


def test_what_has_no_heads_other_shapes_and_unknown_columns_are_refused():
    mine, other = retrieval(), conflict()
    with pytest.raises(InputError, match="scores no heads"):
        scores_of(depth())
    with pytest.raises(InputError, match=r"called 'memory_importanc' \(did you mean 'memory_importance'\?\)"):
        scores_of(other, "memory_importanc")
    with pytest.raises(InputError, match="has 8 layers, that of .* 4"):
        coloured_by(build(mine, "head_map")["head_map"], mine, conflict(layers=4))
    with pytest.raises(InputError, match="shows no heads"):
        coloured_by(next(iter(build(depth(layers=8)).values())), depth(layers=8), other)
    with pytest.raises(InputError, match="No figure of the run .* shows heads"):
        all_coloured(build(depth(layers=8)), depth(layers=8), other, None)


def test_the_files_are_called_after_the_score_and_name_both_runs(tmp_path):
    mine, other = retrieval(), conflict()
    written = export_run(mine, formats=["csv"], out=tmp_path, colour=(other, "memory_importance"))
    names = {path.name for path in written}
    assert {"head_map-by-memory_importance.csv", "activation-by-memory_importance.csv"} <= names
    assert "ranked-by-memory_importance.csv" not in names  # a curve of sorted scores has no head to colour
    caption = (tmp_path / "activation-by-memory_importance.caption.txt").read_text()
    assert mine.id in caption and other.id in caption and "memory_importance" in caption
    papers = (tmp_path / "activation-by-memory_importance.bib").read_text()
    assert papers.startswith(bibtex(mine)) and papers.rstrip().endswith(bibtex(other))
    drawn = pl.read_csv(tmp_path / "activation-by-memory_importance.csv")
    assert np.isfinite(drawn["value"].drop_nulls().to_numpy()).all() and drawn["value"].null_count() == 0
