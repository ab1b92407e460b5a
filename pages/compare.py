"""Runs of one probe side by side: what was asked differently, heads on one scale, the difference, every table; of more
than two, curves, ranks and the same figure of each."""

from __future__ import annotations

from collections import Counter

import polars as pl
import streamlit as st

from pages.widgets import cached, navigation, run_view, several_runs, styling, url_state
from workbench import figures
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.wording import cut, number, quantity
from workbench.explorer import head_sets
from workbench.figures import heads as head_figures
from workbench.figures.several_runs import figure_of_several
from workbench.runs import compare, execution
from workbench.runs.folder import Run


def label(run: Run) -> str:
    """What tells runs apart comes first: a narrow screen cuts the end."""
    mark = run.id.rpartition("-")[2][:6]
    return f"{styling.short(styling.model_of(run), 20)} {mark} · {styling.when(run)} · {run.probe}"


def comparable() -> dict[str, Run]:
    """Runs with tables that say which model they are of, by id; those of a probe that has several of them first."""
    found = [
        run
        for run in cached.run_list()
        if run.tables and isinstance(run.info.get("config"), dict) and ("seed" in run.info or run.info.get("imported"))
    ]
    found = [run for run in found if {"name", "fingerprint", "dtype"} <= set(head_sets.model_info(run))]
    times = Counter(run.probe for run in found)
    return {run.folder.name: run for run in sorted(found, key=lambda run: times[run.probe] < 2)}


def pick(title: str, key: str, ids: list[str], found: dict[str, Run], *, help: str) -> str:
    """A run by its id, which is also what the URL holds."""
    wanted = url_state.get("compare", key)
    if wanted and wanted not in found:
        execution.run_by_id(wanted)  # says what is wrong with an id from the URL
    index = ids.index(wanted) if wanted in ids else 0
    chosen = st.selectbox(
        title, ids, index=index, key=f"{key} of {len(ids)} at {index}", format_func=lambda i: label(found[i]), help=help
    )
    if chosen != ids[index]:
        url_state.put("compare", key, chosen)
        st.rerun()
    return chosen


def main() -> None:
    cached.look_again()
    st.title("Compare")
    found = comparable()
    styling.left_out(cached.unreadable())
    if len(found) < 2:
        st.info(
            "Two finished runs of the same probe are needed: on two models, two seeds or two settings. Start "
            "them on the probe's screen."
        )
        return
    ids = list(found)
    if named := several_ids(found):
        several(named, found)
        return
    a, b = st.columns(2)
    with a:
        one = pick("First run", "a", ids, found, help="Differences are second minus first.")
    others = [i for i in ids if i != one and found[i].probe == found[one].probe]
    if not others:
        st.info(styling.md(f"There is no other run of {found[one].probe} to compare this one with."))
        return
    with b:
        two = pick("Second run", "b", others, found, help="A run of the same probe.")
    first, second = found[one], found[two]
    more([one, two], found)
    with styling.guard(
        f"The runs {one} and {two} cannot be compared with what is in their folders; run the one that is "
        f"damaged again with --fresh"
    ):
        views(first, second)


def several_ids(found: dict[str, Run]) -> list[str]:
    """The runs of the URL where it names more than two, each once."""
    named = list(dict.fromkeys(name for name in url_state.get("compare", "runs").split(",") if name))
    for name in named:
        if name not in found:
            execution.run_by_id(name)  # says what is wrong with an id from the URL
            raise InputError(f"The run {name} has nothing to compare: it has no tables, or does not say of what model.")
    return named if len(named) > 2 else []


def several(named: list[str], found: dict[str, Run]) -> None:
    """More than two runs, and a box in which they are chosen."""
    runs = [found[name] for name in named]
    more(named, found)
    with styling.guard("These runs cannot be compared with what is in their folders"):
        several_runs.show(runs)


def more(named: list[str], found: dict[str, Run]) -> None:
    """The runs that are compared, to be added to and taken from; with more than two the screen is another one."""
    probes = {found[name].probe for name in named}
    ids = [name for name, run in found.items() if run.probe in probes]
    if len(ids) < 3:
        return
    chosen = st.multiselect(
        "Runs",
        ids,
        default=named,
        key=f"runs {len(ids)} {' '.join(named)}",
        format_func=lambda i: label(found[i]),
        help="More than two: their curves in one figure, their ranks, the same figure of each.",
    )
    if chosen != named and len(chosen) >= 2:
        url_state.put("compare", "runs", ",".join(chosen) if len(chosen) > 2 else "")
        if len(chosen) == 2:
            url_state.put("compare", "a", chosen[0])
            url_state.put("compare", "b", chosen[1])
        st.rerun()


def views(first: Run, second: Run) -> None:
    stamps = [cached.stamp(run.folder / "run.json") for run in (first, second)]
    seen = summary(first.id, second.id, *stamps, first, second)
    settings(seen)
    heads = bool(shared_tables(first, second))
    fig, reason = in_one(first.id, second.id, *stamps, first, second)
    named = [
        "Figures side by side",
        *(["In one figure"] if fig is not None else []),
        *(["Heads"] if heads else []),
        "Tables",
    ]
    view = st.segmented_control(
        "View",
        named,
        default="Heads" if heads else named[0],
        key="view",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        help="The figures of both, both in one where the probe has such a figure, their heads on one scale, or "
        "every table that both have.",
    )
    if view == "Heads":
        compare_heads(first, second, seen)
    elif view == "Tables":
        compare_tables(first, second, seen)
    elif view == "In one figure":
        run_view.chart(run_view.on_screen(run_view.untitled(fig)), key="figure of both")
    else:
        if reason:
            st.caption(styling.md(reason))
        side_by_side(first, second)


@st.cache_resource(max_entries=8, show_spinner=False)
def in_one(
    one: str, two: str, stamp_one: tuple, stamp_two: tuple, _first: Run, _second: Run
) -> tuple[object | None, str]:
    """The probe's figure of several runs, or why there is none."""
    try:
        return figure_of_several([_first, _second]), ""
    except WorkbenchError as error:
        return None, str(error)
    except Exception as error:  # a run that was damaged: anything can be missing from it
        return None, f"The figure of both runs cannot be drawn from what is in their folders ({styling.said(error)})."


@st.cache_resource(max_entries=8, show_spinner="Comparing")
def summary(one: str, two: str, stamp_one: tuple, stamp_two: tuple, _first: Run, _second: Run) -> dict:
    return compare.compare(_first, _second)


def settings(seen: dict) -> None:
    rows = [(name, brief(a), brief(b)) for name, (a, b) in seen["settings"].items()]
    if rows:
        st.html(styling.table(rows, [("differs in", "text"), ("first", "text"), ("second", "text")]))
    else:
        st.caption("Both runs were asked for the same.")
    for name, found in seen["headline"].items():
        st.caption(styling.md(f"{name}: {quantity(found)}"))


def brief(value: object) -> str:
    """A setting in few characters: hashes by their first twelve."""
    text = str(value)
    text = text[:12] if len(text) >= 32 and all(c in "0123456789abcdef" for c in text) else text
    return cut(text, 120)


def shared_tables(first: Run, second: Run) -> list[str]:
    """The tables of head scores that both runs have, the main one first."""
    return [name for name in head_sets.scored_tables(first) if name in second.tables]


def shape_of(run: Run, table: pl.DataFrame) -> tuple[int, int]:
    """(layers, heads) of a run's model."""
    about = head_sets.model_info(run)
    return head_figures.shape_of(table, about.get("layers"), about.get("heads"))


def names_of(first: Run, second: Run) -> list[str]:
    names = [styling.short(styling.model_of(run), 20) for run in (first, second)]
    return names if names[0] != names[1] else [f"{name} ({run.id[-6:]})" for name, run in zip(names, (first, second))]


def compare_heads(first: Run, second: Run, seen: dict) -> None:
    columns = shared_scores(first, second)
    if not columns:
        st.info("The tables of heads have no score in common.")
        return
    picked = st.selectbox("Score", columns, key="score", bind="query-params", help="A column that both runs have.")
    where, column = columns[picked]
    tables = [cached.table(run, where) for run in (first, second)]
    tables = [table.with_columns(pl.col(column).cast(pl.Float64)) for table in tables]
    values = [v for table in tables for v in table[column].drop_nulls().drop_nans().to_list()]
    low, high = styling.limits(values)
    names, said = names_of(first, second), column.replace("_", " ")
    shapes = [shape_of(run, table) for run, table in zip((first, second), tables)]
    maps = [
        head_figures.head_map(table, value=column, label=said, low=low, high=high, title=name, **options(run))
        for run, table, name in zip((first, second), tables, names)
    ]
    if shapes[0] != shapes[1]:
        show_maps(maps, width=640)
        (a, b), (c, d) = shapes
        st.info(
            f"The models have different shapes ({a} × {b} and {c} × {d} layers × heads): each map is its own "
            f"model's, on one scale. "
            "There is no difference and no agreement from head to head."
        )
        return
    entry = seen["tables"].get(where) or {}
    if "problem" in entry or column not in entry.get("columns", {}):
        show_maps(maps, width=640)
        st.info(
            styling.md(f"Not compared from head to head: {entry.get('problem', 'this column is not in both tables')}.")
        )
        return
    both = compare.joined(first, second, where)
    maps.append(
        head_figures.head_map(
            both,
            value=f"{column}_difference",
            label="difference",
            diverging=True,
            title="second minus first",
            **options(first),
        )
    )
    show_maps(maps, width=430)
    agreement(first, second, tables, both, column, entry["columns"][column], names)


def shared_scores(first: Run, second: Run) -> dict[str, tuple[str, str]]:
    """What can be compared from head to head: label -> (table, column), the main score first."""
    found: dict[str, tuple[str, str]] = {}
    for name in shared_tables(first, second):
        one, two = (
            head_sets.numeric(frame, head_sets.scores(run, name, frame))
            for run in (first, second)
            for frame in [cached.table(run, name)]
        )
        for column in one:
            if column in two:
                found[f"{name}: {column}" if column in found else column] = (name, column)
    return dict(sorted(found.items(), key=lambda item: item[1][1] != head_sets.main_score(first)))


def options(run: Run) -> dict:
    about = head_sets.model_info(run)
    return {
        key: about.get(source)
        for key, source in (("n_layers", "layers"), ("n_heads", "heads"), ("n_kv_heads", "kv_heads"))
    }


def show_maps(maps: list, *, width: int) -> None:
    for i, (place, fig) in enumerate(zip(st.columns(len(maps)), maps)):
        with place:
            plain = run_view.untitled(fig)
            run_view.chart(figures.dressed(plain, mode=styling.mode(), width=width), key=f"figure map {i}")


def agreement(
    first: Run, second: Run, tables: list, both: pl.DataFrame, column: str, entry: dict, names: list[str]
) -> None:
    """Head against head, the correlations, and the heads that differ most."""
    agree = ", ".join(
        f"{kind.capitalize()} {quantity({**entry[kind], 'n': entry['n']})}"
        for kind in ("pearson", "spearman")
        if entry.get(kind) and entry[kind]["value"] is not None
    )
    a, b = st.columns([3, 2], gap="large")
    with a:
        fig = head_figures.against(*tables, value=column, names=(names[0], names[1]), label=column.replace("_", " "))
        run_view.chart(figures.dressed(run_view.untitled(fig), mode=styling.mode(), width=560), key="figure against")
    with b:
        st.html(
            styling.heading("agreement over heads; intervals resample heads, not needles or prompts") + f"<div "
            f"class='wb-facts'>{styling.esc(agree or 'not defined: a score is constant or there are too few heads')}<br>largest difference {number(entry.get('max_abs_difference'))}</div>"  # noqa: E501
        )
        top = (
            both.with_columns(pl.col(f"{column}_difference").abs().alias("size"))
            .filter(pl.col("size").is_finite())
            .sort("size", descending=True)
            .head(10)
        )
        rows = [
            (f"{l}.{h}", x, y, d)
            for l, h, x, y, d in top.select(
                "layer", "head", f"{column}_first", f"{column}_second", f"{column}_difference"
            ).iter_rows()
        ]
        st.html(
            styling.heading("heads that differ most")
            + styling.table(rows, [("head", "text"), ("first", "num"), ("second", "num"), ("difference", "num")])
        )


def compare_tables(first: Run, second: Run, seen: dict) -> None:
    if not seen["tables"]:
        st.info("The runs have no table in common.")
        return
    of_heads = shared_tables(first, second)
    name = st.pills(
        "Table",
        list(seen["tables"]),
        default=min(seen["tables"], key=lambda t: ("problem" in seen["tables"][t], t not in of_heads)),
        key="table",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        format_func=styling.named,
        help="A table that both runs have.",
    )
    table = seen["tables"][name]
    if "problem" in table:
        st.info(styling.md(f"Not compared: {table['problem']}."))
        return
    if table["apart"]:
        st.info(styling.md(f"{seen['not_compared']} Not compared here: {', '.join(table['apart'])}."))
    rows = []
    for column, entry in table["columns"].items():
        if "equal" in entry:
            rows.append((column, "", "", "", f"{entry['equal']:.1%} equal" if entry["equal"] is not None else ""))
        else:
            rank = entry.get("spearman") or {}
            rows.append(
                (
                    column,
                    entry["mean_first"],
                    entry["mean_second"],
                    entry["mean_difference"],
                    quantity({**rank, "n": None}) if rank.get("value") is not None else "",
                )
            )
    if table["keys"]:
        say = (
            f"{table['matched']:,} rows matched on {', '.join(table['keys'])}; {table['only_first']:,} only in "
            f"the first, {table['only_second']:,} only in the second"
        )
    else:
        say = "This table has one row in each run, so no column is needed to match them."
    st.html(
        styling.heading(say)
        + styling.table(
            rows,
            [
                ("column", "text"),
                ("mean, first", "num"),
                ("mean, second", "num"),
                ("difference", "num"),
                ("rank agreement", "text"),
            ],
        )
    )
    frame = compare.joined(first, second, name)
    styling.scroll_table(frame.head(run_view.MOST_ROWS), most=360)
    flat = [c for c, dtype in frame.schema.items() if not dtype.is_nested()]
    st.download_button(
        "CSV",
        lambda: frame.select(flat).write_csv().encode(),
        f"compare-{name}.csv",
        "text/csv",
        on_click="ignore",
        help="All rows that both have; columns of lists are left out.",
    )


def side_by_side(first: Run, second: Run) -> None:
    drawn = [run_view.figures_of(run) for run in (first, second)]
    made = [found for found, _ in drawn]
    names = [name for name in made[0] if name in made[1]]
    if not names:
        st.info(
            styling.md(
                " ".join(
                    [
                        "The runs have no figure in common.",
                        *(reason for _, reasons in drawn for reason in list(reasons.values())[:1]),
                    ]
                )
            )
        )
        return
    name = st.pills(
        "Figure",
        names,
        default=names[0],
        key="figure",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        format_func=lambda n: styling.named(n.replace("_", " ")),
        help="A figure that both runs have.",
    )
    for i, (place, figs, run) in enumerate(zip(st.columns(2), made, (first, second))):
        with place:
            st.html(run_view.headline(run))
            plain = run_view.untitled(figs[name])
            run_view.chart(figures.dressed(plain, mode=styling.mode(), width=640), key=f"figure side {i}")


navigation.through_app()
main()
