"""Figures as files: PDF, SVG and PNG through Chromium, HTML and CSV without it; a caption and the BibTeX beside each.

One browser serves all figures of a call (workbench/figures/drawing.py).
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError, WorkbenchError
from workbench.core.files import TEMPORARY, write_bytes
from workbench.core.private import make_folder
from workbench.core.wording import one_line
from workbench.figures import coloured_heads
from workbench.figures import style as theme
from workbench.figures.browser import browser
from workbench.figures.captions import caption
from workbench.figures.drawing import Picture, draw
from workbench.figures.layout import dressed
from workbench.figures.plotly_text import read

if TYPE_CHECKING:
    import plotly.graph_objects as go

DRAWN = ("pdf", "svg", "png")  # need Chromium
PLAIN = ("html", "csv")
FORMATS = DRAWN + PLAIN
PNG_SCALE = {"single": 600 / 96, "double": 600 / 96, "slide": 2, "screen": 2}  # 600 dots per inch in print
CAPTION = ".caption.txt"


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

    The file is complete or absent, and replaces one of its name. Raises InputError for an unknown format,
    WorkbenchError where there is no Chromium, or none that draws in time, and where the file cannot be written.
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
    colour: tuple[Any, str | None] | None = None,
    progress: Any = None,
) -> list[Path]:
    """Write the figures of a run, each with ``NAME.caption.txt`` and ``NAME.bib`` beside it; returns the files.

    ``out``: the folder, ``figures/`` in the run's folder where None; files of ours in it are replaced, a file of one of
    their names that is not ours is an InputError. ``only``: the name of one figure, or several.
    ``colour``: another run, and a column of its scores of heads (None: the main one); those figures that show heads are
    drawn in these colours and called after the column. ``progress(done, total, label)`` is called per drawn file. Where
    a drawn format is asked for and there is no Chromium, html, csv, captions and BibTeX are written before the
    WorkbenchError is raised.
    """
    from workbench.figures import build

    formats = _formats(formats, preset)
    figures = build(run)
    if only is not None:
        wanted = [only] if isinstance(only, str) else list(only)
        figures = {name: figures[name] if name in figures else build(run, name)[name] for name in wanted}
    more, entry = "", bibtex(run)
    if colour is not None:
        other, column = colour
        figures = coloured_heads.all_coloured(figures, run, other, column)
        more, entry = f" {coloured_heads.in_words(other)}", "\n".join(dict.fromkeys((entry, bibtex(other))))
    words = {name: caption(run, dressed(fig, mode=mode, preset=preset)) + more for name, fig in figures.items()}
    folder = place_for(figures, formats, run, out)
    return write_figures(
        figures, words, folder, formats=formats, entry=entry, preset=preset, mode=mode, progress=progress
    )


def place_for(
    names: Sequence[str] | Mapping[str, Any], formats: Sequence[str], run: Any, out: str | Path | None
) -> Path:
    """The folder that figures of these names are written to, once it is sure that nothing of others is overwritten.

    A file of one of their names is ours where its caption lies beside it; in the run's own folder all are."""
    if out is None:
        return Path(run.folder) / "figures"
    folder = Path(out)
    if not str(out).strip() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"'{out}' is no folder; choose another for the figures with --out.")
    for name in names:
        if (folder / f"{name}{CAPTION}").exists():
            continue
        for suffix in (*formats, "bib"):
            if (folder / f"{name}.{suffix}").exists():
                raise InputError(
                    f"{folder / name}.{suffix} is there already and is not ours (no {name}{CAPTION} lies beside it); "
                    f"move it, or choose another folder with --out."
                )
    return folder


def write_figures(
    figures: Mapping[str, go.Figure],
    captions: Mapping[str, str],
    folder: Path,
    *,
    formats: Sequence[str],
    entry: str = "",
    preset: str = "single",
    mode: str = "light",
    progress: Any = None,
) -> list[Path]:
    """Write figures by name with their captions and the BibTeX ``entry``; what needs no browser first, so that its
    absence costs nothing else. Leftovers of an export that was killed go."""
    formats = _formats(formats, preset)
    written: list[Path] = []
    for name in figures:
        for suffix in (CAPTION.lstrip("."), "bib", *formats):
            _sweep(folder / f"{name}.{suffix}")
        written.append(_text(folder / f"{name}{CAPTION}", captions[name] + "\n"))
        if entry:
            written.append(_text(folder / f"{name}.bib", entry + "\n"))
    for group in (PLAIN, DRAWN):
        jobs = [(fig, f, folder / f"{name}.{f}") for name, fig in figures.items() for f in formats if f in group]
        if jobs:
            words = {id(fig): captions[name] for name, fig in figures.items()}
            _write(jobs, preset=preset, mode=mode, captions=words, progress=progress)
            written += [path for _, _, path in jobs]
    return written


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
        text, base = _list(trace.text), _list(trace.base) if trace.type == "bar" else []
        custom = _list(trace.customdata)
        words = custom if all(isinstance(one, str) for one in custom) else []
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
                    "trace": read(trace.name or ""),
                    "panel": panel,
                    "x": x[j],
                    "y": base[j] + 0.465 if cell and j < len(base) else (y[j] if j < len(y) else None),
                    "low": low,
                    "high": high,
                    "value": colour[j] if j < len(colour) else None,
                    "text": next(
                        (read(str(own[j])) for own in (text, words) if j < len(own)),
                        None,
                    ),
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


def _write(jobs, *, preset, mode, width=None, height=None, captions=None, progress=None) -> None:
    pictures = []
    made: dict[int, Any] = {}
    if any(format in DRAWN for _, format, _ in jobs):
        browser()  # a clear error before anything is drawn
    for fig, format, path in jobs:
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
    draw(pictures, save=_bytes, progress=progress)


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


def _formats(names: Sequence[str], preset: str) -> list[str]:
    formats = [_format(name) for name in dict.fromkeys(names)]
    if not formats:
        raise InputError(f"No format was named; the formats are {', '.join(FORMATS)}.")
    if preset not in theme.PRESETS:
        raise InputError(f"There is no figure size '{preset}'; the sizes are {', '.join(theme.PRESETS)}.")
    return formats


def _format(name: str) -> str:
    name = name.lower()
    if name not in FORMATS:
        raise InputError(f"There is no figure format '{name}'; the formats are {', '.join(FORMATS)}.")
    return name


def _text(path: Path, text: str) -> Path:
    return _bytes(path, text.encode())


def _bytes(path: Path, data: bytes) -> Path:
    try:
        make_folder(path.parent)
        try:
            write_bytes(path, data)
        except FileNotFoundError:  # another export swept our temporary file as a leftover
            write_bytes(path, data)
    except OSError as error:
        raise WorkbenchError(
            f"{path} cannot be written ({error.strerror or one_line(error)}); make room, or choose another folder "
            f"with --out."
        ) from error
    return path


def _sweep(path: Path) -> None:
    """Remove what an export that was killed while it wrote a file left of it."""
    if path.parent.is_dir():
        for left in path.parent.iterdir():
            if left.name.startswith(f".{path.name}{TEMPORARY}"):
                with contextlib.suppress(OSError):
                    left.unlink()


def _list(values: Any) -> list:
    if values is None or isinstance(values, (str, int, float)):
        return []
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _band_ends(band: Any) -> dict[float, tuple[float, float]]:
    x, y = _list(band.x), _list(band.y)
    half = len(x) // 2
    return {x[j]: (y[len(y) - 1 - j], y[j]) for j in range(half)}
