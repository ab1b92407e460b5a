"""The trials of a run: needles, haystack, template and stopping words read, and put together at every length and
depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from probes.retrieval_heads.config import COLUMNS, NEEDLES, SHIPPED, Config
from probes.retrieval_heads.passage_files import read_passages
from probes.retrieval_heads.shipped import material
from probes.retrieval_heads.short_run import check_model
from probes.retrieval_heads.task_answers import read_tasks
from workbench.core.column_names import column_map
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.tables import read_table, read_text
from workbench.models.answer_ends import Split, stop_rule
from workbench.models.model_outline import Facts
from workbench.models.needle_prompts import (
    Needle,
    Trial,
    check_answers,
    encode_after,
    grid,
    read_needle,
    split_template,
)
from workbench.models.prompt_style import style_of
from workbench.models.thinking import thinking_splitter
from workbench.organisms.needles import own_needles


@dataclass(frozen=True)
class NeedleGrid:
    """`shared`: the tokens that all prompts share a beginning of; `closed`: every question at every length without its
    needle; `stops`: whether a response ends with the last of the tokens emitted so far; `split`: which of its tokens
    are thinking; `after`: the template from the context on, the question still a slot."""

    needles: Sequence[Needle]
    shared: list[int]
    trials: Sequence[Trial]
    closed: Sequence[Trial]
    stops: Callable[[Sequence[int]], bool]
    split: Split
    after: str

    @property
    def haystack(self) -> list[int]:
        """As much of the shared tokens as stands before the needle in any trial, or before the question where the
        needle is cut out."""
        return self.shared[: max(t.shared for t in (*self.trials, *self.closed))]


def validate(config: Config, data: Path | None, facts: Facts | None = None) -> None:
    """Raise InputError for needles that do not hold their answer, a haystack that cannot be read, and lengths that are
    known to be beyond the model."""
    source = needle_file(config, data)
    if source is not None:
        rows = read_needles(config, source)
        # a model may ship with more than the project does
        if isinstance(config.needles, int) and source.resolve() != NEEDLES.resolve():
            _first(rows, config.needles, source)
        check_answers(rows, source)
    if config.haystack != "default":
        read_text(config.haystack, what="haystack")
    if config.tasks:
        read_tasks(config.tasks, config.task_metric)
    if config.passages:
        read_passages(config.passages)
    check_model(config, facts)


def needle_file(config: Config, data: Path | None) -> Path | None:
    """The file that the needles come from."""
    return Path(config.needles) if isinstance(config.needles, str) and config.needles != "default" else data


def read_needles(config: Config, source: Path, tell: Callable[[str], None] | None = None) -> pl.DataFrame:
    """The rows of a needle file, with the columns that the config names."""
    names = column_map(config.columns, COLUMNS)
    return read_table(source, required=COLUMNS, columns=names, what="needles", tell=tell)


def read_grid(model, config: Config, context: Context) -> NeedleGrid:
    """The grid of a run, from the config or from what ships with the model. Raises InputError for needles without their
    answer and for lengths that do not fit the model."""
    left = material(config, model.name)
    haystack = read_text(left.get("haystack", config.haystack), what="haystack")
    before, after, thinks = prompt_parts(model, config)
    needles = _needles(model, config, context, after)
    context.rows_used = len(needles)
    lengths, depths = _lengths(model, config, needles), list(dict.fromkeys(config.depths))
    tokens, _ = encode_after(model, haystack.strip())
    shared, trials, closed = grid(
        model, needles, tokens, before, lengths=lengths, depths=depths, new_tokens=config.max_new_tokens
    )
    if len(tokens) < len(shared):
        context.warn(f"The haystack has {len(tokens)} tokens and was repeated to fill prompts of {max(lengths)}.")
    split = thinking_splitter(model, inside=thinks)
    stops = stop_rule(model, stop_words(model, config), split)
    return NeedleGrid(needles, shared, trials, closed, stops, split, after)


def stop_words(model, config: Config) -> tuple[str, ...]:
    """The texts that end an answer: those of the config, or what ships with the model, else a line break."""
    chosen = ("\n",) if config.stop == ("default",) else config.stop
    return tuple(material(config, model.name).get("stop", chosen))


def prompt_parts(model, config: Config) -> tuple[str, str, bool]:
    """`split_template` of the template that the config names, or of the model's own."""
    template = material(config, model.name).get(
        "template", "paper" if config.template == "default" else config.template
    )
    return split_template(model, replace(style_of(config), template="raw" if template == "paper" else template))


def _needles(model, config: Config, context: Context, after: str) -> list[Needle]:
    """The needles that are used, encoded; `after`: the template from the context on."""
    source = needle_file(config, context.data)
    rows = read_needles(config, source, context.read_as)
    if again := rows.height - rows.unique(COLUMNS).height:
        context.warn(
            f"{again} of the {rows.height} needles in {source} repeat another one: they are no evidence of "
            f"their own, and the intervals are too narrow."
        )
    ship = {NEEDLES.resolve(), (own_needles(model.name) or NEEDLES).resolve()}
    if isinstance(config.needles, int):
        rows = _first(rows, config.needles, source)
    elif rows.height > SHIPPED and source.resolve() in ship:
        context.warn(
            f"{rows.height} needles ship with {model.name} and the first {SHIPPED} were used; "
            f"needles={rows.height} uses them all."
        )
        rows = rows.head(SHIPPED)
    return [
        read_needle(model, k, row["needle"], row["question"], row["answer"], after)
        for k, row in enumerate(rows.iter_rows(named=True))
    ]


def _first(rows: pl.DataFrame, wanted: int, source: Path) -> pl.DataFrame:
    if wanted > rows.height:
        raise InputError(
            f"{source} has {rows.height} needles, fewer than needles={wanted}; ask for at most {rows.height}."
        )
    return rows.head(wanted)


def _lengths(model, config: Config, needles: Sequence[Needle]) -> list[int]:
    """Prompt lengths in tokens, each once; chosen by itself: those that can hold a needle and its question."""
    if config.lengths != "auto":
        return list(dict.fromkeys(config.lengths))
    longest = min(50_000, (model.context_length or 50_000) - config.max_new_tokens)
    needed = 1 + max(len(n.ids) + len(n.tail) for n in needles)
    if longest <= needed:
        raise InputError(
            f"The context of {model.name} ({model.context_length} tokens) cannot hold a needle with its question "
            f"({needed} tokens) and an answer of max_new_tokens={config.max_new_tokens}; ask for shorter answers."
        )
    even = sorted({int(x) for x in np.linspace(min(1000, longest // 5), longest, 20).round()})
    return [x for x in even if x > needed + 7] or [longest]
