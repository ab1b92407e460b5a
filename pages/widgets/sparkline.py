"""A curve as small as a word."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pages.widgets import styling

WIDTH, HEIGHT, EDGE = 120, 24, 4


def svg(
    x: Sequence[float], y: Sequence[float | None], *, at: float | None = None, ends: tuple[float, float] | None = None
) -> str:
    """A line through the points, broken where there is no value, a point at ``at``; ``ends``: of the scale upwards."""
    known = [(a, float(b)) for a, b in zip(x, y) if b is not None and math.isfinite(b)]
    if not known:
        return ""
    low, high = ends if ends else styling.span([b for _, b in known])
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
    colour = styling.accent()
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
            drawn += "<circle cx='{}' cy='{}' r='3' fill='{}'/>".format(*place(a, b), styling.contrast())
    words = f"from {min(b for _, b in known):.3g} to {max(b for _, b in known):.3g}"
    return (
        f"<svg width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        f"aria-label='{words}'>{drawn}</svg>"
    )
