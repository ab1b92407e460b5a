"""The house style: colours, scales, sizes, and the Plotly templates made of them.

Figures are built once, in the light colours of this module and without any size;
:func:`workbench.figures.layout.dressed` turns one into its light or dark form at a given width. The seven hues keep
apart under normal, deuteranopic, protanopic and tritanopic vision and have a contrast of at least 2.8 against white
(their dark forms of at least 3.4 against the dark background); the tests compute both. Beyond seven items, dash and
marker tell them apart.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# ---- colours. Every light colour has exactly one dark form; no light colour appears twice.
BLUE, RED, OCHRE, GREEN, PURPLE, SKY, MAUVE = PALETTE = (
    "#2666E1",
    "#CC463C",
    "#D28813",
    "#12491F",
    "#67048E",
    "#3BA2E6",
    "#915490",
)
PALETTE_DARK = ("#5C78F0", "#F78716", "#FBE14A", "#38C19A", "#BA90F2", "#A0F0FC", "#B9608F")
PAPER, PAPER_DARK = "#FFFFFF", "#0E1117"
INK, INK_DARK = "#1B1E25", "#ECEEF2"  # text
MUTED, MUTED_DARK = "#5B6270", "#A6ADBB"  # axis lines, secondary text
GRID, GRID_DARK = "#E4E6EB", "#272C37"
NEUTRAL, NEUTRAL_DARK = "#7C828D", "#8B919D"  # random controls, reference lines: never an item
MISSING, MISSING_DARK = "#DADCE1", "#3A404C"  # a cell without a value
ON_DARK, ON_LIGHT = "#FDFDFE", "#14161B"  # text on a dark and on a light cell; they change places in the dark form

# Perceptual: lightness falls (light form) or rises (dark form) evenly, so the scale also reads in grey.
SEQUENTIAL = ("#F8F7E9", "#CFE6D7", "#9CD3D1", "#6BBECE", "#46A4C6", "#3285B9", "#2A67A5", "#254C8C", "#1D326F")
SEQUENTIAL_DARK = ("#1A2140", "#203663", "#254E86", "#2D6AA3", "#3C8AB8", "#59AAC4", "#86C7CA", "#BBDFD1", "#F3F5DD")
# Diverging: zero is the colour of nothing. Negative is red-brown, positive blue.
DIVERGING = ("#8C2D12", "#BE5A3C", "#DB8F74", "#EEC3B1", "#F5F5F6", "#B4CBEF", "#779FDE", "#4475C5", "#1F4B9E")
DIVERGING_DARK = ("#FFB48C", "#E18257", "#AE5633", "#6A3827", "#20242D", "#254176", "#386AB7", "#6698E3", "#A5C8FF")

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down")
FONT = "Arial, Helvetica, 'Liberation Sans', 'DejaVu Sans', sans-serif"

_PAIRS = (
    *zip(PALETTE, PALETTE_DARK),
    (PAPER, PAPER_DARK),
    (INK, INK_DARK),
    (MUTED, MUTED_DARK),
    (GRID, GRID_DARK),
    (NEUTRAL, NEUTRAL_DARK),
    (MISSING, MISSING_DARK),
    (ON_DARK, ON_LIGHT),
    (ON_LIGHT, ON_DARK),
    *zip(SEQUENTIAL, SEQUENTIAL_DARK),
    *zip(DIVERGING, DIVERGING_DARK),
)
DARK_OF = dict(_PAIRS)

MODES = ("light", "dark")


# ---- sizes
def inches(value: float) -> int:
    """CSS pixels of a printed length (96 to the inch)."""
    return round(value * 96)


def points(value: float) -> float:
    """CSS pixels of a type size in printer's points (72 to the inch)."""
    return round(value * 4 / 3, 2)


@dataclass(frozen=True)
class Preset:
    """Sizes in CSS pixels at the width a figure is printed or shown at."""

    name: str
    width: int
    height: int | None  # None: follows from the panels
    font: float
    tick: float
    title: float
    line: float
    marker: float
    titled: bool  # papers put the title in the caption
    panel: int  # narrowest panel
    page: int = 900  # the most height that a figure takes by itself
    fluid: bool = False  # the page decides the width


PRESETS = {
    "single": Preset("single", inches(3.25), None, points(8), points(7.5), points(9), 1.4, 4.5, False, 215),
    "double": Preset("double", inches(6.75), None, points(8), points(7.5), points(9), 1.5, 5, False, 165),
    "slide": Preset("slide", 1280, 720, points(16), points(14), points(20), 3, 10, True, 290, page=720),
    "screen": Preset("screen", 900, None, 14, 12.5, 17, 2, 7, True, 215, fluid=True),
}


# ---- one item, one colour
@dataclass(frozen=True)
class Style:
    """How one item (a model, a head, a condition) is drawn."""

    colour: str
    dash: str = "solid"
    symbol: str = "circle"


# Fixed by the role they play in the methods, so that a role looks the same in every figure.
ROLES = {
    "top": BLUE,
    "retrieval": BLUE,
    "memory": BLUE,
    "context": RED,
    "random": NEUTRAL,
    "other": NEUTRAL,
    "control": NEUTRAL,
    "base": OCHRE,
    "aligned": BLUE,
    "attention": BLUE,
    "mlp": OCHRE,
    "organism": BLUE,
    "organism-chat": RED,
}


def colour(item: str) -> str:
    """The colour of an item, the same in every figure: by role where it has one, otherwise by its name alone.

    A model is named by the last part of its folder or hub id, without a revision, so that ``org/m``, ``/data/m`` and
    ``m@step-100`` agree.
    """
    key = str(item).rstrip("/").rsplit("/", 1)[-1].split("@")[0].strip().lower()
    if key in ROLES:
        return ROLES[key]
    return PALETTE[zlib.crc32(key.encode()) % len(PALETTE)]


def styles(items: Iterable[str]) -> dict[str, Style]:
    """A style for each item of one figure: its own fixed colour; items that share one differ in dash and marker."""
    used: dict[str, int] = {}
    result: dict[str, Style] = {}
    for item in items:
        if item in result:
            continue
        hue = colour(item)
        nth = used.get(hue, 0)
        used[hue] = nth + 1
        result[item] = Style(hue, DASHES[nth % len(DASHES)], SYMBOLS[nth % len(SYMBOLS)])
    return result


def sequence(items: Iterable[str]) -> dict[str, Style]:
    """Styles for the entries of a list that belongs to one figure only (datasets, methods, variants): the hues in
    order, then the same hues again with another dash and marker."""
    items = list(dict.fromkeys(items))
    n = len(PALETTE)
    return {
        item: Style(PALETTE[i % n], DASHES[(i // n) % len(DASHES)], SYMBOLS[(i // n) % len(SYMBOLS)])
        for i, item in enumerate(items)
    }


# ---- colour arithmetic
def rgb(value: str) -> tuple[int, int, int]:
    """(r, g, b) of '#RRGGBB'."""
    return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)


def alpha(value: str, opacity: float) -> str:
    """'#RRGGBB' as 'rgba(...)'; :func:`in_mode` still knows it."""
    return "rgba({},{},{},{:g})".format(*rgb(value), opacity)


_RGBA = re.compile(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)")


def in_mode(value: Any, mode: str) -> Any:
    """The same structure (of dicts, lists, strings) with every colour of this module in its form for ``mode``."""
    if mode == "light":
        return value
    if isinstance(value, str):
        if value in DARK_OF:
            return DARK_OF[value]
        match = _RGBA.fullmatch(value)
        if match:
            known = "#{:02X}{:02X}{:02X}".format(*(int(part) for part in match.groups()[:3]))
            return alpha(DARK_OF[known], float(match.group(4))) if known in DARK_OF else value
        return value
    if isinstance(value, dict):
        return {key: in_mode(item, mode) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_mode(item, mode) for item in value]
    if getattr(value, "dtype", None) is not None and value.dtype.kind in "OU":
        return [in_mode(item, mode) for item in value.tolist()]
    return value


def scale(colours: Iterable[str]) -> list[list]:
    """Evenly spaced Plotly colour scale."""
    colours = list(colours)
    return [[i / (len(colours) - 1), value] for i, value in enumerate(colours)]


def colour_at(colours: tuple[str, ...], position: float) -> str:
    """The colour of a scale at ``position`` in 0..1, interpolated as Plotly does (in sRGB)."""
    position = min(max(position, 0.0), 1.0) * (len(colours) - 1)
    i = min(int(position), len(colours) - 2)
    a, b, t = rgb(colours[i]), rgb(colours[i + 1]), position - i
    return "#{:02X}{:02X}{:02X}".format(*(round(x + (y - x) * t) for x, y in zip(a, b)))


def luminance(value: str) -> float:
    """Relative luminance (WCAG 2) of '#RRGGBB'."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb(value))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG contrast ratio of two colours."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def ink_on(value: str) -> str:
    """The text colour that reads on a light-form cell of this colour."""
    return ON_DARK if contrast(value, ON_DARK) >= contrast(value, ON_LIGHT) else ON_LIGHT


# ---- templates
def template(mode: str = "light", preset: str = "screen") -> dict:
    """The layout template of one mode and one size, as a plain dict."""
    size = PRESETS[preset]
    tick = {"size": size.tick, "color": MUTED}
    axis = {
        "showgrid": True,
        "gridcolor": GRID,
        "gridwidth": max(0.6, size.line / 3),
        "zeroline": False,
        "showline": True,
        "linecolor": MUTED,
        "linewidth": max(0.8, size.line / 2.5),
        "ticks": "outside",
        "ticklen": size.tick * 0.35,
        "tickwidth": max(0.8, size.line / 2.5),
        "tickcolor": MUTED,
        "tickfont": tick,
        "title": {"font": {"size": size.font, "color": INK}, "standoff": size.tick * 0.5},
        "automargin": True,
    }
    bar = {
        "thickness": size.font * 0.9,
        "thicknessmode": "pixels",
        "outlinewidth": 0,
        "ticks": "outside",
        "ticklen": size.tick * 0.3,
        "tickwidth": max(0.8, size.line / 2.5),
        "tickcolor": MUTED,
        "tickfont": tick,
        "title": {"font": {"size": size.font, "color": INK}, "side": "right"},
        "xpad": size.font * 0.6,
        "nticks": 6,
    }
    made = {
        "layout": {
            "font": {"family": FONT, "size": size.font, "color": INK},
            "title": {"font": {"size": size.title, "color": INK}, "x": 0, "xref": "container", "xanchor": "left"},
            "paper_bgcolor": PAPER,
            "plot_bgcolor": PAPER,
            "colorway": list(PALETTE),
            "colorscale": {
                "sequential": scale(SEQUENTIAL),
                "sequentialminus": scale(SEQUENTIAL[::-1]),
                "diverging": scale(DIVERGING),
            },
            "coloraxis": {"colorbar": bar},
            "xaxis": axis,
            "yaxis": axis,
            "hovermode": "closest",
            "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
            "legend": {"font": {"size": size.tick, "color": INK}, "bgcolor": "rgba(0,0,0,0)", "tracegroupgap": 0},
            "annotationdefaults": {"font": {"size": size.tick, "color": INK}, "showarrow": False},
            "shapedefaults": {"line": {"color": MUTED, "width": max(0.8, size.line / 2)}},
            "bargap": 0.2,
            "uniformtext": {"mode": False},
        },
        "data": {
            "scatter": [
                {
                    "line": {"width": size.line},
                    "marker": {"size": size.marker, "line": {"width": 0}, "colorbar": bar},
                    "error_y": {"thickness": size.line * 0.75, "width": size.marker * 0.5},
                    "error_x": {"thickness": size.line * 0.75, "width": size.marker * 0.5},
                    "textfont": {"size": size.tick, "color": INK},
                }
            ],
            "bar": [
                {
                    "marker": {"line": {"width": 0}, "colorbar": bar},
                    "error_y": {"thickness": size.line * 0.75, "width": size.marker * 0.5, "color": INK},
                    "error_x": {"thickness": size.line * 0.75, "width": size.marker * 0.5, "color": INK},
                    "textfont": {"size": size.tick},
                }
            ],
        },
    }
    return in_mode(made, mode)


def register() -> None:
    """Make ``workbench-light`` and ``workbench-dark`` known to Plotly under those names."""
    import plotly.graph_objects as go
    import plotly.io as pio

    for mode in MODES:
        name = f"workbench-{mode}"
        if name not in pio.templates:
            pio.templates[name] = go.layout.Template(template(mode))
