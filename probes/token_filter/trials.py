"""The trials of a run: needles, haystack and template read and put together at every length and depth, and which of
their tokens are needle, answer, question and forced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from probes.token_filter.config import COLUMNS, ESSAYS, NEEDLES, SHIPPED, Config
from workbench.core.column_names import column_map
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.tables import read_table, read_text
from workbench.models.answer_ends import Split, stop_rule
from workbench.models.needle_prompts import Needle, Trial, encode_after, grid, read_needle, split_template
from workbench.models.prompt_style import style_of
from workbench.models.thinking import thinking_splitter
from workbench.organisms.needles import left_to_what_ships, own_needles

PAPER_K, PART = 1024, 4  # tokens that are kept by default; at most this part of the shortest prompt
LENGTHS, SHORTEST, LONGEST = 4, 8192, 50_000  # tokens of the prompts by default


@dataclass(frozen=True, eq=False)
class FilterTrials:
    """`beginning`: the tokens that all prompts share a beginning of; `closed`: every question at every length without
    its needle; `head`: how many tokens stand before the context; `words`: texts that end an answer; `stops`: whether a
    response ends with the last of the tokens emitted so far; `split`: which of its tokens are thinking; `ks`: how many
    tokens are kept, each once."""

    needles: Sequence[Needle]
    beginning: list[int]
    trials: Sequence[Trial]
    closed: Sequence[Trial]
    head: int
    words: tuple[str, ...]
    stops: Callable[[Sequence[int]], bool]
    split: Split
    ks: tuple[int, ...]
    forced: frozenset[str]
    has_bos: bool

    @property
    def names(self) -> np.ndarray:
        """The cluster of every trial: its needle, the first of those that say and ask the same."""
        first: dict[tuple, int] = {}
        same = [first.setdefault((n.ids, n.tail, n.span), k) for k, n in enumerate(self.needles)]
        return np.array([same[t.needle] for t in self.trials])

    def needle_span(self, trial: Trial) -> tuple[int, int]:
        """The needle's tokens in the prompt, end excluded."""
        return trial.shared, trial.shared + len(self.needles[trial.needle].ids)

    def always(self, trial: Trial) -> list[int]:
        """The positions that are forced, ascending."""
        found: set[int] = set()
        if "bos" in self.forced and self.has_bos:
            found.add(0)
        if "head" in self.forced:
            found.update(range(self.head))
        if "question" in self.forced:
            found.update(range(trial.body, len(trial.ids)))
        return sorted(found)


def material(config: Config, model: str) -> dict[str, Any]:
    """Haystack, template and stopping words, where the config leaves them to what ships with the project or with the
    model."""
    return left_to_what_ships(config, model, ESSAYS)


def needle_file(config: Config, data: Path | None) -> Path | None:
    """The file that the needles come from."""
    return Path(config.needles) if isinstance(config.needles, str) and config.needles != "default" else data


def needle_rows(config: Config, source: Path, tell: Callable[[str], None] | None = None) -> pl.DataFrame:
    """The rows of a needle file, with the columns that the config names."""
    names = column_map(config.columns, COLUMNS)
    return read_table(source, required=COLUMNS, columns=names, what="needles", tell=tell)


def first_rows(rows: pl.DataFrame, wanted: int, source: Path) -> pl.DataFrame:
    """The first `wanted` needles. Raises InputError where there are fewer."""
    if wanted > rows.height:
        raise InputError(
            f"{source} has {rows.height} needles, fewer than needles={wanted}; ask for at most {rows.height}."
        )
    return rows.head(wanted)


def read_trials(model, config: Config, context: Context) -> FilterTrials:
    """The trials of a run, from the config or from what ships with the model. Raises InputError for needles without
    their answer, lengths that do not fit the model, and more forced tokens than are kept."""
    left = material(config, model.name)
    haystack = read_text(left.get("haystack", config.haystack), what="haystack")
    template = left.get("template", config.template)
    template = {"default": "raw", "paper": "raw"}.get(template, template)
    before, after, thinks = split_template(model, replace(style_of(config), template=template))
    needles = _needles(model, config, context, after)
    context.rows_used = len(needles)
    lengths = _lengths(model, config, needles)
    tokens, _ = encode_after(model, haystack.strip())
    depths = list(dict.fromkeys(config.depths))
    beginning, trials, closed = grid(
        model, needles, tokens, before, lengths=lengths, depths=depths, new_tokens=config.max_new_tokens
    )
    if len(tokens) < len(beginning):
        context.warn(f"The haystack has {len(tokens)} tokens and was repeated to fill prompts of {max(lengths)}.")
    beginning = beginning[: max(t.shared for t in trials)]
    words = tuple(left.get("stop", ("\n",) if config.stop == ("default",) else config.stop))
    split = thinking_splitter(model, inside=thinks)
    head = len(model.encode(before, bos=True)) if before else int(model.prepends_bos)
    found = FilterTrials(
        needles=needles,
        beginning=beginning,
        trials=trials,
        closed=closed,
        head=head,
        words=() if thinks else words,
        stops=stop_rule(model, words, split),
        split=split,
        ks=_kept(config, trials),
        forced=config.forced,
        has_bos=model.prepends_bos,
    )
    _check_forced(found)
    for place, there in (("bos", found.has_bos), ("head", found.head > 0)):
        if place in found.forced and not there:
            context.warn(f"force_keep={place} keeps nothing: no such token stands before the context on this model.")
    return found


def _kept(config: Config, trials: Sequence[Trial]) -> tuple[int, ...]:
    if config.k != "auto":
        return tuple(sorted({int(k) for k in config.k}))
    return (max(1, min(PAPER_K, min(len(t.ids) for t in trials) // PART)),)


def _check_forced(found: FilterTrials) -> None:
    most = max(len(found.always(t)) for t in found.trials)
    if most > min(found.ks):
        raise InputError(
            f"force_keep={','.join(sorted(found.forced))} keeps {most} tokens of a prompt, more than "
            f"k={min(found.ks)}; keep more tokens or force fewer."
        )


def _needles(model, config: Config, context: Context, after: str) -> list[Needle]:
    """The needles that are used, encoded; `after`: the template from the context on."""
    source = needle_file(config, context.data)
    rows = needle_rows(config, source, context.read_as)
    if again := rows.height - rows.unique(COLUMNS).height:
        context.warn(
            f"{again} of the {rows.height} needles in {source} repeat another one: they are no evidence of their own, "
            f"and count as one needle with it."
        )
    ship = {NEEDLES.resolve(), (own_needles(model.name) or NEEDLES).resolve()}
    if isinstance(config.needles, int):
        rows = first_rows(rows, config.needles, source)
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


def even_lengths(longest: int) -> list[int]:
    """The lengths of prompts by default, ascending: from SHORTEST, or a third of the longest, to the longest."""
    return sorted({int(x) for x in np.linspace(min(SHORTEST, longest // 3), longest, LENGTHS).round()})


def _lengths(model, config: Config, needles: Sequence[Needle]) -> list[int]:
    """Prompt lengths in tokens, each once; chosen by itself: those that can hold a needle and its question."""
    if config.lengths != "auto":
        return list(dict.fromkeys(int(n) for n in config.lengths))
    longest = min(LONGEST, (model.context_length or LONGEST) - config.max_new_tokens)
    needed = 1 + max(len(n.ids) + len(n.tail) for n in needles)
    if longest <= needed:
        raise InputError(
            f"The context of {model.name} ({model.context_length} tokens) cannot hold a needle with its question "
            f"({needed} tokens) and an answer of max_new_tokens={config.max_new_tokens}; ask for shorter answers."
        )
    even = even_lengths(longest)
    return [x for x in even if x > needed + 7] or [longest]
