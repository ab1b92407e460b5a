"""Samples as they are fed: a text, a prompt and a response in one text, or a talk in the model's chat template, turn by
turn; and which of their tokens belong to the part that counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.errors import InputError
from workbench.core.prompt_options import template_text
from workbench.core.sample_tables import turns_before
from workbench.models.prompt_style import PromptStyle, way_of, write_messages
from workbench.models.prompt_templates import chat_ids_with_offsets, raw_ids, raw_ids_with_offsets

if TYPE_CHECKING:
    from workbench.core.messages import Turn
    from workbench.models.model import Model

PLAIN = "{prompt} {response}"
Written = tuple[list[int], np.ndarray]  # token ids, and which of them are of the part that counts
Span = tuple[int, int]  # characters [start, end)


def sample_writer(model: Model, style: PromptStyle, tokens: str) -> Callable[[Sequence[dict[str, Any]]], list[Written]]:
    """Of rows with `text`, or `prompt` and `response`, what is fed and which tokens count: all, those that hold a part
    of a response (of a talk: of what the assistant says, in any turn), or the others ("prompt").

    Raises InputError, as the writer does, for a chat that the model's template, or its absence, does not allow."""
    chat = way_of(model, style) == "chat"
    frame = PLAIN if chat else template_text(style.template) or PLAIN
    places = _places_in(model, style)

    def write(rows: Sequence[dict[str, Any]]) -> list[Written]:
        if not {"prompt", "response"} <= set(rows[0]):
            return [(ids, np.ones(len(ids), bool)) for ids in _raw(model, [row["text"] for row in rows])]
        if chat:
            return [_in_chat(model, row, style, tokens, places) for row in rows]
        whole = [_in_frame(row, frame) for row in rows]
        if tokens == "all":
            return [(ids, np.ones(len(ids), bool)) for ids in _raw(model, [text for text, _ in whole])]
        found = [(raw_ids_with_offsets(model, text), spans) for text, spans in whole]
        return [(ids, _counted(offsets, spans, tokens)) for (ids, offsets), spans in found]

    return write


def _raw(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of bare texts, with no second BOS in front of a text that begins with one."""
    found, bos = model.encode_all(texts), model.tokenizer.bos_token
    return [raw_ids(model, text) if bos and text.startswith(bos) else ids for text, ids in zip(texts, found)]


def _in_frame(row: dict[str, Any], frame: str) -> tuple[str, list[Span]]:
    """The text of a sample, and where responses stand in it."""
    prompt, response = row["prompt"], row["response"]
    head, _, tail = frame.partition("{response}")
    before, _, between = head.partition("{prompt}")
    spans, at = [], len(before)
    turns = turns_before(row)
    if len(turns) > 1:  # the prompt is these turns, with an empty line between
        for role, said in turns:
            size = len(said.strip())
            spans += [(at, at + size)] if role == "assistant" else []
            at += size + 2
    head = before + prompt + between
    return head + response + tail, [*spans, (len(head), len(head) + len(response))]


def _in_chat(
    model: Model, row: dict[str, Any], style: PromptStyle, tokens: str, places: Callable[..., list[str]]
) -> Written:
    turns = [*turns_before(row), ("assistant", row["response"])]
    found = write_messages(model, turns, style=style, answer=False)
    if tokens == "all":
        return found.ids, np.ones(len(found.ids), bool)
    spans = _spans(found.text, turns, places(tuple(role for role, _ in turns)))
    ids, offsets = chat_ids_with_offsets(model, found.text)
    if spans is None or ids != found.ids:
        said = " ".join(row["response"].split())[:40]
        raise InputError(
            f"The chat template of {model.name} does not say where the turns of the sample '{said}' begin and end; use "
            f"tokens=all, or template=raw."
        )
    return ids, _counted(offsets, spans, tokens)


def _places_in(model: Model, style: PromptStyle) -> Callable[[tuple[str, ...]], list[str]]:
    """What the chat template writes before, between and after turns of these roles, found with words that no template
    has."""

    @cache
    def places(roles: tuple[str, ...]) -> list[str]:
        turns: list[Turn] = [(role, f"Qx{number}zVj{number}kW") for number, role in enumerate(roles)]
        rest, found = write_messages(model, turns, style=style, answer=False).text, []
        for _, mark in turns:
            before, _, rest = rest.partition(mark)
            found.append(before)
        return [*found, rest]

    return places


def _spans(text: str, turns: Sequence[Turn], around: Sequence[str]) -> list[Span] | None:
    """Where what the assistant says stands in a written talk: each turn as it is or without white space at its ends,
    after and before what stands `around` turns of such roles. None where the talk is written in another way."""
    spans, at = [], len(around[0])
    if not text.startswith(around[0]):
        return None
    for (role, said), (_, after) in zip(turns, pairwise(around)):
        forms = dict.fromkeys((said, said.strip(), said.lstrip(), said.rstrip()))
        form = next((form for form in forms if text.startswith(form + after, at)), None)
        if form is None:
            return None
        spans += [(at, at + len(form))] if role == "assistant" else []
        at += len(form) + len(after)
    return spans if at == len(text) else None


def _counted(offsets: Sequence[Span], spans: Sequence[Span], tokens: str) -> np.ndarray:
    """Which tokens hold a part of these spans ("response"), or do not ("prompt")."""
    inside = [end > begin and any(begin < stop and end > start for start, stop in spans) for begin, end in offsets]
    return np.array(inside) if tokens == "response" else ~np.array(inside)
