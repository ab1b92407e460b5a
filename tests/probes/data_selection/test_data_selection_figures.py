"""Figures of data selection: the size that the run selected, passages and densities on the cards, a map per target."""

import dataclasses

import polars as pl
import pytest

from probes.data_selection import figures as data_selection
from tests.support import figure_runs
from workbench.figures.export import data_of


def of_k(run, k):
    """The run as it would be with k in place of the ratio: its tables hold that size too."""
    frames = {}
    for name in ("precision", "overlap", "lengths"):
        table = run.table(name)
        first = table.filter(pl.col("ratio") == table["ratio"].min())
        more = first.with_columns(pl.lit(k / 800).alias("ratio"), pl.lit(k, dtype=table["k"].dtype).alias("k"))
        changed = {"overlap": {"overlap": 0.77}, "lengths": {"mean": 333.0}}.get(name, {})
        frames[name] = pl.concat([table, more.with_columns(**{c: pl.lit(v) for c, v in changed.items()})])
    info = run.info | {"config": run.info["config"] | {"k": k}}
    return dataclasses.replace(run, frames={**run.frames, **frames}, info=info)


def test_figures_of_a_run_with_k_show_what_it_selected():
    run = of_k(figure_runs.selection(), 300)
    assert "37.5 % are selected" in data_selection.overlap(run).layout.meta["note"]
    lengths = data_selection.lengths(run)
    assert "37.5 % of the pool" in lengths.layout.meta["note"]
    spots = data_of(lengths)
    assert set(spots.filter(pl.col("trace") == "SAE features")["x"]) == {333.0}


def test_cards_carry_density_and_several_passages():
    run = figure_runs.selection()
    passages = run.table("passages")
    more = pl.concat(
        [passages, passages.with_columns(pl.lit(2, dtype=pl.Int64).alias("place"), (pl.col("peak") + 1).alias("peak"))]
    )
    words = data_selection.cards(dataclasses.replace(run, frames={**run.frames, "passages": more})).layout.meta
    assert words["columns"][:3] == ["feature", "weight", "fires on"] and words["words"][0][2] == "2.00%"
    assert words["words"][1][0] == "" and words["words"][1][3] != words["words"][0][3], (
        "the second passage of the same feature"
    )


def test_the_map_has_a_panel_per_target_in_one_scale():
    run = figure_runs.selection()
    fig = data_selection.embedding(run)
    maps = [t for t in fig.data if t.mode == "markers" and t.x is not None and len(t.x) == 800]
    assert len(maps) == 2 and {t.marker.coloraxis for t in maps} == {"coloraxis"}
    scores = run.table("scores").filter(target="gsm8k").sort("row")["score"].to_list()
    assert list(maps[0].marker.color) == pytest.approx(scores) and list(maps[1].marker.color) != pytest.approx(scores)


def test_the_map_says_the_text_of_a_point_and_draws_rows_without_a_score_in_grey():
    run = figure_runs.selection()
    said = run.table("map").with_columns(text=pl.format("words <b> of {}", "row"))
    scores = run.table("scores").filter(target="gsm8k").filter(pl.col("row") != 3)
    fig = data_selection.embedding(dataclasses.replace(run, frames={**run.frames, "map": said, "scores": scores}))
    grey, drawn = fig.data
    assert list(grey.customdata) == [3] and isinstance(grey.marker.color, str)
    assert grey.text[0] == "n/a · row 3<br>words &lt;b&gt; of 3"
    assert [text.rpartition("<br>")[2] for text in drawn.text] == [
        f"words &lt;b&gt; of {row}" for row in drawn.customdata
    ]


def test_overlap_over_the_ratio_is_of_the_main_method():
    run = figure_runs.selection()
    found = data_of(data_selection.overlap_by_ratio(run))
    wanted = run.table("overlap").filter(target="gsm8k", method_a="sae", method_b="hidden").sort("ratio")
    drawn = found.filter((pl.col("trace") == "hidden state") & (pl.col("panel") == "gsm8k")).sort("x")
    assert drawn["y"].to_list() == pytest.approx(wanted["overlap"].to_list())


def test_the_precision_figure_separates_better_worse_and_not_told_apart():
    run = figure_runs.selection()
    assert "the selection by" not in (data_selection.precision(run).layout.meta["note"] or "")
    found = {"method": "sae", "sae_minus_bm25": {"value": -0.2, "low": -0.3, "high": -0.1, "n": 9, "rows": 450}}
    found |= {"better_than": "random", "worse_than": "hidden, bm25", "not_better_than": "neurons"}
    note = data_selection.precision(dataclasses.replace(run, summary=found)).layout.meta["note"]
    assert (
        "the selection by SAE features is better than random; worse than hidden state, BM25; neither shown better nor"
        in note
    )
    assert "worse than raw neurons (95 % interval of the difference over 9 clusters)" in note


def test_a_narrow_card_still_shows_the_strongest_token_and_says_where_it_is_cut():
    from workbench.figures.figure_geometry import columns_of, wrap
    from workbench.figures.layout import dressed

    run = figure_runs.selection()
    tokens = [f" word{i}" for i in range(24)]
    passages = run.table("passages").with_columns(
        pl.Series("tokens", [tokens] * run.table("passages").height), peak=pl.lit(20, dtype=pl.Int64)
    )
    cards = data_selection.cards(dataclasses.replace(run, frames={**run.frames, "passages": passages}))
    narrow = dressed(cards, preset="single")
    written = [a.text for a in narrow.layout.annotations]
    assert sum("[word20]" in text for text in written) >= 5
    assert max(text.count("<br>") for text in written) <= 5
    lines = wrap("这是一个很长的句子没有空格的中文文本 and some words", 12)
    assert max(map(columns_of, lines)) <= 12 and "".join(lines).replace(" ", "").endswith("andsomewords")


def test_captions_count_clusters_with_the_rows_beside_them():
    run = figure_runs.selection()
    counted = {
        name: run.table(name).with_columns(n=pl.lit(7), rows=pl.lit(40)) for name in ("overlap", "lengths", "precision")
    }
    counted["precision"] = counted["precision"].drop("rows")
    told = dataclasses.replace(run, frames={**run.frames, **counted}, summary={"pool_clusters": 77, "pool": 800})
    for name in ("overlap", "overlap_by_ratio", "lengths"):
        meta = data_selection.FIGURES[name](told).layout.meta
        assert meta["n"] == "7 clusters of rows that say almost the same" and str(meta["rows"]) == "40", name
    for name in ("scores", "cards"):
        meta = data_selection.FIGURES[name](told).layout.meta
        assert meta["n"].startswith("77 clusters of pool rows") and meta["rows"] == 800, name
    meta = data_selection.precision(told).layout.meta
    assert meta["n"] == "7 to 7 clusters of rows that say almost the same" and meta["rows"] == "8 to 80"
    assert "grey" not in data_selection.feature_map(told).layout.meta["note"]


def test_points_of_too_few_clusters_have_no_bar_and_the_caption_says_so():
    run = figure_runs.selection()
    precision = run.table("precision").with_columns(
        pl.when(pl.col("ratio") > 0.01).then(pl.col(end)).alias(end) for end in ("ci_low", "ci_high")
    )
    fig = data_selection.precision(dataclasses.replace(run, frames={**run.frames, "precision": precision}))
    assert "10 points of fewer than five clusters have no interval" in fig.layout.meta["note"]
