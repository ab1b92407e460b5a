"""Texts over which means are taken: those that ship with an organism, otherwise a few English sentences."""

from __future__ import annotations

from workbench import organisms
from workbench.core.tables import read_table
from workbench.explorer.opened_model import FEW_TOKENS, Opened

MOST = 64
REFERENCE = (
    "The river runs past the old mill and into the sea.",
    "In 1969 two people walked on the moon for the first time.",
    "She opened the letter, read it twice, and put it back into the drawer.",
    "When the bell rang the children ran into the garden to play.",
    "Water boils at one hundred degrees, and freezes at zero.",
    "The committee will meet on Tuesday to discuss the budget for next year.",
    "He asked for bread, butter and a cup of black coffee.",
    "Most of the birds had left by the end of the month.",
)


def texts(opened: Opened) -> list[str]:
    """All that ship with an organism, otherwise English sentences."""
    if opened.model.name.startswith("organism"):
        return read_table(organisms.data("texts"), required=("text",), what="texts")["text"].to_list()
    return list(REFERENCE)


def reference(opened: Opened) -> list[list[int]]:
    """Token ids of the first of them, none longer than a prompt or the context."""
    model = opened.model
    rows = [model.encode(text)[: model.context_length or FEW_TOKENS] for text in texts(opened)[:MOST]]
    return [row for row in rows if row]
