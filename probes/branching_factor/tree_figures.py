"""The samples of one prompt as a tree of shared prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from probes.branching_factor.drawn_conditions import with_condition
from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.figures.choices import Choice
from workbench.figures.layout import shorten
from workbench.figures.run_tables import maybe, need
from workbench.figures.tree import tree_figure, words_tree


def tree(
    run: Any, *, prompt: int | None = None, condition: str | None = None, leaves: int = 14, levels: int = 5
) -> go.Figure:
    """The samples of one prompt as a prefix tree: `prompt` (its number in the data; default: the first whose samples
    part) under `condition` (default: the run's first). Raises InputError naming what there is for one that the run does
    not have."""
    table = _tree_table(run)
    frame = with_condition(need(run, table, ("prompt",)), run)
    known = frame["condition"].unique(maintain_order=True).to_list()
    condition = known[0] if condition is None else condition
    if condition not in known:
        raise InputError(
            f"There is no condition '{condition}'{nearest(condition, known)} in the run; there are {', '.join(known)}."
        )
    frame = frame.filter(pl.col("condition") == condition)
    if "row" in frame.columns:  # several outputs of one prompt (cut, sampled again) have a tree each: draw the first
        frame = frame.filter(pl.col("row") == pl.col("row").min().over("prompt"))
    if prompt is None:
        counts = frame.group_by("prompt", maintain_order=True).len()
        prompt = (counts.filter(pl.col("len") > 2)["prompt"].to_list() or counts["prompt"].to_list())[0]
    have = frame["prompt"].unique(maintain_order=True).to_list()
    frame = frame.filter(pl.col("prompt") == prompt)
    if frame.is_empty():
        raise InputError(
            f"There is no prompt {prompt} in condition '{condition}'; its prompts are {have[0]} to {have[-1]}."
        )
    nodes = frame if table == "tree" else words_tree([str(t) for t in frame["text"]])
    text = _prompt_text(run, prompt, condition)
    count = int(nodes.filter(pl.col("parent") < 0)["count"][0]) if "count" in nodes.columns else None
    return tree_figure(
        nodes,
        leaves=leaves,
        levels=levels,
        title=f"Continuations of “{shorten(text, 60)}”, {condition}" if text else f"Continuations of prompt {prompt}",
        n=f"{count} samples" if count else None,
    )


def _tree_table(run: Any) -> str:
    """The table from which trees are drawn."""
    columns = ("prompt", "node", "parent", "text", "probability", "bf")
    return "tree" if maybe(run, "tree", columns) is not None else "samples"


def tree_choices(run: Any, chosen: Mapping[str, Any]) -> list[Choice]:
    """The condition, where there are several, and the prompt whose samples :func:`tree` draws."""
    frame = with_condition(need(run, _tree_table(run), ("prompt",)), run)
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    found = []
    if len(conditions) > 1:
        frame = frame.filter(pl.col("condition") == chosen.get("condition", conditions[0]))
        options = {str(name): name for name in conditions}
        found.append(Choice("condition", "Condition", options, "What the samples were drawn under."))
    options = {"first that parts": None} | {str(row): int(row) for row in sorted(frame["prompt"].unique().to_list())}
    help = "Whose samples are drawn, by its row in the table `prompts`."
    return [*found, Choice("prompt", "Prompt", options, help)]


def _prompt_text(run: Any, prompt: Any, condition: str) -> str:
    if isinstance(prompt, str):
        return prompt
    frame = maybe(run, "prompts", ("prompt", "text"))
    found = frame.filter(pl.col("prompt") == prompt) if frame is not None else None
    if found is not None and "condition" in found.columns:
        found = found.filter(pl.col("condition") == condition)
    return "" if found is None or found.is_empty() else " ".join(str(found["text"][0]).split())
