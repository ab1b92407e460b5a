"""Tokens as HTML, shaded by a number of each: passages of a feature, for a web page. Everything that is text is
escaped. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

COLOUR = (0, 114, 178)  # the house blue


def tokens_html(tokens: Sequence[str], values: Sequence[float], *, top: float | None = None, digits: int = 3) -> str:
    """One `<span>` per token, shaded by its value from 0 (clear) to `top` (full; None: the largest value), the value as
    its title.

    The text colour is left to the page, so that it reads on light and dark grounds. Raises ValueError unless there is
    one value per token."""
    if len(tokens) != len(values):
        raise ValueError(f"There are {len(tokens)} tokens and {len(values)} values.")
    highest = max([float(v) for v in values], default=0.0) if top is None else float(top)
    spans = []
    for token, value in zip(tokens, values):
        share = min(1.0, max(0.0, float(value) / highest)) if highest > 0 else 0.0
        shade = f"background:rgba({COLOUR[0]},{COLOUR[1]},{COLOUR[2]},{0.65 * share:.3f});" if share > 0 else ""
        text = escape(str(token), quote=True).replace("\n", "⏎")
        spans.append(
            f'<span style="{shade}border-radius:2px;white-space:pre-wrap" '
            f'title="{float(value):.{digits}g}">{text}</span>'
        )
    return "".join(spans)
