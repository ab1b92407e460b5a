"""Prompts as token ids: the bare text, or turns of a conversation in the model's chat template.

A chat template is a program that came with the model. It may leave a turn out, want its text in another form, print
today's date or draw at random, so what it wrote is held against what it was given: every turn is in the prompt, or
there is no prompt. The date is always the model's `day`: the same command gives the same prompt on every day.
"""

from __future__ import annotations

import datetime
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.wording import one_line
from workbench.models.load_options import DAY, read_day

if TYPE_CHECKING:
    from workbench.models.text_side import TextSide

Turn = tuple[str, str]  # role, text
ROLES = {
    "system": "system message",
    "developer": "developer's message",
    "user": "user's text",
    "assistant": "answer",
    "tool": "tool's result",
}
_ONE_CLOCK = threading.Lock()
_DRAWS = 16  # renderings of a template that may draw at random


def template_of(model: TextSide, template: str = "auto") -> str:
    """How `prompt_ids` writes a prompt for this model: "chat" or "raw". Raises InputError for "chat" on a model without
    a template."""
    if template not in ("auto", "chat", "raw"):
        raise InputError(f"'{template}' is no way to write prompts; choose auto, chat or raw.")
    has_one = bool(source_of(model))
    if template == "chat" and not has_one:
        raise InputError(
            f"The model {model.name} has no chat template (a base model?); use template=raw to give it the bare text."
        )
    return "chat" if has_one and template != "raw" else "raw"


def prompt_ids(model: TextSide, text: str, *, template: str = "auto", system: str = "") -> list[int]:
    """Token ids of a prompt. "raw": the text itself (BOS where the tokenizer puts one); "chat": as the user's turn in
    the model's chat template, ready for its answer, after the message `system` if there is one; "auto": chat iff the
    model has a template.

    Raises InputError for "chat" on a model without a template, for a template that leaves out or changes what it is
    given, and for a system message where no template is used."""
    if model.tokenizer is None:
        raise InputError(f"The model {model.name} has no tokenizer, so it cannot read prompts.")
    if template_of(model, template) == "raw":
        if system:
            raise InputError(
                f"A system message needs a chat template, and {model.name} is given raw text here; leave out system."
            )
        return raw_ids(model, text)
    turns = ([("system", system)] if system else []) + [("user", text)]
    return chat_ids(model, render(model, turns, answer=True))


def raw_ids(model: TextSide, text: str) -> list[int]:
    """Token ids of a bare text, BOS in front where the tokenizer puts one and the text has none; BOS alone for an empty
    one."""
    ids = model.encode(text)
    if not ids and model.bos_id is not None:
        return [model.bos_id]
    return ids[1:] if _bos_twice(model, text, ids) else ids


def raw_ids_with_offsets(model: TextSide, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """`raw_ids` and the characters [start, end) of each. Raises InputError for a tokenizer without offsets."""
    ids, offsets = model.encode_with_offsets(text)
    return (ids[1:], offsets[1:]) if _bos_twice(model, text, ids) else (ids, offsets)


def chat_ids(model: TextSide, written: str) -> list[int]:
    """Token ids of what a chat template wrote, which has its own BOS."""
    ids = list(model.tokenizer(written, add_special_tokens=False)["input_ids"])
    return ids[1:] if _bos_twice(model, written, ids) else ids


def chat_ids_with_offsets(model: TextSide, written: str) -> tuple[list[int], list[tuple[int, int]]]:
    """`chat_ids` and the characters [start, end) of each. Raises InputError for a tokenizer without offsets."""
    ids, offsets = model.encode_with_offsets(written, bos=False)
    return (ids[1:], offsets[1:]) if _bos_twice(model, written, ids) else (ids, offsets)


def _bos_twice(model: TextSide, written: str, ids: Sequence[int]) -> bool:
    """Whether the tokenizer put BOS in front of a text that begins with one BOS of its own."""
    bos = model.tokenizer.bos_token
    return bool(bos) and list(ids[:2]) == [model.bos_id] * 2 and not written.removeprefix(bos).startswith(bos)


def render(
    model: TextSide,
    turns: Sequence[Turn],
    *,
    answer: bool,
    instead: str = "template=raw",
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as the model's chat template writes it, with `answer` up to where the model's answer begins;
    `arguments` go to the template.

    Texts go in as they are or, where the template drops those, as content parts. Raises InputError for a template that
    raises, leaves a turn out, changes a text (white space at its ends aside) or draws at random; `instead` is what can
    be used in its place."""
    arguments = arguments or {}
    turns = [(role, text) for role, text in turns]
    parts = _form(model, turns, answer, instead, arguments)
    written = _written(model, turns, parts, answer, arguments)
    for role, text in turns:
        if text.strip() not in written:
            raise InputError(
                f"The chat template of {model.name} changes the {ROLES.get(role, role)} '{_beginning(text)}'; change "
                f"that text, or use {instead}."
            )
    if answer:
        written += _header(model, turns, parts, written, arguments)
    if not written:
        raise InputError(f"The chat template of {model.name} writes nothing for an empty text; use {instead}.")
    return written


def source_of(model: TextSide) -> str:
    """The program of the model's chat template; empty where there is none. Of several by name, the one for chats
    without tools."""
    source = getattr(model.tokenizer, "chat_template", None) or ""
    return str(source.get("default", "") if isinstance(source, Mapping) else source)


def uses_date(model: TextSide) -> bool:
    """Whether the model's chat template asks for today's date."""
    source = source_of(model)
    return "strftime_now" in source or "date_string" in source


def check_date(model: TextSide, date: str | datetime.date | None) -> None:
    """Raise InputError for a day that is told to a chat template which prints none."""
    if date is not None and not uses_date(model):
        raise InputError(
            f"The day {read_day(date)} means nothing to '{model.name}', whose chat template prints no date; leave it "
            f"out."
        )


def _form(
    model: TextSide, turns: Sequence[Turn], answer: bool, instead: str, arguments: Mapping[str, Any]
) -> tuple[bool, ...]:
    """Which turns go in as content parts, by their roles: none where that keeps every turn. Tried on words that no
    template has, so that a turn whose text the template writes anyhow is missed all the same."""
    marks = [(role, f"Qx{number}zVj{number}kW") for number, (role, _) in enumerate(turns)]
    missed, raised = [], []
    roles = list(dict.fromkeys(role for role, _ in turns))
    for forms in itertools.product((False, True), repeat=len(roles)):
        parts = tuple(forms[roles.index(role)] for role, _ in turns)
        try:
            written = _written(model, marks, parts, answer, arguments)
        except InputError as error:
            raised.append(error)
            continue
        if any(parts) and "'type': 'text'" in written.replace('"', "'"):
            continue  # the parts themselves were printed
        lost = [role for role, mark in marks if mark not in written]
        if not lost:
            return parts
        missed.append(lost)
    if not missed or (raised and len(raised) == 2 ** len(roles)):
        raise raised[0]
    role = min(missed, key=len)[0]
    way = "leave out system, or write it into the prompt" if role == "system" else f"use {instead}"
    if role == "tool":
        way = "take the tool's turns out, or write them into the user's"
    raise InputError(f"The chat template of {model.name} leaves out the {ROLES.get(role, role)}; {way}.")


def _header(
    model: TextSide, turns: Sequence[Turn], parts: tuple[bool, ...], written: str, arguments: Mapping[str, Any]
) -> str:
    """What the template puts in front of an answer, where it does so only when the answer is there."""
    if written != _written(model, turns, parts, False, arguments):
        return ""
    mark = "Qx9zVj9kW"
    try:
        whole = _written(model, [*turns, ("assistant", mark)], (*parts, parts[-1]), False, arguments)
    except InputError:
        return ""
    before, found, _ = whole.partition(mark)
    opened = before.removeprefix(written) if found and before.startswith(written) else ""
    return opened if opened.strip() else ""


def _written(
    model: TextSide, turns: Sequence[Turn], parts: Sequence[bool], answer: bool, arguments: Mapping[str, Any]
) -> str:
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
        for (role, text), in_parts in zip(turns, parts, strict=True)
    ]
    source = source_of(model)
    day = getattr(model, "day", DAY)
    # Templates that know a day of their own (date_string) keep it unless another one is asked for.
    options: dict[str, Any] = {"date_string": day.strftime("%d %b %Y")} if day != DAY else {}
    options |= arguments
    chance = "random" in source or "lipsum" in source
    try:
        with _today(day) if "strftime_now" in source else nullcontext():
            found = {
                model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer, **options)
                for _ in range(_DRAWS if chance else 1)
            }
    except Exception as error:  # templates are programs; they raise what they like (for instance for a system message)
        raise InputError(f"The chat template of {model.name} refuses the prompt ({one_line(error)}).") from error
    if len(found) > 1:
        raise InputError(
            f"The chat template of {model.name} draws at random, so no prompt is twice the same; do without it."
        )
    return found.pop()


@contextmanager
def _today(day: datetime.date) -> Iterator[None]:
    """Templates that ask for the time are told the beginning of that day. (transformers takes no functions among the
    arguments of a template, so its clock is what has to be replaced.)"""
    from transformers.utils import chat_template_utils

    names: Any = vars(chat_template_utils)
    with _ONE_CLOCK:
        before = names["datetime"]
        names["datetime"] = SimpleNamespace(now=lambda *_: datetime.datetime.combine(day, datetime.time()))
        try:
            yield
        finally:
            names["datetime"] = before


def _beginning(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:39] + "…"
