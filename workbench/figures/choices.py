"""What can be chosen of one figure: a figures module offers it in ``CHOICES``, a screen draws a box for each.

def of_layer(run, chosen):
    return [Choice("layer", "Layer", {str(i): i for i in layers(run)}, "Whose heads are drawn.")]

CHOICES = {"profile": of_layer}  # FIGURES["profile"](run, layer=...) draws it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One keyword of a figure's function. ``options``: what is shown -> the value; the first is what the figure has
    when nothing is chosen. A choice may depend on those before it, by what is chosen so far."""

    keyword: str
    label: str
    options: Mapping[str, Any]
    help: str
