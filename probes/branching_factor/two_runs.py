"""What of two runs can be compared: their models may cut text into different tokens, and then only what is per byte, or
of whole answers, is of one measure."""

from __future__ import annotations

from typing import Any

import polars as pl

from probes.branching_factor.bf_intervals import ratio_of_means
from probes.branching_factor.drawn_conditions import tokenizers_of, with_condition
from workbench.figures.run_tables import maybe, model_name, need, numbers
from workbench.runs.comparable import Comparable
from workbench.stats.intervals import Estimate

# Columns that do not depend on how text is cut into tokens, in whatever table
ALIKE = {
    *("condition", "model", "tokenizer", "template", "prompt", "row", "rows", "prompts", "sample", "samples", "text"),
    *("nats_per_byte", "nats_per_byte_low", "nats_per_byte_high", "ended", "distinct", "finish", "thinking"),
    *("accuracy", "accuracy_low", "accuracy_high", "temperature", "top_p", "top_k", "min_p"),
    *("per_byte_ratio", "per_byte_ratio_low", "per_byte_ratio_high", "nats_per_byte_a", "nats_per_byte_b", "a", "b"),
    *("per_byte_difference", "per_byte_difference_low", "per_byte_difference_high", "same_tokenizer"),
    *("parse_rate", "n", "distinct_direct", "distinct_verbalised", "effective_stated", "segment", "course"),
}


def comparable(first: Any, second: Any) -> Comparable:
    """Condition names are models' where each run has one condition. Between different tokenizers what is per token is
    not compared; nats per byte, paired over the prompts that both have, come first."""
    names = ("condition",) if all(_one_condition(run) for run in (first, second)) else ()
    known = [_tokenizers(run) for run in (first, second)]
    headline = {}
    if all(first_condition(run) is not None for run in (first, second)):
        of = f"nats per byte, {model_name(second)} over {model_name(first)}, prompts that both have"
        headline = {of: paired(first, second)}
    if not all(known) or known[0] == known[1]:
        return Comparable(names, headline=headline)
    apart = {}
    for table in [name for name in first.tables if name in second.tables]:
        columns = first.table(table).columns
        apart[table] = tuple(name for name in columns if name not in ALIKE)
    reason = tokenizers_of([first, second]) or "The models cut text into different tokens."
    return Comparable(names, apart, reason, headline)


def paired(first: Any, second: Any) -> Estimate:
    """Nats per byte of the second run over the first one's, on the prompts whose text both have."""
    frames = []
    for run in (first, second):
        frame = with_condition(need(run, "prompts", ("prompt", "text", "nats_per_byte")), run)
        frame = frame.filter(pl.col("condition") == frame["condition"][0])
        frames.append(frame.group_by("text", maintain_order=True).agg(pl.col("nats_per_byte").mean()))
    both = frames[0].join(frames[1], on="text", suffix="_second")
    return ratio_of_means(numbers(both, "nats_per_byte_second"), numbers(both, "nats_per_byte"), range(both.height))


def first_condition(run: Any) -> dict | None:
    """The row of the first condition, where it has nats per byte and the prompts that they are of."""
    frame = maybe(run, "conditions", ("condition", "nats_per_byte"))
    prompts = maybe(run, "prompts", ("text", "nats_per_byte"))
    known = frame is not None and prompts is not None and frame.height and frame["nats_per_byte"][0] is not None
    return frame.row(0, named=True) if known and frame is not None else None


def _one_condition(run: Any) -> bool:
    frame = maybe(run, "conditions", ("condition",))
    return frame is not None and frame.height == 1


def _tokenizers(run: Any) -> set[str]:
    """The tokenizers of a run's conditions; none where it does not say."""
    frame = maybe(run, "conditions", ("tokenizer",))
    return set() if frame is None else set(frame["tokenizer"].drop_nulls().to_list())
