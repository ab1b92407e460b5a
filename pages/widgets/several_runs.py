"""More than two runs of a probe: what differs, curves in one figure, ranks, the same figure of each."""

from __future__ import annotations

import polars as pl
import streamlit as st

from pages.widgets import layer_card, run_view, styling
from workbench import figures
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.wording import cut
from workbench.explorer import head_sets, layer_curves, several_runs_drawn
from workbench.figures.several_runs import figure_of_several
from workbench.runs import compare, compare_several
from workbench.runs.folder import Run

CURVES, RANKS, MULTIPLES = "Curves", "Ranks", "Small multiples"
BESIDE = 3  # small multiples side by side
MOST_HEADS = 200  # rows of the table of ranks


def show(runs: list[Run]) -> None:
    """The whole view. InputError for what cannot be held against each other at all."""
    compare_several.check_several(runs)
    names = names_of(runs)
    settings(runs)
    view = st.segmented_control(
        "View of several",
        [CURVES, RANKS, MULTIPLES],
        default=CURVES if has_curves(runs[0]) else RANKS,
        key="several",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        help="All runs in one figure; how alike they rank heads, layers or rows; the same figure of each run.",
    )
    {CURVES: curves, RANKS: ranks, MULTIPLES: multiples}[view](runs, names)


def has_curves(run: Run) -> bool:
    """Whether there may be something for the view of curves."""
    probe = head_sets.probe_of(run)
    return bool(layer_curves.tables_with_curves(run)) or (probe is not None and probe.figures_of_several is not None)


def names_of(runs: list[Run]) -> dict[str, str]:
    """By id: the model, and the end of the id where several are of one model."""
    models = [styling.short(styling.model_of(run), 20) for run in runs]
    return {
        run.id: model if models.count(model) == 1 else f"{model} ({run.id[-6:]})" for run, model in zip(runs, models)
    }


def settings(runs: list[Run]) -> None:
    """What the runs were asked that differs, a row for each run."""
    apart = compare.settings_apart([run.info for run in runs])
    if not apart:
        st.caption("All runs were asked for the same.")
    rows = [(str(i + 1), run, *(cut(values[i], 60) for values in apart.values())) for i, run in enumerate(runs)]
    st.html(styling.table(rows, [("", "text"), ("run", "run"), *((name, "text") for name in apart)]))


def curves(runs: list[Run], names: dict[str, str]) -> None:
    """The courses over the layers, or the probe's own figure of several runs."""
    found = [curve for run in runs for curve in layer_card.curves_of(run)]
    columns = list(dict.fromkeys(curve.column for curve in found))
    if columns:
        column = st.selectbox(
            "Column", columns, key="several column", bind="query-params", help="What is drawn over the layers."
        )
        silent = [names[run.id] for run in runs if not any(c.run is run and c.column == column for c in found)]
        if silent:
            st.caption(styling.md(f"No curve of {column}: {', '.join(silent)}."))
        chart(several_runs_drawn.overlaid_curves(found, names, column=column), key="several curves")
    try:
        fig = figure_of_several(runs)
    except WorkbenchError as error:
        if not columns:
            st.info(styling.md(error))
        return
    chart(fig, key="several in one")


def ranks(runs: list[Run], names: dict[str, str]) -> None:
    """The rank correlation of every pair, and the ranks of heads."""
    tables = {name: compare_several.measured(runs, name) for name in compare_several.shared_tables(runs)}
    of_heads = [name for name in head_sets.scored_tables(runs[0]) if tables.get(name)]
    usable = [*of_heads, *(name for name, columns in tables.items() if columns and name not in of_heads)]
    if not usable:
        st.info("The runs have no table of numbers in common.")
        return
    a, b = st.columns(2)
    table = a.selectbox(
        "Table", usable, key="several table", bind="query-params", help="A table that all of the runs have."
    )
    column = b.selectbox(
        "Score", tables[table], key=f"several score {table}", help="The column by which its rows are ranked."
    )
    agreement = compare_several.rank_agreement(runs, table, column)
    chart(
        several_runs_drawn.agreement_figure(agreement, list(names.values()), label=f"{table}, {column}"),
        key="several ranks",
    )
    for reason in agreement.not_compared:
        st.caption(styling.md(f"Not compared: {reason}"))
    if table in of_heads:
        try:
            found = compare_several.head_ranks(runs, table, column)
        except InputError as error:
            st.caption(styling.md(f"No ranks of heads: {error}."))
            return
        heads = found.select(
            pl.format("{}.{}", "layer", "head").alias("head"),
            pl.col("mean_rank").alias("mean rank"),
            *(pl.col(run.id).alias(f"{i + 1}  {names[run.id]}") for i, run in enumerate(runs)),
        )
        st.html(styling.heading("heads by their mean rank, 1 the highest"))
        styling.scroll_table(heads.head(MOST_HEADS), most=360, key="several heads")


def multiples(runs: list[Run], names: dict[str, str]) -> None:
    """The same figure of each run."""
    drawn = {run.id: run_view.figures_of(run) for run in runs}
    shared = [name for name in next(iter(drawn.values()))[0] if sum(name in made for made, _ in drawn.values()) > 1]
    if not shared:
        reasons = dict.fromkeys(reason for _, why in drawn.values() for reason in list(why.values())[:1])
        st.info(styling.md(" ".join(["No two of the runs have a figure in common.", *reasons])))
        return
    name = st.pills(
        "Figure",
        shared,
        default=shared[0],
        key="several figure",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        format_func=lambda n: styling.named(n.replace("_", " ")),
        help="A figure that at least two of the runs have.",
    )
    name = name if name in shared else shared[0]
    st.caption("Each figure has scales of its own.")
    places = [place for _ in range(0, len(runs), BESIDE) for place in st.columns(BESIDE)]
    for i, (place, run) in enumerate(zip(places, runs)):
        made, reasons = drawn[run.id]
        with place:
            st.html(f"<b>{i + 1}</b> {styling.esc(names[run.id])}")
            if name not in made:
                st.info(styling.md(reasons.get(name, f"This run has no figure '{name}'.")))
                continue
            chart(made[name], key=f"several {i}", width=430)


def chart(fig, *, key: str, **how) -> None:
    plain = run_view.untitled(fig)
    made = figures.dressed(plain, mode=styling.mode(), **how) if how else run_view.on_screen(plain)
    run_view.chart(made, key=f"figure {key}")
