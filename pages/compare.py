"""Two runs of one probe side by side: what was asked differently, heads on one scale, the difference, every table."""

from __future__ import annotations

import polars as pl
import streamlit as st

from pages.parts import frame, look, run_view, state
from workbench import compare, figures, runs
from workbench.figures import heads as head_figures
from workbench.runfolder import Run


def label(run: Run) -> str:
    when = (run.info.get("finished") or run.info.get("started") or "")[:16].replace("T", " ")
    return f"{run.probe} · {look.short(run.info['model']['name'])} · {when} · {run.id[-12:]}"


def pick(title: str, key: str, ids: list[str], found: dict[str, Run], *, help: str) -> str:
    """A run by its id, which is also what the URL holds."""
    wanted = state.get("compare", key)
    if wanted and wanted not in found:
        runs.run_by_id(wanted)  # says what is wrong with an id from the URL
    index = ids.index(wanted) if wanted in ids else 0
    chosen = st.selectbox(
        title, ids, index=index, key=f"{key} of {len(ids)} at {index}", format_func=lambda i: label(found[i]), help=help
    )
    if chosen != ids[index]:
        state.put("compare", key, chosen)
        st.rerun()
    return chosen


def main() -> None:
    st.title("Compare")
    found = {run.id: run for run in runs.list_runs() if run.tables}
    if len(found) < 2:
        st.info(
            "Two finished runs of the same probe are needed: on two models, two seeds or two settings. Start them on the probe's screen."
        )
        return
    a, b = st.columns(2)
    ids = list(found)
    with a:
        one = pick("First run", "a", ids, found, help="Differences are second minus first.")
    others = [i for i in ids if i != one and found[i].probe == found[one].probe]
    if not others:
        st.info(look.md(f"There is no other run of {found[one].probe} to compare this one with."))
        return
    with b:
        two = pick("Second run", "b", others, found, help="A run of the same probe.")
    first, second = found[one], found[two]
    seen = summary(one, two, first, second)
    settings(seen)
    shared = [name for name in seen["tables"]]
    views = ["Figures side by side", *(["Heads"] if "heads" in shared else []), "Tables"]
    view = st.segmented_control(
        "View",
        views,
        default="Heads" if "heads" in shared else views[0],
        key="view",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
    )
    with look.guard():
        if view == "Heads":
            compare_heads(first, second, seen)
        elif view == "Tables":
            compare_tables(first, second, seen)
        else:
            side_by_side(first, second)


@st.cache_resource(max_entries=8, show_spinner="Comparing")
def summary(one: str, two: str, _first: Run, _second: Run) -> dict:
    return compare.compare(_first, _second)


def settings(seen: dict) -> None:
    rows = [(name, str(a)[:120], str(b)[:120]) for name, (a, b) in seen["settings"].items()]
    if rows:
        st.html(look.table(rows, [("differs in", "text"), ("first", "text"), ("second", "text")]))
    else:
        st.caption("Both runs were asked for the same.")


def compare_heads(first: Run, second: Run, seen: dict) -> None:
    table = seen["tables"]["heads"]
    if "problem" in table:
        st.info(look.md(f"The heads cannot be compared: {table['problem']}."))
        return
    columns = [
        c
        for c, entry in table["columns"].items()
        if "mean_first" in entry and not c.startswith("ci_") and c not in ("kv_group", "n_trials", "n")
    ]
    columns.sort(key=lambda c: c != "score")
    column = st.selectbox("Score", columns, key="score", bind="query-params", help="A column that both runs have.")
    both = compare.joined(first, second, "heads")
    values = (
        pl.concat([both[f"{column}_first"].cast(pl.Float64), both[f"{column}_second"].cast(pl.Float64)])
        .drop_nulls()
        .drop_nans()
    )
    low, high = look.limits(values.to_list())
    shape = {
        key: first.info["model"].get(source)
        for key, source in (("n_layers", "layers"), ("n_heads", "heads"), ("n_kv_heads", "kv_heads"))
    }
    names = [look.short(look.model_of(run), 20) for run in (first, second)]
    if names[0] == names[1]:
        names = [f"{name} ({run.id[-6:]})" for name, run in zip(names, (first, second))]
    said = column.replace("_", " ")
    maps = [
        head_figures.head_map(both, value=f"{column}_{side}", label=said, low=low, high=high, title=name, **shape)
        for side, name in zip(("first", "second"), names)
    ]
    maps.append(
        head_figures.head_map(
            both, value=f"{column}_difference", label="difference", diverging=True, title="second minus first", **shape
        )
    )
    for i, (place, fig) in enumerate(zip(st.columns(3), maps)):
        place.plotly_chart(
            figures.dressed(fig, mode=look.mode(), width=430), theme=None, key=f"map {i}", config={"displaylogo": False}
        )
    entry = table["columns"][column]
    agree = ", ".join(
        f"{kind.capitalize()} {look.quantity({**entry[kind], 'n': entry['n']})}"
        for kind in ("pearson", "spearman")
        if entry.get(kind) and entry[kind]["value"] is not None
    )
    a, b = st.columns([3, 2], gap="large")
    with a:
        fig = head_figures.against(
            first.table("heads"), second.table("heads"), value=column, names=(names[0], names[1]), label=said
        )
        st.plotly_chart(
            figures.dressed(fig, mode=look.mode(), width=560), theme=None, key="against", config={"displaylogo": False}
        )
    with b:
        st.html(
            look.heading("agreement over heads")
            + f"<div class='wb-facts'>{look.esc(agree or 'not defined: a score is constant or there are too few heads')}<br>largest difference {look.number(entry['max_abs_difference'])}</div>"
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
            look.heading("heads that differ most")
            + look.table(rows, [("head", "text"), ("first", "num"), ("second", "num"), ("difference", "num")])
        )


def compare_tables(first: Run, second: Run, seen: dict) -> None:
    name = st.pills(
        "Table",
        list(seen["tables"]),
        default=min(seen["tables"], key=lambda t: ("problem" in seen["tables"][t], t != "heads")),
        key="table",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
    )
    table = seen["tables"][name]
    if "problem" in table:
        st.info(look.md(f"Not compared: {table['problem']}."))
        return
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
                    look.quantity({**rank, "n": None}) if rank.get("value") is not None else "",
                )
            )
    say = f"{table['matched']:,} rows matched on {', '.join(table['keys'])}; {table['only_first']:,} only in the first, {table['only_second']:,} only in the second"
    st.html(
        look.heading(say)
        + look.table(
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
    st.dataframe(frame.head(run_view.MOST_ROWS), height=360, hide_index=True)
    flat = [c for c, dtype in frame.schema.items() if not dtype.is_nested()]
    st.download_button(
        "CSV", lambda: frame.select(flat).write_csv().encode(), f"compare-{name}.csv", "text/csv", on_click="ignore"
    )


def side_by_side(first: Run, second: Run) -> None:
    made = [run_view.figures_of(run)[0] for run in (first, second)]
    names = [name for name in made[0] if name in made[1]]
    if not names:
        st.info("The runs have no figure in common.")
        return
    name = st.pills(
        "Figure",
        names,
        default=names[0],
        key="figure",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        format_func=lambda n: n.replace("_", " "),
    )
    for i, (place, figs, run) in enumerate(zip(st.columns(2), made, (first, second))):
        with place:
            st.html(run_view.headline(run))
            st.plotly_chart(
                figures.dressed(figs[name], mode=look.mode(), width=640),
                theme=None,
                key=f"side {i}",
                config={"displaylogo": False},
            )


frame.through_app()
main()
