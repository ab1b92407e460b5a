"""The geometry of a figure at a given width: where panels, legend, colour bar and titles go, and which ticks are
written.

Plotly places what it can by itself; what it cannot know (how many panels fit side by side, whether names fit under
their cells, how long a title may be) is decided here from the sizes of a preset. All lengths are CSS pixels.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

import plotly.graph_objects as go

from workbench.core.wording import cut
from workbench.figures import style as theme
from workbench.figures.page import Packing, packed, show_all, show_panels
from workbench.figures.plotly_text import WHITE, read, safe

CELL_LINES = 6  # of one cell of a table of words
CHARACTER = 0.55  # mean width of a character in units of the type size
CELL_TEXT = "cell-text"  # `meta` of a trace whose labels must fit into cells
CELL_MARK = "cell-mark"  # `meta` of a trace of cells some of which are outlined
LARGE = "large"  # `meta` of a trace of points that mark something
HEAD_POINTS = "heads"  # `meta` of a trace of points that are heads: customdata is layer, head
TREE_TEXT = "tree-text"  # `meta` of the labels of a tree, which must fit into their columns
TREE_BRANCH = "tree-branch"  # key in the `meta` of a branch of a tree, with its probability
TREE_RUN = 0.8  # the part of a column that a node's text takes; the rest is the way to its children
PANEL_TITLE = "panel-title"


def axis(i: int) -> dict[str, str]:
    """The axes of panel i, as keywords of a trace."""
    suffix = "" if i == 0 else str(i + 1)
    return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}


def x_axis(fig: go.Figure, i: int):
    """The layout of the x axis of panel i."""
    return fig.layout["xaxis" + ("" if i == 0 else str(i + 1))]


def y_axis(fig: go.Figure, i: int):
    """The layout of the y axis of panel i."""
    return fig.layout["yaxis" + ("" if i == 0 else str(i + 1))]


def shorten(text: str, most: int) -> str:
    """At most ``most`` characters, the middle left out (beginnings and ends of model names both tell)."""
    if len(text) <= most:
        return text
    keep = most - 1
    return text[: math.ceil(keep * 0.6)] + "…" + text[len(text) - keep // 2 + keep // 10 :]


def shorten_apart(names: Sequence[str], most: int) -> dict[str, str]:
    """Each of several names in at most ``most`` characters: cut ones that would read the same are cut without what
    these (or, where they then still do, all names) begin with."""
    kinds = list(dict.fromkeys(names))
    written = {name: shorten(name, most) for name in kinds}
    for text in [text for text, count in Counter(written.values()).items() if count > 1]:
        alike = [name for name in kinds if written[name] == text]
        same = re.sub(r"\w+$", "", os.path.commonprefix(alike))  # whole words only
        written |= {name: shorten("…" + name[len(same) :], most) for name in alike if len(same) > 1}
    if len(set(written.values())) == len(kinds):
        return written
    same = len(os.path.commonprefix(kinds))
    return {name: shorten("…" + name[same:], most) if same > 1 else written[name] for name in kinds}


def wrap(text: str, most: int, *, least: int = 12) -> list[str]:
    """Lines of at most ``most`` (but never fewer than ``least``) characters, broken at spaces; its own line breaks are
    shown."""
    import textwrap

    text, most = text.translate(WHITE), max(most, least)
    if columns_of(text) == len(text):
        return textwrap.wrap(text, most) or [""]
    lines, piece = [], ""
    for character in text:  # scripts of wide characters are written without spaces, and broken anywhere
        if piece and columns_of(piece + character) > most:
            at = piece.rfind(" ") if character.isascii() and not character.isspace() else -1
            lines.append(piece[:at].rstrip() if at > 0 else piece)
            piece = piece[at + 1 :] if at > 0 else ""
        piece += character
    return [line.strip() for line in [*lines, piece] if line.strip()] or [""]


def columns_of(text: str) -> int:
    """How many characters of ordinary width take as much room: those of Chinese, Japanese and Korean count twice."""
    return len(text) + sum(east_asian_width(character) in "WF" for character in text)


@dataclass(frozen=True)
class FigureMeasures:
    """The measures of a figure, in pixels."""

    height: float
    left: float
    right: float
    top: float
    bottom: float
    columns: int
    rows: int
    panel_width: float
    panel_height: float
    gap_x: float
    gap_y: float
    panel_title: float
    angle: float  # of the names under a panel; 0: they fit side by side
    y_lines: int  # of the title of the y axis
    bar_lines: int  # of the title of the colour bar


def arrange(fig: go.Figure, meta: dict, size: theme.Preset, width: int, height: int | None) -> dict:
    """Lay out the figure of a sheet (in place). Returns what was left out or cut (`page.FACTS`)."""
    f, k = size.font, size.tick
    show_all(fig)
    for i, name in (meta.get("trace_names") or {}).items():  # cut for another size
        fig.data[int(i)].name = safe(name)
    measure = functools.partial(_measure, fig, meta, size, width, height)
    packing = packed(meta, size, height, functools.partial(measure, y_lines=1, bar_lines=1))
    panels, left_out = meta["panels"][: packing.shown], meta["panels"][packing.shown :]
    measures = measure(packing, y_lines=1, bar_lines=1)
    for _ in range(2):  # titles are wrapped to the panels, and take room from them
        y_lines = max(len(wrap(p["y"], int(1.04 * measures.panel_height / (CHARACTER * f)))) for p in panels)
        bar_lines = len(wrap(_bar_title(fig), int(_bar_length(measures, f) / (CHARACTER * f))))
        measures = measure(packing, y_lines=y_lines, bar_lines=bar_lines)
    full: list[str] = []
    thinned = _place(fig, meta | {"panels": panels}, size, width, measures, full)
    _write_titles(fig, panels, k, int(measures.panel_width / (CHARACTER * k)), full)
    _fit_cells(fig, meta, measures.panel_width, measures.panel_height, k)
    if any(trace.meta == TREE_TEXT for trace in fig.data):
        fit_tree(fig, measures.panel_width, float(fig.layout.xaxis.range[1]), k)
    longest = max(
        12, int((width - measures.left - measures.right - 4.6 * k) / (CHARACTER * k))
    )  # characters of a legend entry
    names = {}
    apart = shorten_apart([read(trace.name) for trace in fig.data if trace.name], longest)
    for i, trace in enumerate(fig.data):
        if trace.meta == LARGE:
            trace.marker.size = 1.75 * size.marker
        if trace.name and len(name := read(trace.name)) > longest:
            names[str(i)] = name
            full += [name] if trace.showlegend is not False else []
            trace.name = safe(apart[name])
    plot_width, plot_height = width - measures.left - measures.right, measures.height - measures.top - measures.bottom
    bar = colour_bar(fig)
    if bar is not None:
        used = measures.columns * measures.panel_width + (measures.columns - 1) * measures.gap_x
        length = _bar_length(measures, f)
        bar.colorbar.title.text = _escaped(wrap(_bar_title(fig), int(length / (CHARACTER * f))))
        bar.colorbar.update(x=used / plot_width, xanchor="left", y=1, yanchor="top", lenmode="pixels", len=length)
    lines = _title_lines(meta, size, width)
    fig.update_layout(
        height=round(measures.height),
        margin={"l": measures.left, "r": measures.right, "t": measures.top, "b": measures.bottom, "pad": 0},
        showlegend=bool(_legend_entries(fig)),
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1 + measures.panel_title / plot_height,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        title=_title(lines, size, width, measures.height),
    )
    show_panels(fig, len(meta["panels"]), packing.shown)
    return {
        "left_out": [panel["title"] for panel in left_out],
        "in_full": list(dict.fromkeys(full)),
        "trace_names": names,
        "thinned": thinned if thinned > 1 else 0,
    }


def _measure(fig, meta, size, width, height, packing: Packing, *, y_lines, bar_lines) -> FigureMeasures:
    panels = meta["panels"][: packing.shown]
    count = len(panels)
    f, k = size.font, size.tick
    ticklen, pad = 0.35 * k, 0.6 * f
    bar = colour_bar(fig) is not None
    bare = meta.get("bare", False)

    label = 0 if bare else max(_label_width(panel, width, k) for panel in panels)
    y_title = (1.75 + 1.2 * (y_lines - 1)) * f if any(panel["y"] for panel in panels) else 0
    left = pad + y_title + label + (0 if bare else ticklen + 2)
    right = 1.1 * f
    if bar:
        right += 1.5 * f + 4.2 * CHARACTER * k + ticklen + ((1.6 + 1.2 * (bar_lines - 1)) * f if _bar_title(fig) else 0)
    # the same title on every panel is written once
    repeated = label + ticklen + 2 + pad + (0 if _same(panels, "y") else y_title)
    gap_x = 1.4 * f if meta["share_y"] or bare else repeated
    panel_title = 1.7 * k if any(panel["title"] for panel in panels) else 0

    columns = max(1, min(count, meta["columns"], int((width - left - right + gap_x) // (size.panel + gap_x))))
    columns = math.ceil(count / math.ceil(count / columns))  # 4 panels in 3 columns: two rows of 2
    columns = packing.columns or columns
    rows = math.ceil(count / columns)
    panel_width = (width - left - right - (columns - 1) * gap_x) / columns

    angle, x_label = (0, 0) if bare else _x_labels(panels, panel_width, k)
    x_title = 1.75 * f if any(panel["x"] for panel in panels) else 0
    bottom = pad + x_title + (0 if bare else ticklen + x_label)
    repeated = ticklen + x_label + pad + (0 if _same(panels, "x") else x_title)
    gap_y = panel_title + (0.9 * f if meta["share_x"] or bare else repeated)

    entries = _legend_entries(fig)
    legend_rows = _legend_rows(entries, width - left - right, k)
    lines = _title_lines(meta, size, width)
    head = 1.3 * size.title * len(lines) + (0.7 * size.title if lines else 0)
    top = pad + head + legend_rows * 1.65 * k + (0.5 * k if legend_rows else 0) + panel_title

    if height:
        panel_height = max(24.0, (height - top - bottom - (rows - 1) * gap_y) / rows)
    else:
        names = max((len(p["y_ticks"]["values"]) for p in panels if p["y_ticks"] and p["y_ticks"]["keep"]), default=0)
        grid_rows = meta["cells"][0] if meta["cells"] else 0
        most = max(30 * f, min(0.8 * k * grid_rows, 56 * f))  # a printed page, or a screen, is not endless
        least = max(1.45 * k * names * meta.get("row", 1.0), 5.5 * f)
        panel_height = max(min(panel_width * meta["aspect"], most), least)
        panel_height = min(panel_height, packing.tallest or panel_height)
        height = top + bottom + rows * panel_height + (rows - 1) * gap_y
    if meta["cells"]:  # cells may stretch, but not beyond recognition
        most = 2.6 * panel_height * meta["cells"][1] / meta["cells"][0]
        panel_width = min(panel_width, max(most, size.panel * 0.6))
    return FigureMeasures(
        height,
        left,
        right,
        top,
        bottom,
        columns,
        rows,
        panel_width,
        panel_height,
        gap_x,
        gap_y,
        panel_title,
        angle,
        y_lines,
        bar_lines,
    )


def _place(
    fig: go.Figure, meta: dict, size: theme.Preset, width: int, measures: FigureMeasures, full: list[str]
) -> int:
    """Give every panel its place, its titles and its ticks; names that are cut are added to ``full``. Returns every
    how-manieth name is written."""
    thinned = 1
    panels, k = meta["panels"], size.tick
    plot_width, plot_height = width - measures.left - measures.right, measures.height - measures.top - measures.bottom
    room = int(1.04 * measures.panel_height / (CHARACTER * size.font))
    for i, panel in enumerate(panels):
        row, column = divmod(i, measures.columns)
        x0 = column * (measures.panel_width + measures.gap_x)
        y1 = plot_height - row * (measures.panel_height + measures.gap_y)
        xa, ya = x_axis(fig, i), y_axis(fig, i)
        xa.domain = [_unit(x0 / plot_width), _unit((x0 + measures.panel_width) / plot_width)]
        ya.domain = [_unit((y1 - measures.panel_height) / plot_height), _unit(y1 / plot_height)]
        lowest = i + measures.columns >= len(panels)
        xa.title.text = _escaped([panel["x"]]) if lowest or not (meta["share_x"] or _same(panels, "x")) else None
        titled = column == 0 or not (meta["share_y"] or _same(panels, "y"))
        ya.title.text = _escaped(wrap(panel["y"], room)) if titled and panel["y"] else None
        if meta.get("bare"):
            for target in (xa, ya):
                target.update(showticklabels=False, ticks="", showgrid=False)
            continue
        xa.showticklabels = lowest or not meta["share_x"]
        ya.showticklabels = column == 0 or not meta["share_y"]
        xa.nticks = max(3, min(9, int(measures.panel_width / (4.5 * k))))
        ya.nticks = max(3, min(8, int(measures.panel_height / (2.4 * k))))
        if meta["cells"]:
            xa.ticklabelstandoff = ya.ticklabelstandoff = round(0.3 * k)
        if panel["x_ticks"]:
            least = k if measures.angle else None
            thinned = max(thinned, _write_ticks(xa, panel["x_ticks"], measures.panel_width, least, k, 24, full))
            if measures.angle:
                xa.tickangle = -90 if measures.angle > 50 else -40
        if panel["y_ticks"]:
            most = min(24, _most_characters(width, k))
            step = _write_ticks(ya, panel["y_ticks"], measures.panel_height, 1.25 * k, k, most, full)
            thinned = max(thinned, step)
    return thinned


def fit_tree(fig: go.Figure, width: float, columns: float, k: float) -> None:
    """Cut the labels of a tree to their columns, and give its branches a width."""
    room = max(5, int(width / columns * TREE_RUN / (k * CHARACTER)))
    for trace in fig.data:
        if trace.meta == TREE_TEXT:
            trace.textfont.size = k
            trace.text = [_tree_label(words, share, room) for words, share in trace.customdata]
        elif isinstance(trace.meta, dict) and TREE_BRANCH in trace.meta:
            trace.line.width = max(0.12 * k, 0.75 * k * float(trace.meta[TREE_BRANCH]))


def _tree_label(words: str, share: str, room: int) -> str:
    share = share if len(share) + 4 <= room else share.split(" ")[0]
    most = max(3, room - len(share) - 1)
    words = cut(words, most)
    return f"{safe(words)} <i>{share}</i>"


def _same(panels: list[dict], which: str) -> bool:
    return len({panel[which] for panel in panels}) == 1


def _bar_title(fig: go.Figure) -> str:
    bar = colour_bar(fig)
    return read(str(bar.colorbar.title.text or "").replace("<br>", " ")) if bar is not None else ""


def _bar_length(measures: FigureMeasures, f: float) -> float:
    return min(measures.rows * measures.panel_height + (measures.rows - 1) * measures.gap_y, 24 * f)


def _title(lines: list[str], size: theme.Preset, width: float, height: float) -> dict:
    # Plotly puts the last line, not the first, where the title is anchored
    pad, below = 0.6 * size.font, 1.3 * size.title * max(0, len(lines) - 1)
    return {
        "text": _escaped(lines),
        "x": pad / width,
        "y": 1 - (pad + below) / height,
        "yanchor": "top",
        "yref": "container",
    }


def _title_lines(meta: dict, size: theme.Preset, width: int) -> list[str]:
    if not size.titled or not meta["title"]:
        return []
    return wrap(meta["title"], int((width - 1.2 * size.font) / (CHARACTER * size.title)))


def arrange_table(fig: go.Figure, meta: dict, size: theme.Preset, width: int, height: int | None) -> dict:
    """Write a table of words: every line is wrapped here, so that the rows have exactly the height they need. Rows
    beyond a page are left out. Returns what was left out (`page.FACTS`)."""
    k, pad = size.tick, 0.6 * size.font
    title_lines = _title_lines(meta, size, width)
    top = pad + 1.3 * size.title * len(title_lines) + (0.7 * size.title if title_lines else 0)
    room = width - 2 * pad
    rows = [meta["columns"], *meta["words"]]
    gap = 0.9 * k
    want = [max(columns_of(str(row[j])) for row in rows) * CHARACTER * k + gap for j in range(len(meta["columns"]))]
    words = [max((min(len(w), 13) for row in rows for w in str(row[j]).split()), default=1) for j in range(len(want))]
    need = [length * 1.08 * CHARACTER * k + gap for length in words]
    widths = _share(want, need, room)
    fig.layout.annotations, fig.layout.shapes = [], []
    y = 0.0
    annotations, lines, left_out = [], [], 0
    for number, row in enumerate(rows):
        cells = [_lines(wrap(str(cell), int((w - gap) / (CHARACTER * k)), least=3)) for cell, w in zip(row, widths)]
        tall = 1.35 * k * max(len(cell) for cell in cells) + 0.8 * k
        if number > 1 and top + y + tall + pad > (height or size.page):
            left_out = len(rows) - number
            break
        x = 0.0
        for cell, w in zip(cells, widths):
            text = _escaped(cell)
            annotations.append(
                {
                    "x": x + 0.4 * k,
                    "y": y + 0.4 * k,
                    "text": f"<b>{text}</b>" if number == 0 else text,
                    "xref": "x",
                    "yref": "y",
                    "xanchor": "left",
                    "yanchor": "top",
                    "align": "left",
                    "showarrow": False,
                    "font": {"size": k},
                }
            )
            x += w
        y += tall
        colour = theme.MUTED if number == 0 else theme.GRID
        lines.append(
            {
                "type": "line",
                "x0": 0,
                "x1": room,
                "y0": y,
                "y1": y,
                "xref": "x",
                "yref": "y",
                "line": {"width": 1, "color": colour},
            }
        )
    hidden = {"visible": False, "fixedrange": True}
    fig.update_layout(
        annotations=annotations,
        shapes=lines,
        height=round(height or top + y + pad),
        xaxis={"range": [0, room], **hidden},
        yaxis={"range": [(height - top - pad) if height else y, 0], **hidden},
        margin={"l": pad, "r": pad, "t": top, "b": pad},
        title=_title(title_lines, size, width, height or top + y + pad),
    )
    return {"rows_left_out": left_out}


def _lines(lines: list[str]) -> list[str]:
    """The first lines of a cell; an ellipsis where there are more."""
    return lines if len(lines) <= CELL_LINES else [*lines[: CELL_LINES - 1], lines[CELL_LINES - 1][:-1].rstrip() + "…"]


def _share(want: list[float], need: list[float], room: float) -> list[float]:
    """Column widths that fill ``room``: what each wants, or what is left after the narrow ones have been served."""
    if sum(want) <= room:
        return [w * room / sum(want) for w in want]
    limit = room / len(want)
    for _ in range(20):  # water filling
        widths = [max(n, min(w, limit)) for w, n in zip(want, need)]
        limit += (room - sum(widths)) / len(want)
    return [w * room / sum(widths) for w in widths]


def _escaped(lines: list[str]) -> str:
    """Lines as Plotly must be given them, which reads markup in every text."""
    return "<br>".join(safe(line) for line in lines)


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def _most_characters(width: float, k: float) -> int:
    """How long a name beside an axis may be: under a third of the width."""
    return max(8, int(0.31 * width / (CHARACTER * k)))


def _label_width(panel: dict, width: float, k: float) -> float:
    if panel["y_ticks"]:
        longest = max((len(t) for t in panel["y_ticks"]["text"]), default=1)
        return CHARACTER * k * min(longest, _most_characters(width, k))
    return CHARACTER * k * 4


def _x_labels(panels: list[dict], panel_width: float, k: float) -> tuple[float, float]:
    """The angle of the labels under a panel (0 where they fit side by side) and the height that they need."""
    angle, tall = 0.0, 1.3 * k
    for panel in panels:
        spec = panel["x_ticks"]
        if not spec or not spec["keep"] or not spec["text"]:
            continue
        longest = max(len(t) for t in spec["text"]) * CHARACTER * k
        cell = panel_width / len(spec["text"])
        if longest > 0.95 * cell:
            angle = max(angle, 40.0 if cell > 1.3 * k else 90.0)
            tall = max(tall, min(longest, 13 * k) * math.sin(math.radians(angle)) + k)
    return angle, tall


def _write_ticks(target, spec: dict, room: float, least: float | None, k: float, most: int, full: list[str]) -> int:
    """Write as many of the labels as fit, of at most so many characters: all names if there is room, whole numbers at a
    round step. Names that are cut are added to ``full``; returns every how-manieth name is written."""
    values, text = spec["values"], spec["text"]
    if least is None:
        least = (max((len(t) for t in text), default=1) + 1.2) * CHARACTER * k
    span = (max(values) - min(values) + 1) if values else 1
    step = 1
    if spec["keep"]:
        while len(values) / step * least > room * 1.02 and step < len(values):
            step += 1
        chosen = list(range(0, len(values), step))
    else:
        steps = (1, 2, 4, 8, 16, 32, 64, 128, 256) if span % 8 == 0 else (1, 2, 5, 10, 20, 50, 100, 200, 500)
        step = next((s for s in steps if span / s * least <= room), steps[-1])
        chosen = [i for i, v in enumerate(values) if v % step == 0]
    target.tickmode = "array"
    target.tickvals = [values[i] for i in chosen]
    broken = {name: _broken(name, most, spec.get("lines", 1)) for name in text}
    written = shorten_apart([name for name, lines in broken.items() if not lines], most)
    target.ticktext = [_escaped(broken[text[i]] or [written[text[i]]]) for i in chosen]
    full += [text[i] for i in chosen if len(text[i]) > most and not broken[text[i]]]
    return step if spec["keep"] else 1


def _broken(name: str, most: int, lines: int) -> list[str]:
    """A name that is too long for one line in several; nothing where it fits into one, or into no so many."""
    if len(name) <= most or lines < 2:
        return []
    found = wrap(name, most, least=1)
    return found if len(found) <= lines else []


def _write_titles(fig: go.Figure, panels: list[dict], k: float, most: int, full: list[str]) -> None:
    kept = [a for a in fig.layout.annotations if a.name != PANEL_TITLE]
    written = shorten_apart([panel["title"] for panel in panels], max(12, most))
    for i, panel in enumerate(panels):
        if panel["title"]:
            suffix = "" if i == 0 else str(i + 1)
            cut_short = len(panel["title"]) > max(12, most)
            full += [panel["title"]] if cut_short else []
            kept.append(
                go.layout.Annotation(
                    name=PANEL_TITLE,
                    text=_escaped([written[panel["title"]]]),
                    hovertext=_escaped([panel["title"]]) if cut_short else None,
                    xref=f"x{suffix} domain",
                    yref=f"y{suffix} domain",
                    x=0,
                    y=1,
                    xanchor="left",
                    yanchor="bottom",
                    yshift=0.15 * k,
                    showarrow=False,
                    font={"size": k, "color": theme.INK},
                )
            )
    fig.layout.annotations = kept


def _fit_cells(fig: go.Figure, meta: dict, width: float, height: float, k: float) -> None:
    """Size the labels inside cells and the outlines around them; leave labels out where they could not be read."""
    if not meta["cells"]:
        return
    rows, columns = meta["cells"]
    for trace in fig.data:
        if trace.meta == CELL_MARK:
            edge = min(0.16 * k, 0.14 * min(width / columns, height / rows))
            trace.marker.line.width = [edge if w else 0 for w in trace.marker.line.width]
        if trace.meta == CELL_TEXT:
            longest = max((len(str(t)) for t in trace.text), default=1) or 1
            fits = min(k, 0.7 * height / rows, 0.9 * width / columns / (CHARACTER * 1.1 * longest))
            trace.visible = bool(fits >= 0.72 * k)
            trace.textfont.size = max(fits, 1)


def colour_bar(fig: go.Figure):
    """The colour axis that is shown, or None."""
    if any(t.type == "bar" and t.marker.coloraxis or t.type == "scatter" and t.marker.coloraxis for t in fig.data):
        if fig.layout.coloraxis.showscale is not False:
            return fig.layout.coloraxis
    return None


def _legend_entries(fig: go.Figure) -> list[str]:
    """What the legend lists; nothing for a single entry, which says no more than the title."""
    entries, groups = [], set()
    for trace in fig.data:
        if trace.showlegend is False or not trace.name or trace.type == "table":
            continue
        if trace.legendgroup:
            if trace.legendgroup in groups:
                continue
            groups.add(trace.legendgroup)
        entries.append(trace.name)
    return entries if len(entries) > 1 else []


def _entry_width(entry: str, k: float) -> float:
    return len(read(entry)) * CHARACTER * k + 4.6 * k


def _legend_rows(entries: list[str], room: float, k: float) -> int:
    """How many rows the legend takes. Plotly gives all entries the width of the longest once they do not fit in one
    row."""
    if not entries:
        return 0
    widths = [_entry_width(e, k) for e in entries]
    if sum(widths) <= room:
        return 1
    return math.ceil(len(entries) / max(1, int(room // max(widths))))
