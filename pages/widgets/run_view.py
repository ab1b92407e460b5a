"""A run on the screen: its figures first, then its numbers, tables, settings, and all of it to take home."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import streamlit as st

from pages.widgets import cached, figure_box, map_of_run, navigation, row_prompts, styling
from workbench import figures
from workbench.core import registry
from workbench.core.errors import WorkbenchError
from workbench.core.parquet import parquet_bytes
from workbench.core.wording import duration, origin, quantity
from workbench.explorer import head_sets
from workbench.figures.export import bibtex, caption
from workbench.figures.export import export as write_figure
from workbench.figures.layout import about
from workbench.runs.claim import in_words
from workbench.runs.description import dtype_said
from workbench.runs.folder import Run

MOST_ROWS = 5000  # of a table on the screen; the files have them all
MIME = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png", "csv": "text/csv", "html": "text/html"}


def headline(run: Run) -> str:
    """Model, time, cost: one line of HTML."""
    info, imported = run.info, origin(run.info)
    model = head_sets.model_info(run)
    seconds, counters = info.get("seconds") or {}, info.get("counters") or {}
    facts = [
        f"<b>{styling.esc(styling.short(model.get('name') or '?'))}</b>",
        styling.esc(
            f"{model.get('layers') or '?'} layers × {model.get('heads') or '?'} heads, {model.get('dtype') or '?'}, "
            f"{model.get('device') or '?'}"
        ),
        styling.esc(f"imported from {imported}" if imported else run.status),
        styling.esc(styling.when(run)),
        styling.esc(duration(seconds.get("compute"))),
        "" if imported else styling.esc(f"{counters.get('tokens', 0):,} tokens"),
        styling.esc(run.id),
    ]
    return "<div class='wb-facts'>" + " <span class='wb-dim'>·</span> ".join(fact for fact in facts if fact) + "</div>"


def show(run: Run, *, prefix: str = "") -> None:
    """The whole view. ``prefix`` keeps the controls of two views on one screen apart."""
    st.html(headline(run))
    status = run.status
    if map_of_run.has_map(run) and not prefix:
        map_of_run.button(run)
    if status != "complete":
        unfinished(run, status)
        if not run.tables:
            show_warnings(run.info.get("warnings") or [])
            return
    views = ["Figures", "Summary", "Tables", "Settings", *(["Map"] if map_of_run.has_map(run) else [])]
    view = st.segmented_control(
        "Part",
        views,
        default="Map" if map_of_run.opens_on_map(run) else "Figures",
        key=f"{prefix}part",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        help="What was found, drawn or in numbers, and what was asked.",
    )
    with styling.guard():
        shown = {"Figures": show_figures, "Summary": show_summary, "Tables": show_tables, "Settings": show_settings}
        (shown | {"Map": map_of_run.show})[view if view in views else "Figures"](run, prefix)
    show_warnings(run.info.get("warnings") or [])


def show_warnings(warnings: list) -> None:
    """What a run has to say of itself, in a line that opens; below what was found, which stays in sight."""
    if not warnings:
        return
    with st.expander("1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings", icon="⚠️"):
        for warning in warnings:
            st.warning(styling.md(warning))


def unfinished(run: Run, status: str) -> None:
    if status == "damaged":
        what = in_words(run.damage())
        st.error(styling.md(f"This run is damaged: {what}; its command, given again, computes it again."))
        return
    progress, error = run.progress() or {}, run.info.get("error") or {}
    text = f"This run is {status}."
    if error:
        text += f" {error.get('message', '')}"
    elif progress.get("total"):
        text += f" It got to {progress['done'] / progress['total']:.0%} ({progress['label']})."
    (st.error if status == "failed" else st.info)(styling.md(text))
    if error.get("traceback"):
        with st.expander("Traceback"):
            st.code(error["traceback"], language=None)


@st.cache_resource(max_entries=24, show_spinner="Drawing")
def built(folder: str, stamp: tuple, _run: Run) -> tuple[dict, dict[str, str]]:
    """Figures of a run and the reasons for those that are missing; ``stamp`` changes when the run does."""
    try:
        return figures.collected(_run)
    except WorkbenchError as error:
        return {}, {"figures": str(error)}
    except Exception as error:  # a run of another version, or one that was damaged: anything can be missing from it
        return {}, {
            "figures": f"The figures of the run {_run.id} cannot be drawn from what is in its folder "
            f"({styling.said(error)}); give its command again, with --fresh."
        }


def figures_of(run: Run) -> tuple[dict, dict[str, str]]:
    return built(str(run.folder), cached.stamp(run.folder / "run.json"), run)


TALLEST = 420  # pixels of a figure of one panel, so that it and what is said of it are in sight together


def untitled(fig):
    """A figure whose title has been written above it, where it is wrapped to whatever room there is; inside it, a
    narrow column would cut it."""
    meta = fig.layout.meta or {}
    if not meta.get("title"):
        return fig
    st.html(f"<b>{styling.esc(meta['title'])}</b>")
    return about(type(fig)(fig), title="")


def chart(fig, *, key: str) -> None:
    with figure_box.box(fig, key):
        st.plotly_chart(fig, theme=None, key=key, config={"displaylogo": False})


def chart_of_heads(run: Run, fig, *, key: str) -> None:
    """A map of heads: a click on one opens the Explorer there, in the colours of this run."""
    picked = st.plotly_chart(
        fig,
        theme=None,
        key=key,
        config={"displaylogo": False},
        on_select="rerun",
        selection_mode="points",
    )
    st.caption("Click a head to look at it in the Explorer.")
    for point in picked.selection.points[:1]:
        layer, head = (int(value) for value in list(point["customdata"])[:2])
        navigation.to_explorer(run, layer, head, fig.layout.meta["heads"])


def on_screen(fig, **how):
    """A figure as the screen shows it, not taller than needed where its height is free."""
    made = figures.dressed(fig, mode=styling.mode(), **how)
    meta = fig.layout.meta or {}
    panels = meta.get("panels") or []
    free = len(panels) == 1 and not (panels[0].get("y_ticks") or {}).get("keep")
    if free and made.layout.height and made.layout.height > TALLEST:
        made = figures.dressed(fig, mode=styling.mode(), **how, height=TALLEST)
    return made


def show_figures(run: Run, prefix: str) -> None:
    made, reasons = figures_of(run)
    if not made:
        for reason in reasons.values():
            st.info(styling.md(reason))
        return
    names = list(made)
    chosen = st.pills(
        "Figure",
        names,
        default=names[0],
        key=f"{prefix}figure",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        format_func=lambda name: styling.named(name.replace("-", " ")),
        help="One at a time; each can be downloaded below it.",
    )
    chosen = chosen if chosen in made else names[0]
    fig = made[chosen]
    fig = chosen_of(run, chosen, fig, prefix)
    drawn_now, key = on_screen(untitled(fig)), f"figure {prefix}{run.id} {chosen}"
    if (fig.layout.meta or {}).get("heads") and not prefix:
        chart_of_heads(run, drawn_now, key=key)
    else:
        chart(drawn_now, key=key)
    st.caption(styling.md(caption(run, fig)))
    take_home(run, chosen, fig, prefix)
    if reasons:
        with st.expander(f"{len(reasons)} figures not drawn"):
            st.html(
                "<div class='wb-facts'>"
                + "<br>".join(f"{styling.esc(n)}: {styling.esc(r)}" for n, r in reasons.items())
                + "</div>"
            )


def chosen_of(run: Run, name: str, fig, prefix: str):
    """The figure as it is chosen, with a box for each choice that its probe offers; the figure itself where it offers
    none or all are left as they are."""
    values: dict[str, object] = {}
    offered = figures.choices_of(run, name, values)
    columns = iter(st.columns(max(2, len(offered)))) if offered else iter(())
    as_it_is = True
    while choice := next((one for one in offered if one.keyword not in values), None):
        options = list(choice.options)
        picked = next(columns).selectbox(
            choice.label, options, key=f"{prefix}{choice.keyword}", bind="query-params", help=choice.help
        )
        picked = picked if picked in choice.options else options[0]
        as_it_is = as_it_is and picked == options[0]
        values[choice.keyword] = choice.options[picked]
        offered = figures.choices_of(run, name, values)
    if as_it_is:
        return fig
    try:
        return figures.drawn_with(run, name, values)
    except WorkbenchError as error:
        st.info(styling.md(error))
        return fig


@st.cache_resource(max_entries=48, show_spinner=False)
def drawn(folder: str, stamp: tuple, name: str, kind: str, preset: str, note: str, _fig) -> bytes:
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / f"figure.{kind}"
        write_figure(_fig, path, preset=preset)
        return path.read_bytes()


def take_home(run: Run, name: str, fig, prefix: str) -> None:
    """Downloads of one figure. Files are drawn when they are asked for."""
    columns = st.columns(5, gap="small")
    a, b = st.columns(2, gap="small")
    preset = a.selectbox(
        "Size",
        ["single", "double", "slide", "screen"],
        index=1,
        key=f"{prefix}preset",
        bind="query-params",
        label_visibility="collapsed",
        help="Width in print: one column (3.25 in), both (6.75 in), a slide, or as on the screen. Files are light, "
        "whatever the screen is.",
    )
    about = caption(run, fig)
    stamp = cached.stamp(run.folder / "run.json")

    def make(kind: str):
        return lambda: drawn(str(run.folder), stamp, name, kind, preset, about, fig)

    for column, kind in zip(columns, ("pdf", "svg", "png", "csv", "html")):
        options = {"mime": MIME[kind], "on_click": "ignore", "key": f"{prefix}get {kind}", "width": "stretch"}
        options |= {"shortcut": "ctrl+e"} if kind == "pdf" and not prefix else {}
        options["help"] = (
            "The numbers that are drawn."
            if kind == "csv"
            else "The page that can be zoomed."
            if kind == "html"
            else "At the size chosen below."
        )
        column.download_button(kind.upper(), make(kind), f"{run.id}-{name}.{kind}", **options)
    with b.popover("Caption, BibTeX", width="stretch", help="What belongs beside the figure in a paper."):
        st.code(about, language=None, wrap_lines=True)
        st.code(bibtex(run) or "The probe is not installed here.", language="bibtex", wrap_lines=True)


def show_summary(run: Run, prefix: str) -> None:
    summary = run.summary
    rows = [
        (key.replace("_", " "), quantity(value))
        for key, value in summary.items()
        if not isinstance(value, (list, dict)) or (isinstance(value, dict) and "value" in value)
    ]
    st.html(
        styling.table(rows, [("", "text"), ("value, 95 % interval", "text")])
        if rows
        else "<div class='wb-dim'>The run has no summary.</div>"
    )
    rest = {
        key: value
        for key, value in summary.items()
        if isinstance(value, (list, dict)) and not (isinstance(value, dict) and "value" in value)
    }
    if rest:
        st.json(rest, expanded=1)


def show_tables(run: Run, prefix: str) -> None:
    names = run.tables
    if not names:
        st.info("This run has no tables yet.")
        return
    first = next(iter(head_sets.scored_tables(run)), names[0])
    name = st.pills(
        "Table",
        names,
        default=first,
        key=f"{prefix}table",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
        format_func=styling.named,
        help="Each is a Parquet file in the run's folder.",
    )
    frame = cached.table(run, name if name in names else first)
    row_prompts.table(run, name, frame.head(MOST_ROWS), key=f"{prefix}frame {name}")
    note = f"{frame.height:,} rows" + (f", the first {MOST_ROWS:,} are shown" if frame.height > MOST_ROWS else "")
    a, b, c = st.columns([4, 1, 1], vertical_alignment="center")
    a.caption(note)
    flat = [column for column, dtype in frame.schema.items() if not dtype.is_nested()]
    b.download_button(
        "CSV",
        lambda: frame.select(flat).write_csv().encode(),
        f"{run.id}-{name}.csv",
        "text/csv",
        on_click="ignore",
        key=f"{prefix}csv",
        width="stretch",
        help="Columns of lists are only in the Parquet file.",
    )
    c.download_button(
        "Parquet",
        lambda: parquet_bytes(frame),
        f"{run.id}-{name}.parquet",
        on_click="ignore",
        key=f"{prefix}parquet",
        width="stretch",
        help="The whole table, as it is in the run's folder.",
    )


def python_of(run: Run) -> str:
    """The same run from Python."""
    info, model = run.info, head_sets.model_info(run)
    if info.get("imported"):
        return f"from workbench import figure, open_run\n\nrun = open_run({run.id!r})\nfigure(run).show()"
    changed = dict(info.get("config") or {})
    try:
        from workbench.core import config as configs

        item = registry.get(run.probe)
        changed = {k: v for k, v in configs.changed(configs.build(item.config, changed, literal=True)).items()}
    except WorkbenchError:
        pass  # the probe is not installed here, or its config has changed since: all values are written out
    path = (info.get("data") or {}).get("path")
    return python_code(
        run.probe,
        str(model.get("name", "?")),
        changed,
        data=path,
        seed=info.get("seed") or 0,
        dtype=model.get("dtype"),
        device=model.get("device"),
        revision=model.get("revision"),
        adapter=(model.get("adapter") or {}).get("path"),
        date=model.get("date") if f"--date {model.get('date')}" in str(info.get("command")) else None,
    )


def python_code(
    probe: str,
    model: str,
    settings: dict,
    *,
    data: object = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    **of_model: str | None,
) -> str:
    """The three lines that make a run. ``of_model``: what else the model was loaded with, None for what it was not."""
    said = "".join(f", {k}={v!r}" for k, v in settings.items())
    more = (f", data={str(data)!r}" if data else "") + (f", seed={seed}" if seed else "")
    loads = f", dtype={dtype!r}" if dtype_said(dtype, device or "cpu") else ""
    loads += f", device={device!r}" if device not in (None, "cpu") else ""
    loads += "".join(f", {name}={value!r}" for name, value in of_model.items() if value)
    return (
        "from workbench import figure, load, probe\n\n"
        f"model = load({model!r}{loads})\n"
        f"run = probe({probe!r}{said}).run(model{more})\n"
        "figure(run).show()"
    )


def show_settings(run: Run, prefix: str) -> None:
    left, right = st.columns(2)
    with left:
        st.html(styling.heading("command line"))
        st.code(run.info.get("command") or "", language="bash", wrap_lines=True)
        st.html(styling.heading("Python"))
        st.code(python_of(run), language="python", wrap_lines=True)
        st.html(styling.heading("folder"))
        st.code(str(run.folder), language=None, wrap_lines=True)
    with right:
        rows = [
            (key.replace("_", " "), json.dumps(value, ensure_ascii=False))
            for key, value in (run.info.get("config") or {}).items()
        ]
        st.html(styling.heading("config") + styling.table(rows, [("", "text"), ("", "text")]))
        with st.expander("run.json"):
            st.json(run.info, expanded=1)
