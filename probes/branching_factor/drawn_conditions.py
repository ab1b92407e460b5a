"""What the figures need to know of a run: its conditions and how they look, its prompts, its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from workbench.figures import style as theme
from workbench.figures.run_tables import maybe, model_name

INTERVAL = "95 % t over prompts, none below five"
LABEL = "branching factor"
PER_BYTE = "nats per byte"


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
    prompts = frame["prompt"].n_unique()
    counted = maybe(run, "conditions", ("prompts",))  # where several prompts of the file have the same words
    if counted is not None and counted["prompts"].max() is not None:
        prompts = counted["prompts"].max()
    return f"{prompts} prompts × {frame['samples'].max()} samples"


def joined(*sentences: str) -> str:
    """The sentences that there are, one after another."""
    return " ".join(filter(None, sentences))


def tokenizers_of(runs: Sequence[Any]) -> str:
    """What must be said where models of the runs cut text into different tokens, or may do so; "" where not. Runs of
    earlier versions do not say which tokenizer it was."""
    known, models, silent = set(), set(), False
    for run in runs:
        frame = maybe(run, "conditions", ("condition", "tokenizer"))
        models.add(model_name(run))
        known |= set() if frame is None else set(frame["tokenizer"].drop_nulls().to_list())
        silent |= frame is None
    if len(known) > 1:
        return (
            "The models cut text into different tokens: what is per token, branching factors and positions, cannot be "
            "compared between them; nats per byte can."
        )
    if silent and len(runs) > 1 and len(models) > 1:
        return (
            "The runs do not say whether their models share a tokenizer; if not, what is per token cannot be compared."
        )
    return ""


def measure_of(run: Any) -> tuple[str, str, str, str]:
    """(column, its low, its high, label) of the table `conditions` by which the conditions of a run are compared:
    nats per byte where their models cut text into different tokens."""
    if tokenizers_of([run]) and maybe(run, "conditions", ("nats_per_byte_low",)) is not None:
        return "nats_per_byte", "nats_per_byte_low", "nats_per_byte_high", PER_BYTE
    return "bf", "ci_low", "ci_high", LABEL


def prompt_names(frame: pl.DataFrame) -> dict[Any, str]:
    """What to call each prompt: its text where the table has it, else its number."""
    texts = frame["text"].to_list() if "text" in frame.columns else frame["prompt"].to_list()
    return {
        p: " ".join(str(t).split()) if "text" in frame.columns or isinstance(p, str) else f"prompt {p}"
        for p, t in zip(frame["prompt"], texts)
    }
