"""The texts as they are fed: bare, with a text around them, or as a turn of a conversation in the model's chat
template, and which of the tokens are the text's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.core.messages import read_messages
from workbench.models.prompt_style import check_style, style_of, token_span, way_of, write_messages, write_prompt

if TYPE_CHECKING:
    from probes.representation_geometry.config import Config
    from workbench.models.model import Model

Spans = list[tuple[int, int]]  # tokens [start, end) of each text that are its own


def written(
    model: Model, config: Config, frame: pl.DataFrame, context: Context
) -> tuple[list[list[int]], Spans | None]:
    """Token ids of every text, and which of them are its own (None for bare texts: all are).

    A chat is ready for its answer; a row with `messages` is that conversation, and where it ends with an answer the
    last turn is the text. Raises InputError naming the row for messages that are none and for a template that does not
    keep a text."""
    style = style_of(config)
    check_style(model, style)
    if config.template == "raw" or (way_of(model, style) == "raw" and config.template == "auto"):
        return model.encode_all(frame["text"].to_list(), bos=config.bos == "auto"), None
    talks = frame["messages"].to_list() if "messages" in frame.columns and way_of(model, style) == "chat" else None
    ids, own = [], []
    for row, text in enumerate(frame["text"].to_list()):
        context.check()
        try:
            if talks is not None and talks[row] is not None:
                turns = read_messages(talks[row])
                found = write_messages(model, turns, style=style, answer=turns[-1][0] != "assistant")
                name = "text"
            else:
                found, name = write_prompt(model, {"prompt": text}, style=style), "prompt"
            own.append(token_span(model, found, name))
        except ValueError as error:
            raise InputError(f"{context.data}, row {row + 1}: the field 'messages' {error}.") from None
        except InputError as error:
            raise InputError(f"{context.data}, row {row + 1}: {error}") from None
        ids.append(found.ids)
    return ids, own


def cut_to(
    length: int, ids: Sequence[list[int]], own: Spans | None, *, where: str
) -> tuple[list[list[int]], Spans | None]:
    """The texts with at most `length` tokens each: the end of a text's own tokens goes, what stands around it stays.
    Raises InputError, which begins with `where`, where nothing of a text would be left."""
    if own is None:
        return [row[:length] for row in ids], None
    cut, spans = [], []
    for number, (row, (start, end)) in enumerate(zip(ids, own), 1):
        kept = end - max(0, len(row) - length)
        if kept <= start:
            raise InputError(
                f"{where} {number}: what is written around the text has {len(row) - (end - start)} tokens, and only "
                f"{length} fit; raise max_length, or use template=raw."
            )
        cut.append([*row[:kept], *row[end:]])
        spans.append((start, kept))
    return cut, spans


def size_of(row: int, ids: Sequence[list[int]], own: Spans | None) -> int:
    """How many tokens a text has, those around it left out."""
    return len(ids[row]) if own is None else own[row][1] - own[row][0]
