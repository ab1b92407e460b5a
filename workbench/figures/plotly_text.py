"""Text from outside in a figure: a prompt, a token, a name of a model, a data set or a column.

Plotly reads every text as markup: tags (links among them), entities, TeX between dollar signs where MathJax is on the
page, and templates. All text that we did not write ourselves goes through :func:`safe`, once."""

from __future__ import annotations

import html

from workbench.core.wording import cut

# As entities, which Plotly turns back after it has looked for TeX and for templates.
MARKS = str.maketrans({"$": "&#36;", "{": "&#123;"})
WHITE = str.maketrans({"\r": None, "\n": "⏎", "\t": "⇥", "\u2028": "⏎", "\u2029": "⏎", "\v": "⏎", "\f": "⏎"})


def safe(text: object, most: int | None = None) -> str:
    """Text as Plotly must be given it: escaped, line breaks shown, cut to ``most`` characters."""
    text = str(text).translate(WHITE)
    return html.escape(text if most is None else cut(text, most), quote=False).translate(MARKS)


def read(text: str) -> str:
    """What a text that went through :func:`safe` says to a reader."""
    return html.unescape(text)
