"""Figures as files: PDF, SVG and PNG through Chromium, HTML and CSV without it; a caption and the BibTeX beside each.

One browser serves all figures of a call. Chromium runs headless and without its sandbox (Kaleido's default, and the
only way that works as root in a container); it is given our own pages only, and no network is used: Plotly's script
comes from the installed package and MathJax is switched off.
"""

from __future__ import annotations

import asyncio
import html
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError, WorkbenchError
from workbench.core.files import write_bytes
from workbench.core.private import make_folder
from workbench.figures import style as theme
from workbench.figures.browser import browser
from workbench.figures.layout import dressed
from workbench.figures.run_tables import info, model_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

DRAWN = ("pdf", "svg", "png")  # need Chromium
PLAIN = ("html", "csv")
FORMATS = DRAWN + PLAIN
PNG_SCALE = {"single": 600 / 96, "double": 600 / 96, "slide": 2, "screen": 2}  # 600 dots per inch in print
SECONDS_PER_FIGURE = 120


@dataclass(frozen=True)
class Picture:
    """One file to draw: a figure that is already dressed, the format and where it goes."""

    figure: Any
    format: str
    path: Path
    scale: float = 1.0


def export(
    fig: go.Figure,
    path: str | Path,
    *,
    format: str | None = None,
    preset: str = "double",
    mode: str = "light",
    width: int | None = None,
    height: int | None = None,
) -> Path:
    """Write one figure to ``path`` in the format of its suffix (or ``format``), at the size of ``preset``.

    The file is complete or absent. Raises InputError for an unknown format, WorkbenchError where there is no Chromium.
    """
    path = Path(path)
    format = _format(format or path.suffix.lstrip("."))
    _write([(fig, format, path)], preset=preset, mode=mode, width=width, height=height)
    return path


def export_run(
    run: Any,
    *,
    formats: Sequence[str] = ("pdf",),
    preset: str = "single",
    mode: str = "light",
    out: str | Path | None = None,
    only: str | Sequence[str] | None = None,
    progress: Any = None,
) -> list[Path]:
    """Write the figures of a run, each with ``NAME.caption.txt`` and ``NAME.bib`` beside it; returns the files.

    ``out``: the folder, ``figures/`` in the run's folder where None. ``only``: the name of one figure, or several.
    ``progress(done, total, label)`` is called per drawn file. Where a drawn format is asked for and there is no
    Chromium, html, csv, captions and BibTeX are written before the WorkbenchError is raised.
    """
    from workbench.figures import build

    formats = [_format(f) for f in dict.fromkeys(formats)]
    if not formats:
        raise InputError(f"No format was named; the formats are {', '.join(FORMATS)}.")
    if preset not in theme.PRESETS:
        raise InputError(f"There is no figure size '{preset}'; the sizes are {', '.join(theme.PRESETS)}.")
    figures = build(run)
    if only is not None:
        wanted = [only] if isinstance(only, str) else list(only)
        figures = {name: figures[name] if name in figures else build(run, name)[name] for name in wanted}
    folder = Path(out) if out is not None else Path(run.folder) / "figures"
    written: list[Path] = []
    entry = bibtex(run)
    for name, fig in figures.items():
        written.append(_text(folder / f"{name}.caption.txt", caption(run, fig) + "\n"))
        if entry:
            written.append(_text(folder / f"{name}.bib", entry + "\n"))
    # what needs no browser first, so that its absence costs nothing else
    for group in (PLAIN, DRAWN):
        jobs = [(fig, f, folder / f"{name}.{f}") for name, fig in figures.items() for f in formats if f in group]
        if jobs:
            words = {id(fig): caption(run, fig) for fig in figures.values()}
            _write(jobs, preset=preset, mode=mode, captions=words, progress=progress)
            written += [path for _, _, path in jobs]
    return written


def caption(run: Any, fig: go.Figure) -> str:
    """What a reader must know of a figure: what it shows, model and revision, data, seed, n, interval."""
    meta = fig.layout.meta if isinstance(fig.layout.meta, Mapping) else {}
    sentences = [str(meta.get("title") or "").rstrip(".")]
    if meta.get("note"):
        sentences.append(str(meta["note"]).rstrip("."))
    model = f"Model: {model_name(run)}"
    revision = info(run, "model", "revision")
    model += f", revision {revision}" if revision else ""
    adapter = info(run, "model", "adapter", "path")
    model += f", with the adapter {Path(str(adapter)).name} merged" if adapter else ""
    fingerprint = info(run, "model", "fingerprint")
    model += f", weights {str(fingerprint)[:12]}" if fingerprint else ""
    dtype = info(run, "model", "dtype")
    sentences.append(model + (f", {str(dtype).removeprefix('torch.')}" if dtype else ""))
    source = info(run, "data", "path") or info(run, "data", "name")
    if source:
        rows = info(run, "data", "rows")
        data = f"Data: {Path(str(source)).name}" + (f", {rows} rows" if rows else "")
        mark = info(run, "data", "fingerprint")
        sentences.append(data + (f" ({str(mark)[:12]})" if mark else ""))
    seed = info(run, "seed")
    if seed is not None:
        sentences.append(f"Seed {seed}")
    if meta.get("n") not in (None, ""):
        sentences.append(f"n = {meta['n']}")
    if meta.get("interval"):
        sentences.append(f"Intervals: {str(meta['interval']).rstrip('.')}")
    name = info(run, "id")
    if name:
        sentences.append(f"Run {name}")
    return ". ".join(p for p in sentences if p) + "."


def bibtex(run: Any) -> str:
    """The BibTeX entries of the run's method; empty where the probe is not installed here."""
    from workbench.core import registry
    from workbench.figures import probe_name

    try:
        return registry.get(probe_name(run)).bibtex
    except WorkbenchError:
        return ""


def data_of(fig: go.Figure) -> Any:
    """What is drawn, as a table: trace, panel, x, y, low, high, value, text, one row per point; or the words of a
    table."""
    import polars as pl

    from workbench.figures.layout import CELL_TEXT

    if isinstance(fig.layout.meta, Mapping) and "words" in fig.layout.meta:
        return pl.DataFrame(
            [list(row) for row in fig.layout.meta["words"]], schema=list(fig.layout.meta["columns"]), orient="row"
        )

    panels = (fig.layout.meta or {}).get("panels", [{}]) if isinstance(fig.layout.meta, Mapping) else [{}]
    rows: list[dict[str, Any]] = []
    for trace in fig.data:
        if trace.meta == CELL_TEXT or trace.type not in ("scatter", "bar"):
            continue
        if trace.type == "scatter" and trace.fill == "toself":
            continue  # the band: its ends are below, with the line
        x, y = _list(trace.x), _list(trace.y)
        index = int((trace.xaxis or "x")[1:] or 1) - 1
        panel = panels[index].get("title", "") if index < len(panels) else ""
        band = next(
            (
                t
                for t in fig.data
                if t.type == "scatter"
                and t.fill == "toself"
                and t.name == trace.name
                and t.xaxis == trace.xaxis
                and trace.mode != "markers"
            ),
            None,
        )
        ends = _band_ends(band) if band is not None else {}
        colour = _list(trace.marker.color) if trace.marker.coloraxis else []
        text, base, custom = (
            _list(trace.text),
            _list(trace.base) if trace.type == "bar" else [],
            _list(trace.customdata),
        )
        sideways = trace.error_x.array is not None
        error, centre = (trace.error_x, x) if sideways else (trace.error_y, y)
        plus, minus = _list(error.array), _list(error.arrayminus)
        for j in range(len(x)):
            low, high = ends.get(x[j], (None, None))
            if j < len(plus) and j < len(minus) and plus[j] is not None and centre[j] is not None:
                low, high = centre[j] - minus[j], centre[j] + plus[j]
            cell = bool(base) and trace.orientation != "h"
            rows.append(
                {
                    "trace": trace.name or "",
                    "panel": panel,
                    "x": x[j],
                    "y": base[j] + 0.465 if cell and j < len(base) else (y[j] if j < len(y) else None),
                    "low": low,
                    "high": high,
                    "value": colour[j] if j < len(colour) else None,
                    "text": str(text[j])
                    if j < len(text)
                    else (str(custom[j]) if j < len(custom) and isinstance(custom[j], str) else None),
                }
            )
    names = {
        "trace": pl.String,
        "panel": pl.String,
        "x": pl.Float64,
        "y": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "value": pl.Float64,
        "text": pl.String,
    }
    return pl.DataFrame([{k: row.get(k) for k in names} for row in rows], schema=names, strict=False)


def draw(pictures: Sequence[Picture], *, progress: Any = None) -> None:
    """Draw files with one browser. Raises WorkbenchError when there is none or when it fails."""
    if not pictures:
        return
    browser()  # a clear error before anything is started
    for name in ("kaleido", "choreographer"):  # what goes wrong is said below, in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    left = list(pictures)
    for attempt in (1, 2):
        try:
            _in_own_loop(_draw_all(left, len(pictures), progress))
            return
        except (WorkbenchError, OSError):
            raise
        except Exception as error:
            # a message lost between Kaleido and Chromium stalls one figure; a fresh browser draws it
            if attempt == 2:
                said = str(error).strip().splitlines()
                reason = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
                raise WorkbenchError(
                    f"Chromium could not draw {left[0].path.name} ({reason}); 'workbench doctor' checks the "
                    f"browser, and html and "
                    "csv work without it."
                ) from error


async def _draw_all(left: list[Picture], total: int, progress: Any) -> None:
    """Draw with one browser; what is done leaves the list."""
    from kaleido import Kaleido

    async with Kaleido(n=1, mathjax=False, timeout=SECONDS_PER_FIGURE, path=browser()) as kaleido:
        while left:
            picture = left[0]
            if progress is not None:
                progress(total - len(left), total, picture.path.name)
            layout = picture.figure.layout
            options = {
                "format": picture.format,
                "scale": picture.scale,
                "width": int(layout.width),
                "height": int(layout.height),
            }
            _bytes(picture.path, await kaleido.calc_fig(picture.figure.to_dict(), opts=options))
            left.pop(0)
    if progress is not None:
        progress(total, total, "")


def _write(jobs, *, preset, mode, width=None, height=None, captions=None, progress=None) -> None:
    pictures = []
    made: dict[int, Any] = {}
    for fig, format, path in jobs:
        make_folder(path.parent)
        if format == "csv":
            _text(path, data_of(fig).write_csv())
            continue
        if format == "html":  # a page: on the screen, as wide as its window
            ready = dressed(fig, mode=mode, preset="screen", width=width, height=height)
            _text(path, _page(ready, mode, (captions or {}).get(id(fig), "")))
            continue
        if id(fig) not in made:
            made[id(fig)] = dressed(fig, mode=mode, preset=preset, width=width, height=height)
        ready = made[id(fig)]
        if ready.layout.width is None:  # a screen figure has the width of its page
            ready.update_layout(width=width or theme.PRESETS[preset].width, autosize=False)
        pictures.append(Picture(ready, format, path, PNG_SCALE[preset] if format == "png" else 1.0))
    draw(pictures, progress=progress)


def _page(fig: Any, mode: str, words: str) -> str:
    """A page with the figure and its caption, Plotly's script inside; narrower windows scroll, panels do not
    collapse."""
    paper, ink = (theme.PAPER, theme.INK) if mode == "light" else (theme.PAPER_DARK, theme.INK_DARK)
    several = isinstance(fig.layout.meta, Mapping) and len(fig.layout.meta.get("panels", [])) > 1
    body = fig.to_html(include_plotlyjs=True, full_html=False, config={"responsive": True, "displaylogo": False})
    title = html.escape(str((fig.layout.meta or {}).get("title", "")) if isinstance(fig.layout.meta, Mapping) else "")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ margin: 16px; background: {paper}; color: {ink}; font: 14px/1.5 {theme.FONT}; }}
.figure {{ min-width: {theme.PRESETS["screen"].width if several else 480}px; }} p {{ max-width: 60em; }}</style></head>
<body><div class="figure">{body}</div><p>{html.escape(words)}</p></body></html>
"""


def _in_own_loop(coroutine) -> None:
    """Run to the end, also where a loop is already running (notebooks)."""
    from threading import Thread

    problem: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(coroutine)
        except BaseException as error:  # handed to the caller's thread
            problem.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]


def _format(name: str) -> str:
    name = name.lower()
    if name not in FORMATS:
        raise InputError(f"There is no figure format '{name}'; the formats are {', '.join(FORMATS)}.")
    return name


def _text(path: Path, text: str) -> Path:
    return _bytes(path, text.encode())


def _bytes(path: Path, data: bytes) -> Path:
    make_folder(path.parent)
    write_bytes(path, data)
    return path


def _list(values: Any) -> list:
    if values is None or isinstance(values, (str, int, float)):
        return []
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _band_ends(band: Any) -> dict[float, tuple[float, float]]:
    x, y = _list(band.x), _list(band.y)
    half = len(x) // 2
    return {x[j]: (y[len(y) - 1 - j], y[j]) for j in range(half)}
