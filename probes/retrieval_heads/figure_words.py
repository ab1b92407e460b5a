"""What the figures of the retrieval-head probe say in words: what is counted, what intervals are over, who is told
apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from workbench.figures.run_tables import info, numbers
from workbench.stats.clusters import FEWEST


def independent(run: Any) -> str:
    """What the intervals of the run take for independent."""
    if info(run, "config", "passages", default="") and info(run, "config", "resample", default="") == "needles":
        return "passages"
    return str(info(run, "config", "resample", default="trials"))


def interval_in_words(frame: pl.DataFrame, run: Any) -> str:
    """What the intervals of head scores are; nothing where the table has none."""
    known = "ci_low" in frame.columns and np.isfinite(numbers(frame, "ci_low")).any()
    return f"95 % over {independent(run)} (score or t interval of clusters)" if known else ""


def missing_in_words(frame: pl.DataFrame) -> str:
    """That no interval is drawn, and why."""
    known = "ci_low" in frame.columns and np.isfinite(numbers(frame, "ci_low")).any()
    if known:
        return ""
    return f"No intervals: they need {FEWEST} needles that count." if "n_needles" in frame.columns else "No intervals."


def told_in_words(frame: pl.DataFrame, run: Any) -> str:
    """How many heads are above the threshold, beside how many would be by chance and how many are told apart."""
    if not {"is_retrieval", "told_apart", "score_chance", "ci_low"} <= set(frame.columns):
        return ""
    over = int(frame["is_retrieval"].sum())
    text = f"{over} of {frame.height} heads are above the threshold"
    if np.isfinite(numbers(frame, "p_adjusted")).any():
        chance = "chance" if copies(run) else "the control"
        text += f", {int(frame['told_apart'].sum())} told from it and from {chance} (false discovery rate 5 %)"
    highest = float(frame["score_chance"].max())
    if not copies(run):
        return f"{text}. With the question of another passage (the control) the highest score is {highest:.2f}."
    return (
        f"{text}. Looking at random places of the answer at the same steps, the highest score would be {highest:.2f}."
    )


def copies(run: Any) -> bool:
    """Whether the scores of the run are of copying, and not of attention from a question to its passage."""
    return info(run, "config", "score", default="set") != "attention"


def score_name(run: Any) -> str:
    """What the scores of the run are called."""
    return "retrieval score" if copies(run) else "attention score"


def outlined_in_words(frame: pl.DataFrame, run: Any) -> str:
    """What an outline means; nothing where no head has one."""
    if "is_retrieval" not in frame.columns:
        return ""
    return "Outlined: retrieval heads." if copies(run) else "Outlined: heads above the threshold."


def count_in_words(n: int, rows: int, kind: str) -> str:
    """``12 needles (240 trials)``."""
    return f"{n} {kind}" if kind == "trials" else f"{n} {kind[:-1] if n == 1 else kind} ({rows:,} trials)"


def counted(frame: pl.DataFrame, run: Any) -> str | None:
    """The clusters and the trials that the scores of the table `heads` rest on."""
    if "n_trials" not in frame.columns or frame["n_trials"].max() is None:
        return None
    rows = int(frame["n_trials"].max())
    if "n_needles" not in frame.columns:
        return f"{rows} trials"
    return count_in_words(int(frame["n_needles"].max()), rows, independent(run))
