"""The figures of every probe show the numbers of its tables, and say in a sentence when there is nothing to show."""

import json
from functools import cache
from importlib import import_module

import numpy as np
import polars as pl
import pytest

from probes.branching_factor import figures as branching_factor
from probes.concept_depth import figures as concept_depth
from probes.data_selection import figures as data_selection
from probes.knowledge_conflict import figures as knowledge_conflict
from probes.representation_geometry import figures as representation_geometry
from probes.retrieval_heads import figures as retrieval_heads
from tests.support import figure_runs
from tests.support.figure_runs import FakeRun
from workbench.core.errors import InputError
from workbench.figures import heads
from workbench.figures import style as theme
from workbench.figures.export import caption, data_of
from workbench.figures.run_tables import collect
from workbench.figures.tree import tree_figure, words_tree
from workbench.stats import intervals as statistics

NAMES = list(figure_runs.RUNS)


def module(run):
    return import_module(f"probes.{run.probe.replace('-', '_')}.figures")


@cache
def drawn(name):
    """(run, figures, reasons) of the synthetic run of that name."""
    run = figure_runs.RUNS[name]()
    return run, *collect(run, module(run).FIGURES)


def without(run, *tables, **replaced):
    """The run with tables removed or replaced."""
    frames = {k: v for k, v in run.frames.items() if k not in tables} | replaced
    return FakeRun(run.probe, frames, run.info, run.summary)


def curve(fig, name, panel=0):
    suffix = "" if panel == 0 else str(panel + 1)
    found = [t for t in fig.data if t.name == name and t.fill is None and (t.xaxis or "x") == f"x{suffix}"]
    assert len(found) == 1, [t.name for t in fig.data]
    return np.asarray(found[0].x, float), np.asarray(found[0].y, float)


def texts(fig):
    found = [a.text for a in fig.layout.annotations]
    for t in fig.data:
        found += [t.name or "", *(t.text if isinstance(t.text, (list, tuple, np.ndarray)) else [t.text or ""])]
    for axis in [*fig.select_xaxes(), *fig.select_yaxes()]:
        found += [axis.title.text or "", *(axis.ticktext if axis.ticktext is not None else [])]
    return [str(t) for t in found] + [str(fig.layout.title.text)]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_a_full_run_is_drawn_with_something_in_every_panel(name):
    run, figures, reasons = drawn(name)
    assert reasons == {}
    for key, fig in figures.items():
        json.loads(fig.to_json())
        meta = fig.layout.meta
        assert meta["title"], key
        if "words" in meta:
            assert len(fig.layout.annotations) >= 2 * len(meta["columns"]), key
            continue
        filled = set()
        for trace in fig.data:
            y = np.array([v for v in (trace.y if trace.y is not None else []) if v is not None], float)
            if len(y) and np.isfinite(y).any():
                filled.add(trace.xaxis or "x")
        assert filled == {"x" if i == 0 else f"x{i + 1}" for i in range(len(meta["panels"]))}, key


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_tables_gives_one_sentence_and_a_run_with_empty_tables_another(name):
    run, figures, _ = drawn(name)
    with pytest.raises(InputError, match=f"The run {run.id} has no table"):
        module(run).figures(FakeRun(run.probe, {}, run.info))
    emptied = FakeRun(run.probe, {k: f.clear() for k, f in run.frames.items()}, run.info)
    with pytest.raises(InputError, match="empty table"):
        module(run).figures(emptied)
    assert set(collect(emptied, module(run).FIGURES)[1]) == set(figures)  # no figure of nothing


@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_is_missing_everywhere_is_not_drawn_as_zero(name):
    run, _, _ = drawn(name)
    nan = float("nan")
    blank = {k: f.with_columns(pl.selectors.float() * nan) for k, f in run.frames.items()}
    for name_, frame in blank.items():
        lists = [c for c in frame.columns if c == "step_entropy"]
        blank[name_] = frame.with_columns(pl.col(c).list.eval(pl.element() * nan) for c in lists)
    figures, reasons = collect(FakeRun(run.probe, blank, run.info), module(run).FIGURES)
    needs_no_numbers = {"answers", "openings", "cards", "quality", "tree"}
    for key, fig in figures.items():
        assert key in needs_no_numbers or not any(
            trace.y is not None and len(trace.y) and np.isfinite(np.asarray(trace.y, float)).any()
            for trace in fig.data
            if trace.type == "scatter" and trace.mode and "lines" in trace.mode
        ), key
    assert all(reason.endswith(".") for reason in reasons.values())


def test_names_from_data_never_become_markup():
    nasty = "<b>x</b><a href='javascript:1'>"
    run = figure_runs.depth(concepts=(nasty, "b"), layers=4)
    run.info["model"]["name"] = nasty.replace("/", "")
    for fig in concept_depth.figures(run).values():
        assert not [t for t in texts(fig) if "<a" in t or "<b>x" in t]
    run = figure_runs.branching(conditions=(nasty, "b"), prompts=2, samples=4, length=8, name="<i>m")
    for fig in branching_factor.figures(run).values():
        assert not [t for t in texts(fig) if "<a" in t or "<b>x" in t or "<i>m" in t]


# retrieval heads


def test_the_head_map_has_one_cell_per_head_in_place_and_reports_it_when_clicked():
    run, figures, _ = drawn("retrieval")
    frame = run.table("heads")
    (trace,) = figures["head_map"].data
    assert len(trace.x) == frame.height == 64
    score = {(r["layer"], r["head"]): r["score"] for r in frame.iter_rows(named=True)}
    for x, base, colour, custom in zip(trace.x, trace.base, trace.marker.color, trace.customdata):
        layer, head, group = custom[:3]
        assert (x, base) == (head, layer - 0.465)
        assert colour == score[layer, head] and group == head // 2
    lines = figures["head_map"].layout.shapes
    assert [s.x0 for s in lines] == [1.5, 3.5, 5.5]  # 8 query heads, 4 key/value heads
    outlined = {tuple(c[:2]) for c, w in zip(trace.customdata, trace.marker.line.width) if w > 0}
    assert outlined == set(frame.filter("is_retrieval").select("layer", "head").iter_rows())


def test_a_head_that_was_not_measured_is_grey_and_not_zero():
    run = figure_runs.retrieval(layers=2, heads=4, kv_heads=4)
    frame = (
        run.table("heads")
        .with_columns(score=pl.when(pl.col("head") == 1).then(None).otherwise("score"))
        .filter(pl.col("head") != 3)
    )
    made = retrieval_heads.head_map(without(run, heads=frame))
    known, missing = made.data
    assert {tuple(c[:2]) for c in missing.customdata} == {(0, 1), (0, 3), (1, 1), (1, 3)}
    assert missing.marker.color == theme.MISSING and len(known.x) == 4


@pytest.mark.parametrize("layers,count,kv", [(1, 1, 1), (1, 4, 4), (64, 64, 8), (3, 71, 1), (80, 2, 2)])
def test_head_maps_of_any_shape_have_cells_that_can_be_seen_at_every_size(layers, count, kv):
    from workbench.figures.layout import dressed

    frame = pl.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), count),
            "head": np.tile(np.arange(count), layers),
            "score": np.linspace(0, 1, layers * count),
        }
    )
    made = heads.head_map(frame, n_kv_heads=kv)
    for preset in ("single", "double", "slide"):
        small = dressed(made, preset=preset)
        margin = small.layout.margin
        width = (small.layout.width - margin.l - margin.r) * np.ptp(small.layout.xaxis.domain) / count
        height = (small.layout.height - margin.t - margin.b) * np.ptp(small.layout.yaxis.domain) / layers
        assert min(width, height) > 2, preset
        assert len(small.layout.xaxis.ticktext) >= 1 and len(small.layout.xaxis.ticktext) * 8 < small.layout.width


def test_two_maps_can_share_one_scale_and_a_diverging_scale_is_centred_at_zero():
    frame = pl.DataFrame({"layer": [0, 0], "head": [0, 1], "score": [-0.2, 0.7]})
    axis = heads.head_map(frame, diverging=True).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-0.7, 0.7)
    axis = heads.head_map(frame, low=-1, high=1).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-1, 1)
    flat = heads.head_map(frame.with_columns(score=pl.lit(0.0))).layout.coloraxis
    assert flat.cmin < flat.cmax


def test_the_score_curve_counts_the_heads_above_the_threshold():
    run, figures, _ = drawn("retrieval")
    score = run.table("heads")["score"].to_numpy()
    x, y = curve(figures["score_curve"], "retrieval score")
    np.testing.assert_array_equal(y, np.sort(score)[::-1])
    above = int((score > 0.1).sum())
    assert any(f"{above} of 64 heads above ({above / 64:.1%})" in t for t in texts(figures["score_curve"]))


def test_the_needle_map_is_the_mean_recall_of_each_cell_with_and_without_masking():
    run, figures, _ = drawn("retrieval")
    fig = figures["needle_map"]
    assert [p["title"] for p in fig.layout.meta["panels"]] == [
        "no head masked",
        "top 10 heads masked",
        "10 random heads masked",
    ]
    cells = [t for t in fig.data if t.type == "bar"]
    trials = run.table("trials")
    wanted = {(r[0], r[1]): r[2] for r in trials.group_by("length", "depth").agg(pl.col("recall").mean()).iter_rows()}
    assert len(cells[0].customdata) == len(wanted) == 60
    for length, depth, recall, n in cells[0].customdata:
        assert recall == pytest.approx(wanted[length, depth]) and n == 4
    top = run.table("masked_trials").filter(pl.col("heads") == "top")["recall"].mean()
    assert np.mean(cells[1].marker.color) == pytest.approx(top)
    assert list(fig.layout.yaxis.range) == [9.5, -0.5]  # the beginning of the context is at the top


def test_the_masking_curves_start_unmasked_and_both_bands_are_intervals_of_the_table():
    run, figures, _ = drawn("retrieval")
    frame, fig = run.table("masked_recall"), figures["masking"]
    none = frame.filter(heads="none")
    for name, kind in (("retrieval heads", "top"), ("random heads", "random")):
        own = pl.concat([none, frame.filter(heads=kind)]).sort("k")
        x, y = curve(fig, name)
        np.testing.assert_allclose((x, y), (own["k"], own["recall"]))
        band = next(t for t in fig.data if t.name == name and t.fill == "toself")
        at_five = own.filter(k=5).select("ci_low", "ci_high").row(0)
        assert sorted(v for k, v in zip(band.x, band.y) if k == 5) == pytest.approx(at_five)
    assert fig.layout.meta["n"] == "4 needles (60 trials)"
    assert "both bands are 95 % intervals over needles" in fig.layout.meta["interval"]


@pytest.mark.parametrize("ends", ["older run", "four needles"])
def test_masking_without_intervals_of_both_kinds_has_no_band(ends):
    run = figure_runs.retrieval()
    if ends == "older run":
        run.frames.pop("masked_recall")
    else:
        nothing = [pl.lit(float("nan")).alias(name) for name in ("ci_low", "ci_high")]
        run.frames["masked_recall"] = run.table("masked_recall").with_columns(nothing)
    made = retrieval_heads.masking(run)
    bars = [t.error_y.array for t in made.data if t.error_y.array is not None]
    assert not [t for t in made.data if t.fill == "toself"] and not np.isfinite(bars).any()
    assert "No intervals" in made.layout.meta["note"] and not made.layout.meta["interval"]
    frame = run.table("masking").filter(pl.col("ablation") == "uniform")
    x, y = curve(made, "random heads")
    assert x[0] == 0 and y[0] == pytest.approx(0.95)
    if ends == "older run":
        mean = frame.filter(k=5, heads="random")["recall"].mean()
        assert dict(zip(x, y))[5] == pytest.approx(mean)


def test_comparing_two_runs_gives_their_correlation():
    a, b = figure_runs.retrieval(seed=0), figure_runs.retrieval(seed=1, name="other")
    made = retrieval_heads.compare(a, b)
    r = statistics.pearson(a.table("heads")["score"], b.table("heads")["score"], rng=np.random.default_rng(0))
    assert any(f"r = {r.value:.3g}".replace("-", "−") in t for t in texts(made))
    with pytest.raises(InputError, match="in common"):
        retrieval_heads.compare(a, without(b, heads=b.table("heads").head(1)))


# knowledge conflict


def test_pruning_curves_are_the_rates_of_the_table():
    run, figures, _ = drawn("conflict")
    fig = figures["pruning"]
    assert [p["title"] for p in fig.layout.meta["panels"]] == ["context heads pruned", "memory heads pruned"]
    frame = (
        run.table("pruning")
        .filter((pl.col("role") == "memory") & (pl.col("heads") == "top") & (pl.col("k") > 0))
        .sort("k")
    )
    x, y = curve(fig, "context answers", panel=1)
    np.testing.assert_allclose(y[1:], frame["context_rate"])
    assert list(x) == [0, 1, 3, 5, 7, 9, 15]
    draws = run.table("pruning").filter(
        (pl.col("role") == "memory") & (pl.col("heads") == "random") & (pl.col("k") == 9)
    )
    x, y = curve(fig, "memory answers, random heads", panel=1)
    assert y[list(x).index(9)] == pytest.approx(draws["memory_rate"].mean())


def test_the_gradient_figure_reports_spearman_of_the_two_columns():
    run, figures, _ = drawn("conflict")
    frame = run.table("heads")
    rho = statistics.spearman(frame["memory_importance"], frame["gradient_memory"], rng=np.random.default_rng(0))
    assert any(f"ρ = {rho.value:.3g}" in t for t in texts(figures["gradient"]))


def test_the_answers_that_change_come_first():
    run, figures, _ = drawn("conflict")
    words = figures["answers"].layout.meta["words"]
    assert words[0][-2:] == ["cobalt. The", "amber and then"] and words[-1][-1] == "cobalt. The"
    assert figures["answers"].layout.meta["columns"] == [
        "subject",
        "memory",
        "context",
        "answer before",
        "answer after",
    ]


# concept depth


def test_depth_curves_carry_their_points_at_the_right_layer():
    run, figures, _ = drawn("depth")
    points = run.table("depth").filter(pl.col("condition") == "clean")
    marks = [t for t in figures["curves"].data if t.marker.symbol == "triangle-up"]
    assert {t.name: t.x[0] for t in marks} == {
        r["dataset"]: round(r["jump"] * 12) for r in points.iter_rows(named=True) if r["jump"]
    }
    assert len(marks) >= 2


@pytest.mark.parametrize("sets", [1, 3, 10, 20, 40])
def test_curves_of_any_number_of_concepts_fit_a_page(sets):
    """One small panel a concept; what has none is named in the caption."""
    run = figure_runs.depth(concepts=tuple(f"concept {i}" for i in range(sets)), layers=6)
    for name in ("curves", "conditions", "points", "causal"):
        fig = concept_depth.FIGURES[name](run)
        assert fig.layout.height <= 920, (name, fig.layout.height)
        if name != "points":
            drawn = len(fig.layout.meta["panels"])
            assert drawn == min(sets, 15 if name == "causal" else 21)
            assert (f"{sets - drawn} further concepts" in fig.layout.meta["note"]) == (sets > drawn)


def test_words_stand_where_there_is_no_jump():
    run = figure_runs.depth(layers=6)
    depth = run.table("depth").with_columns(jump=pl.lit(None, pl.Float64), jump_says=pl.lit("—, never above chance"))
    fig = concept_depth.curves(
        figure_runs.FakeRun(run.probe, {"layers": run.table("layers"), "depth": depth}, run.info)
    )
    words = [a.text for a in fig.layout.annotations if a.text == "never above chance"]
    assert len(words) == depth["dataset"].n_unique()
    assert not [t for t in fig.data if t.marker.symbol == "triangle-up"]


def test_the_concept_map_orders_concepts_by_the_layer_at_which_they_become_readable():
    run, figures, _ = drawn("depth")
    assert figures["concept_map"].layout.meta["panels"][0]["y_ticks"]["text"] == [
        "colour of things",
        "kind of animal",
        "odd one out",
    ]


def test_concepts_that_no_layer_tells_from_shuffled_labels_stand_last_in_the_map():
    run = figure_runs.depth(layers=6)
    layers = run.table("layers").with_columns(p=pl.lit(0.01), above_chance=pl.col("dataset") != "colour of things")
    fig = concept_depth.FIGURES["concept_map"](figure_runs.FakeRun(run.probe, {"layers": layers}, run.info))
    names = fig.layout.meta["panels"][0]["y_ticks"]["text"]
    assert names == ["kind of animal", "odd one out", "colour of things"]


def test_models_are_compared_over_relative_depth():
    a, b = figure_runs.depth(layers=12), figure_runs.depth(layers=24)
    b.info["model"]["name"] = "larger"
    made = concept_depth.compare([a, b])
    x, _ = curve(made, "larger")
    assert len(x) == 24 and x.max() == 23 / 24
    assert curve(made, "organism")[0].max() == 11 / 12


# representation geometry


def test_the_fitted_line_of_a_spectrum_has_the_slope_of_alpha():
    run, figures, _ = drawn("geometry")
    fits = [t for t in figures["spectrum"].data if (t.name or "").endswith("fit")]
    layers = run.table("layers")
    assert len(fits) == 6
    for fit in fits:
        slope = np.diff(np.log(fit.y))[0] / np.diff(np.log(fit.x))[0]
        name = fit.name.removesuffix(": fit")
        alpha = layers.filter((pl.col("checkpoint") == name) & (pl.col("layer") == 7))["alpha"][0]
        assert -slope == pytest.approx(alpha)
        # at the height of the stored intercept, in shares of the total: the fit's own weights, not the figure's
        total = (
            run.table("spectrum").filter((pl.col("checkpoint") == name) & (pl.col("layer") == 7))["eigenvalue"].sum()
        )
        assert np.log(fit.y[0]) == pytest.approx(0.1 - alpha * np.log(3) - np.log(total))
        assert (fit.x[0], fit.x[-1]) == (3, 40)


def test_the_trajectory_shades_the_phases_and_a_single_model_has_none():
    run, figures, _ = drawn("geometry")
    areas = [s for s in figures["trajectory"].layout.shapes if s.type == "rect"]
    assert len(areas) == 3 * 3  # phases times panels
    assert (areas[1].x0, areas[1].x1) == (64, 3000)
    single = figure_runs.geometry(steps=())
    made, reasons = collect(single, representation_geometry.FIGURES)
    assert "trajectory" in reasons and "two checkpoints" in reasons["trajectory"] and "layers" in made


def test_random_directions_are_drawn_as_the_mean_over_their_draws_with_its_interval():
    _, figures, _ = drawn("geometry")
    x, y = curve(figures["eigen_ablation"], "random k removed")
    assert x.tolist() == [1, 5, 10, 20, 50] and y == pytest.approx([3.2 + 0.005 * k for k in x])
    table = data_of(figures["eigen_ablation"]).filter(trace="random k removed", x=10)
    assert (table["low"][0], table["high"][0]) == pytest.approx((3.1, 3.4))


def test_intrinsic_dimension_is_drawn_beside_gaussian_states_and_over_training_where_there_is_one_layer():
    run, figures, _ = drawn("geometry")
    last = run.table("dimension").filter(checkpoint="step8000").sort("layer")
    for panel, column in enumerate(("two_nn", "mle")):
        x, y = curve(figures["dimension"], "all texts", panel=panel)
        assert x.tolist() == list(range(8)) and y == pytest.approx(last[column].to_numpy())
        beside = curve(figures["dimension"], "Gaussian, same covariance", panel=panel)[1]
        assert beside == pytest.approx(last[f"{column}_null"].to_numpy())
    said = caption(run, figures["dimension"])
    assert "after the final norm" in said and "n = 1000 texts" in said and "depend on the number of texts" in said
    made, _ = collect(figure_runs.geometry(layers=1), representation_geometry.FIGURES)
    assert len(curve(made["dimension"], "all texts")[0]) == 12
    _, reasons = collect(figure_runs.geometry(layers=1, steps=()), representation_geometry.FIGURES)
    assert "One layer of one checkpoint" in reasons["dimension"]


def test_cosines_and_curvature_are_drawn_beside_their_controls():
    run, figures, _ = drawn("geometry")
    for name, panels in (
        ("cosine", [("cosine", "measured"), ("centred", "measured")]),
        ("cosine", [("cosine_null", "random signs"), ("centred_null", "random signs")]),
        ("curvature", [("curvature", "text"), ("from_first", "text")]),
        ("curvature", [("shuffled_tokens", "tokens shuffled"), ("from_first_shuffled", "tokens shuffled")]),
        ("curvature", [("shuffled_states", "states shuffled")]),
    ):
        last = run.table(name).filter(checkpoint="step8000").sort("layer")
        for panel, (column, trace) in enumerate(panels):
            assert curve(figures[name], trace, panel=panel)[1] == pytest.approx(last[column].to_numpy()), column
    assert "tokens in another order through the model" in caption(run, figures["curvature"])
    assert "turned round or not by a coin" in caption(run, figures["cosine"])


def test_similarities_are_drawn_on_both_sides_and_those_of_texts_in_another_order_are_outlined():
    run, figures, _ = drawn("geometry")
    table = run.table("similarity")
    for name, of, rows in (
        ("similarity", "layer", table.filter(checkpoint_a="step8000", checkpoint_b="step8000")),
        ("similarity_over_training", "checkpoint", table.filter(pl.col("checkpoint_a") != pl.col("checkpoint_b"))),
    ):
        cells = next(t for t in figures[name].data if t.type == "bar")
        places = list(dict.fromkeys([*rows[f"{of}_a"], *rows[f"{of}_b"]]))
        value = {(int(x), round(base + 0.465)): v for x, base, v in zip(cells.x, cells.base, cells.marker.color)}
        for row in rows.iter_rows(named=True):
            a, b = places.index(row[f"{of}_a"]), places.index(row[f"{of}_b"])
            assert value[a, b] == value[b, a] == row["value"]
        outlined = int((np.array(cells.marker.line.width) > 0).sum())
        assert outlined == 2 * rows.filter(pl.col("value") <= pl.col("null_high")).height > 0
        assert f"({outlined // 2} of {rows.height} pairs)" in caption(run, figures[name])
    _, reasons = collect(figure_runs.geometry(layers=1, steps=()), representation_geometry.FIGURES)
    assert {"similarity", "similarity_over_training"} <= set(reasons)


def test_the_figures_of_geometry_say_what_they_are_held_against_and_where_the_last_layer_is_read():
    run, figures, _ = drawn("geometry")
    layers, said = run.table("layers"), {name: caption(run, fig) for name, fig in figures.items()}
    for name in ("layers", "trajectory"):
        assert "White Gaussian features of the same number and width: RankMe 62.1, α 0.21" in said[name]
    assert all("read after the final norm" in said[name] for name in ("layers", "trajectory", "spectrum", "samples"))
    words = " ".join(a.text for a in figures["spectrum"].layout.annotations)
    alpha = layers.filter(checkpoint="step8000", layer=7)["alpha"][0]
    assert f"step8000: α = {alpha:.2f}, R² = 0.980" in words
    beside = curve(figures["memorisation"], "token frequency")[1]
    assert beside == pytest.approx(run.table("checkpoints")["memorisation_of_frequency"].to_numpy())
    assert curve(figures["eigen_ablation"], "unedited")[1] == pytest.approx([2.8, 2.8])
    assert "n = 2000 texts" in said["samples"] and "n = 64 texts" in said["memorisation"]
    drawn_points = data_of(figures["samples"])
    row = layers.filter(checkpoint="step8000", layer=7)
    for x, name, ends in ((2000, "layer 7", "ci"), (2100, "layer 7, infinitely many texts", "rankme_inf")):
        own = drawn_points.filter((pl.col("trace") == name) & (pl.col("x") == x) & pl.col("low").is_not_null())
        assert (own["low"][0], own["high"][0]) == pytest.approx((row[f"{ends}_low"][0], row[f"{ends}_high"][0]))


def test_one_layer_has_no_course_over_layers():
    made, reasons = collect(figure_runs.geometry(layers=1), representation_geometry.FIGURES)
    assert "one layer only" in reasons["layers"] and "trajectory" in made


# branching factor


def test_position_curves_are_those_of_the_table_for_every_condition():
    run, figures, _ = drawn("branching")
    for condition in ("organism", "organism-chat"):
        frame = run.table("positions").filter(pl.col("condition") == condition)
        np.testing.assert_allclose(curve(figures["positions"], condition)[1], frame["bf_prefix"])
        np.testing.assert_allclose(curve(figures["positions"], condition, panel=1)[1], frame["bf_window"])
    lines = {t.name: t.line.color for t in figures["positions"].data if t.name in ("organism", "organism-chat")}
    assert lines == {n: theme.colour(n) for n in lines} and len(set(lines.values())) == 2


def test_runs_are_laid_over_each_other():
    a, b = (
        figure_runs.branching(conditions=("organism",)),
        figure_runs.branching(conditions=("chat",), name="organism-chat"),
    )
    made = branching_factor.compare([a, b])
    assert {"organism", "organism-chat"} <= {t.name for t in made.data}


def test_the_entropy_histogram_counts_every_step_once():
    run, figures, _ = drawn("branching")
    steps = run.table("samples").filter(pl.col("condition") == "organism")["step_entropy"].explode().to_numpy()
    trace = next(t for t in figures["entropy"].data if t.name == "organism")
    heights = np.asarray(trace.y)[1:-1:2]
    edges = np.asarray(trace.x)[::2]
    np.testing.assert_allclose(heights, np.histogram(steps, edges)[0] / len(steps))


def test_the_words_tree_conserves_probability():
    texts_ = ["a b c", "a b d", "a e", "f"]
    nodes = words_tree(texts_)
    rows = {r["text"].strip(): r for r in nodes.iter_rows(named=True)}
    assert rows["a"]["probability"] == 0.75 and rows["f"]["probability"] == 0.25
    assert rows["b"]["count"] == 2 and rows["c"]["parent"] == rows["b"]["node"]
    assert rows[""]["bf"] == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert rows["b"]["bf"] == pytest.approx(2.0)


def test_the_tree_keeps_the_likeliest_ends_says_what_is_pruned_and_is_as_wide_as_it_is_likely():
    nodes = pl.DataFrame(
        {
            "node": range(8),
            "parent": [-1, 0, 0, 0, 1, 1, 2, 3],
            "text": ["", " the", " a", "<s>", " cat", " dog", " sea", " x"],
            "count": [100, 60, 30, 10, 40, 20, 30, 10],
            "probability": [1.0, 0.6, 0.3, 0.1, 0.4, 0.2, 0.3, 0.1],
            "bf": [2.5, 1.9, 1.0, 1.0, None, None, None, None],
        }
    )
    fig = tree_figure(nodes, leaves=3, title="t")
    labels = next(t for t in fig.data if t.meta == "tree-text")
    assert {c[0] for c in labels.customdata} == {"the", "a", "cat", "dog", "sea"}
    wide = {t.meta["tree-branch"]: t.line.width for t in fig.data if isinstance(t.meta, dict)}
    assert wide[0.6] == pytest.approx(2 * wide[0.3])
    everything = tree_figure(nodes, leaves=10)
    assert not [t for t in next(t for t in everything.data if t.meta == "tree-text").text if "<s>" in t]
    with pytest.raises(InputError, match="no tree"):
        tree_figure(nodes.head(1))


# data selection


def test_the_cut_is_the_lowest_selected_score():
    run, figures, _ = drawn("selection")
    frame = run.table("scores").filter(pl.col("target") == "gsm8k")
    cut = frame.filter("selected")["score"].min()
    rules = [s for s in figures["scores"].layout.shapes if s.type == "line"]
    assert rules[0].x0 == pytest.approx(cut) and frame.filter(pl.col("score") >= cut).height == 40
    total = [t for t in figures["scores"].data if t.name == "pool"][0]
    assert np.sum(np.asarray(total.y)[1:-1:2]) == pytest.approx(1.0)


def test_precision_at_one_ratio_is_drawn_as_points_with_intervals():
    run, _, _ = drawn("selection")
    one = without(run, precision=run.table("precision").filter(pl.col("ratio") == 0.05))
    made = data_selection.precision(one)
    frame = one.table("precision").filter((pl.col("target") == "gsm8k") & (pl.col("method") == "sae"))
    spot = next(t for t in made.data if t.name == "SAE features")
    said = data_of(made).filter(pl.col("trace") == "SAE features")
    assert (said["low"][0], said["high"][0]) == pytest.approx((frame["ci_low"][0], frame["ci_high"][0]))
    assert spot.x[0] == frame["precision"][0]
    assert spot.error_x.array[0] == pytest.approx(frame["ci_high"][0] - frame["precision"][0])


def test_one_target_has_no_feature_map_and_random_is_grey():
    run = figure_runs.selection(targets=("gsm8k",))
    made, reasons = collect(run, data_selection.FIGURES)
    assert list(reasons) == ["feature_map"] and "one target" in reasons["feature_map"]
    assert {t.line.color for t in made["precision"].data if t.name == "random" and t.fill is None} == {theme.NEUTRAL}


def test_conflict_figures_need_importances():
    run, _, _ = drawn("conflict")
    with pytest.raises(InputError, match="lacks the column 'context_importance'"):
        knowledge_conflict.head_map(without(run, heads=run.table("heads").drop("context_importance")))
