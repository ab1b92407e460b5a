"""A curve as small as a word, as SVG."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from workbench.figures import style as theme

WIDTH, HEIGHT, EDGE = 120, 24, 4


def svg(
    x: Sequence[float],
    y: Sequence[float | None],
    *,
    at: float | None = None,
    ends: tuple[float, float] | None = None,
    colours: tuple[str, str] = (theme.BLUE, theme.OCHRE),
) -> str:
    """A line through the points, broken where there is no value, a point at ``at``; ``ends``: of the scale upwards;
    ``colours``: of the line and of that point. Nothing where no value is finite."""
    known = [(a, float(b)) for a, b in zip(x, y) if b is not None and math.isfinite(b)]
    if not known:
        return ""
    low, high = ends if ends else span([b for _, b in known])
    first, last = min(x), max(x)

    def place(a: float, b: float) -> tuple[str, str]:
        across = EDGE + (WIDTH - 2 * EDGE) * ((a - first) / (last - first) if last > first else 0.5)
        return f"{across:.1f}", f"{HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (b - low) / (high - low):.1f}"

    lines, line = [], []
    for a, b in zip(x, y):
        if b is None or not math.isfinite(b):
            line = []
            continue
        if not line:
            lines.append(line)
        line.append(",".join(place(a, float(b))))
    colour = colours[0]
    drawn = "".join(
        f"<polyline points='{' '.join(line)}' fill='none' stroke='{colour}' stroke-width='1.5'/>"
        for line in lines
        if len(line) > 1
    )
    drawn += "".join(
        "<circle cx='{}' cy='{}' r='1.5' fill='{}'/>".format(*line[0].split(","), colour)
        for line in lines
        if len(line) == 1
    )
    for a, b in known:
        if a == at:
            drawn += "<circle cx='{}' cy='{}' r='3' fill='{}'/>".format(*place(a, b), colours[1])
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}' "
        f"viewBox='0 0 {WIDTH} {HEIGHT}'>{drawn}</svg>"
    )


def image(drawn: str, *, said: str = "") -> str:
    """A drawing as an image inside HTML, with what it says in words; nothing for no drawing."""
    data = base64.b64encode(drawn.encode()).decode()
    return f"<img src='data:image/svg+xml;base64,{data}' alt='{html.escape(said, quote=True)}'>" if drawn else ""


def span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a scale from the least to the most of the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
