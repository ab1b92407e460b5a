"""The texts of a run in two halves: those that similarities are measured on, and those that losses are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from probes.layer_redundancy.config import Config, read_texts
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.long_rows import fitting
from workbench.core.repeats import without_repeats
from workbench.models.prompt_style import check_style, style_of, token_span, way_of, write_prompt
from workbench.models.text_side import TextSide

SPLITS = ("similarity", "loss")


@dataclass(frozen=True, eq=False)
class HalfTexts:
    """Texts of one half as they are fed: `ids`, `rows` of the data file, and the tokens [start, end) of each that are
    its own."""

    ids: list[list[int]]
    rows: list[int]
    own: list[tuple[int, int]]

    @property
    def n(self) -> int:
        return len(self.ids)

    def of_own(self, row: int, values: np.ndarray) -> np.ndarray:
        """Of values [..., length - 1], one for every token of a text but the first: those of its own tokens."""
        start, end = self.own[row]
        return values[..., max(0, start - 1) : end - 1]

    def pick(self, chosen: Sequence[int]) -> HalfTexts:
        return HalfTexts([self.ids[i] for i in chosen], [self.rows[i] for i in chosen], [self.own[i] for i in chosen])


def read_halves(model: TextSide, config: Config, context: Context) -> dict[str, HalfTexts]:
    """Both halves, at random: "similarity" and "loss". Raises InputError for too few texts that are long enough, and
    for a template that does not keep a text."""
    frame = read_texts(config, context.data, context.read_as)
    limit = min(config.max_length, model.context_length or config.max_length)
    texts = _cut(_written(model, config, frame["text"].to_list(), context), limit, config, context)
    scored = [(end - start, end - max(start, 1)) for start, end in texts.own]  # the first token has no loss
    kept = [i for i, (size, losses) in enumerate(scored) if losses >= 1 and size >= config.min_length]
    kept = without_repeats(texts.ids, kept, context)
    if len(kept) < 2:
        raise InputError(
            f"{context.data}: {len(kept)} different texts have at least {config.min_length} tokens; similarities and "
            f"losses are measured on different ones, so 2 are needed, and 10 for intervals."
        )
    kept = kept[: config.limit]
    context.rows_used = len(kept)
    order = context.rng("halves").permutation(len(kept))
    half = (len(kept) + 1) // 2
    first, second = sorted(order[:half]), sorted(order[half:])[: config.loss_rows]
    return {name: texts.pick([kept[i] for i in some]) for name, some in zip(SPLITS, (first, second))}


def input_table(halves: dict[str, HalfTexts]) -> pl.DataFrame:
    """The table `inputs`: what was fed, and for which half."""
    rows = [(row, name, ids) for name, half in halves.items() for row, ids in zip(half.rows, half.ids)]
    schema = {"row": pl.Int64, "split": pl.String, "ids": pl.List(pl.Int64)}
    return pl.DataFrame(sorted(rows), schema=schema, orient="row")


def _written(model: TextSide, config: Config, words: Sequence[str], context: Context) -> HalfTexts:
    style = style_of(config)
    check_style(model, style)
    if way_of(model, style) == "raw" and config.template in ("raw", "auto"):
        ids = model.encode_all(list(words))
        return HalfTexts(ids, list(range(len(ids))), [(0, len(row)) for row in ids])
    ids, own = [], []
    for row, text in enumerate(words):
        context.check()
        try:
            written = write_prompt(model, {"prompt": text}, style=style)
            own.append(token_span(model, written, "prompt"))
        except InputError as error:
            raise InputError(f"{context.data}, row {row + 1}: {error}") from None
        ids.append(written.ids)
    return HalfTexts(ids, list(range(len(ids))), own)


def _cut(texts: HalfTexts, limit: int, config: Config, context: Context) -> HalfTexts:
    """The texts that fit, or with long=cut all of them: the end of a text's own tokens goes, what stands around it
    stays."""
    if config.long != "cut":  # what is cut at max_length is what was asked for
        lengths = [len(ids) for ids in texts.ids]
        where = f"{context.data}, row"
        return texts.pick(
            fitting(
                lengths,
                limit,
                long=config.long,
                context=context,
                where=lambda row: f"{where} {row + 1}: the text",
                what="texts",
            )
        )
    ids, own = [], []
    for row, tokens, (start, end) in zip(texts.rows, texts.ids, texts.own):
        kept = end - max(0, len(tokens) - limit)
        if kept <= start:
            raise InputError(
                f"{context.data}, row {row + 1}: what is written around the text has {len(tokens) - (end - start)} "
                f"tokens, and only {limit} fit; raise max_length, or use template=raw."
            )
        ids.append([*tokens[:kept], *tokens[end:]])
        own.append((start, kept))
    return HalfTexts(ids, texts.rows, own)
