"""What the figures need to know of a run: its conditions and how they look, its prompts, its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from workbench.figures import style as theme
from workbench.figures.run_tables import maybe, model_name

INTERVAL = "95 % bootstrap over prompts and samples"
LABEL = "branching factor"


def looks(names: Sequence[str]) -> dict[str, theme.Style]:
    """Models keep their colour; conditions of one model are told apart by the order in which they are listed."""
    styles = theme.styles(names)
    if len({style.colour for style in styles.values()}) == len(styles):
        return styles
    return theme.sequence(names)


def with_condition(frame: pl.DataFrame, run: Any) -> pl.DataFrame:
    """A table with the column `condition`: the model, where it has none."""
    return frame if "condition" in frame.columns else frame.with_columns(condition=pl.lit(model_name(run)))


def size(run: Any) -> str | None:
    """How much was sampled, for the caption."""
    frame = maybe(run, "prompts", ("prompt", "samples"))
    if frame is None or frame.is_empty():
        return None
    return f"{frame['prompt'].n_unique()} prompts × {frame['samples'].max()} samples"


def prompt_names(frame: pl.DataFrame) -> dict[Any, str]:
    """What to call each prompt: its text where the table has it, else its number."""
    texts = frame["text"].to_list() if "text" in frame.columns else frame["prompt"].to_list()
    return {
        p: " ".join(str(t).split()) if "text" in frame.columns or isinstance(p, str) else f"prompt {p}"
        for p, t in zip(frame["prompt"], texts)
    }
