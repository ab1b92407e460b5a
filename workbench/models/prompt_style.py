"""Prompts as every probe writes them: a text of the probe's, or a conversation, in the way that the four config keys of
`workbench.core.prompt_options` ask for, with the place of the user's own text in what is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.messages import Turn
from workbench.core.prompt_options import CHAT, filled, template_arguments, template_text
from workbench.models.prompt_templates import (
    chat_ids,
    chat_ids_with_offsets,
    raw_ids,
    raw_ids_with_offsets,
    render,
    source_of,
    template_of,
)
from workbench.models.template_arguments import check_arguments, thinking_switch
from workbench.models.thinking import tags_in_template, tags_of

if TYPE_CHECKING:
    from workbench.models.text_side import TextSide

MARK = "Qx7zVj7kW"  # stands in for a text, to see what the template writes around it


@dataclass(frozen=True)
class PromptStyle:
    """How prompts are written: the values of the config keys. `arguments`: (name, value) pairs."""

    template: str = "auto"
    system: str = ""
    thinking: str = "auto"
    arguments: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class WrittenPrompt:
    """A prompt as it is fed. `spans`: the characters [start, end) of each field in `text` (white space at its ends may
    be gone); `thinks`: whether it ends inside a block of thinking, so that the response begins with thought."""

    text: str
    ids: list[int]
    way: str  # raw or chat
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    thinks: bool = False


def style_of(config: Any) -> PromptStyle:
    """The style that a config asks for; keys that it does not have are at their defaults."""
    values = {name: getattr(config, name) for name in ("template", "system", "thinking") if hasattr(config, name)}
    return PromptStyle(**values, arguments=tuple(template_arguments(getattr(config, "template_args", ())).items()))


def way_of(model: TextSide, style: PromptStyle) -> str:
    """ "chat" or "raw", for this model. Raises InputError for a chat on a model without a template."""
    if template_text(style.template) is None:
        return template_of(model, style.template)
    return template_of(model, "chat") if style.template.startswith(CHAT) else "raw"


def check_style(model: TextSide, style: PromptStyle) -> None:
    """Raise InputError for what the model's chat template, or its absence, makes impossible: a chat, a system message,
    arguments that the template does not read, thinking of a model that knows none."""
    if model.tokenizer is None:
        raise InputError(f"The model {model.name} has no tokenizer, so it cannot read prompts.")
    if way_of(model, style) == "raw":
        asked = {"system": style.system, "thinking": style.thinking == "on", "template_args": style.arguments}
        for name, value in asked.items():
            if value:
                what = {"system": "A system message needs", "thinking": "thinking=on needs"}.get(name, f"{name} need")
                raise InputError(f"{what} a chat template, and {model.name} is given raw text here; leave out {name}.")
        return
    check_arguments(source_of(model), dict(style.arguments), name=model.name)
    if style.thinking == "on" and tags_of(model) is None and thinking_switch(source_of(model)) is None:
        raise InputError(
            f"{model.name} knows no thinking: neither its chat template nor its tokens have a tag for it; leave out "
            f"thinking=on."
        )
    _arguments(model, style)


def write_prompt(
    model: TextSide,
    fields: Mapping[str, str],
    *,
    style: PromptStyle,
    plain: str = "{prompt}",
    turn: str | None = None,
    answer: bool = True,
    prefix: str = "",
    instead: str = "template=raw",
) -> WrittenPrompt:
    """A prompt of these fields. `plain` is the probe's own text with a slot for each, `turn` the one that it gives as a
    user's turn (default: the same); a text of the style's own goes before both.

    With `answer` a chat ends where the answer begins, and `prefix` is the answer's beginning; a raw text is only
    followed by `prefix`. Raises InputError as `check_style`, and for a template that does not keep what it is given."""
    check_style(model, style)
    own = template_text(style.template)
    if way_of(model, style) == "raw":
        text, spans = filled(plain if own is None else own, dict(fields))
        return WrittenPrompt(text + prefix, raw_ids(model, text + prefix), "raw", spans)
    text, spans = filled((plain if turn is None else turn) if own is None else own, dict(fields))
    turns = [("user", text)]
    return _chat(model, turns, spans, style=style, answer=answer, prefix=prefix, instead=instead)


def write_messages(
    model: TextSide, turns: Sequence[Turn], *, style: PromptStyle, answer: bool, prefix: str = ""
) -> WrittenPrompt:
    """A conversation as the model's chat template writes it, ready for its next `answer` or as it ended; the span
    "text" is that of the last turn. One turn of the user's is what `write_prompt` makes of it.

    Raises InputError for several turns without a chat template, a system message twice, and an answer that is asked for
    after an answer."""
    turns = [(role, text) for role, text in turns]
    if not turns:
        raise InputError("A conversation needs at least one message.")
    if answer and turns[-1][0] in ("assistant", "system", "developer"):
        raise InputError(
            f"The conversation ends with the message of the {turns[-1][0]}, so no answer can follow; end it with the "
            f"user's."
        )
    if len(turns) == 1 and turns[0][0] == "user":
        style_text = template_text(style.template)
        slot = "text" if style_text is not None and "{text}" in style_text else "prompt"
        found = write_prompt(model, {slot: turns[0][1]}, style=style, plain=f"{{{slot}}}", answer=answer, prefix=prefix)
        return WrittenPrompt(found.text, found.ids, found.way, {"text": found.spans[slot]}, found.thinks)
    check_style(model, style)
    if way_of(model, style) == "raw":
        raise InputError(
            f"A conversation of {len(turns)} messages needs a chat template, and {model.name} is given raw text here; "
            f"use a model with one, template=chat, or data with a prompt."
        )
    if (own := template_text(style.template)) is not None:
        raise InputError(f"template={CHAT}{own} writes one turn, and a conversation has several; use template=chat.")
    if style.system and turns[0][0] in ("system", "developer"):
        raise InputError("A conversation begins with a system message of its own; leave out system.")
    spans = {"text": (0, len(turns[-1][1]))}
    return _chat(model, turns, spans, style=style, answer=answer, prefix=prefix, instead="other data")


def token_span(model: TextSide, written: WrittenPrompt, name: str) -> tuple[int, int]:
    """The positions [start, end) in `written.ids` of the tokens that hold a field, at least in part. Raises InputError
    for a field without tokens and for a tokenizer that cannot say where they are."""
    start, end = written.spans[name]
    if written.way == "chat":
        ids, offsets = chat_ids_with_offsets(model, written.text)
    else:
        ids, offsets = raw_ids_with_offsets(model, written.text)
    inside = [k for k, (a, b) in enumerate(offsets) if a < b and a < end and start < b]
    if not inside or ids != written.ids:
        raise InputError(
            f"The tokenizer of {model.name} cannot say which tokens hold '{written.text[start:end][:40]}'."
        )
    return inside[0], inside[-1] + 1


def _arguments(model: TextSide, style: PromptStyle) -> dict[str, Any]:
    """What the template is told: the style's arguments, and the switch of thinking where one is asked for."""
    given, switch = dict(style.arguments), thinking_switch(source_of(model))
    if switch is None or style.thinking == "auto":
        return given
    name, on = switch
    value = on if style.thinking == "on" else not on
    if given.get(name, value) != value:
        raise InputError(f"thinking={style.thinking} sets {name} itself, and template_args says otherwise; use one.")
    return given | {name: value}


def _chat(
    model: TextSide,
    turns: list[Turn],
    spans: Mapping[str, tuple[int, int]],
    *,
    style: PromptStyle,
    answer: bool,
    prefix: str,
    instead: str,
) -> WrittenPrompt:
    """`turns` after the style's system message; `spans` are places in the text of the last turn."""
    turns = ([("system", style.system)] if style.system else []) + turns
    how = {"answer": answer, "instead": instead, "arguments": _arguments(model, style)}
    written = render(model, turns, **how)
    start, end = _place(model, turns, written, how)
    text, middle = turns[-1][1], written[start:end]
    before = text.find(middle)  # white space that the template took off
    size = len(middle)
    moved = {
        name: (start + min(max(0, a - before), size), start + min(max(0, b - before), size))
        for name, (a, b) in spans.items()
    }
    thinks = False
    if answer:
        addition, thinks = _thinking(model, style, written[end:])
        if thinks and prefix:
            raise InputError(
                f"The prompt of {model.name} ends inside a block of thinking, so no answer can begin there; use "
                f"thinking=off."
            )
        written += addition + prefix
    return WrittenPrompt(written, chat_ids(model, written), "chat", moved, thinks)


def _place(model: TextSide, turns: list[Turn], written: str, how: Mapping[str, Any]) -> tuple[int, int]:
    """The characters [start, end) of the last turn's text in what was written."""
    role, text = turns[-1]
    marked = render(model, [*turns[:-1], (role, MARK)], **how)
    before, _, after = marked.partition(MARK)
    start, end = len(before), len(written) - len(after)
    if not (start <= end and written.startswith(before) and written.endswith(after) and written[start:end] in text):
        raise InputError(
            f"The chat template of {model.name} writes other things around the text '{text.strip()[:40]}' than around "
            f"other texts, so its place is not known; use {how['instead']}."
        )
    return start, end


def _thinking(model: TextSide, style: PromptStyle, header: str) -> tuple[str, bool]:
    """What is written after the `header` of an answer, and whether the prompt then ends inside a block of thinking."""
    tags = tags_of(model)
    if tags is None:
        return "", False
    state, switch = tags.state(header), thinking_switch(source_of(model))
    if style.thinking == "off":
        if state == "open":
            return tags.closed(header), False
        if state == "none" and switch is None and tags_in_template(model) is not None:
            return tags.empty, False
    if style.thinking == "on" and switch is None:
        if state == "closed":
            raise InputError(
                f"The chat template of {model.name} ends every prompt after a block of thinking, so thinking cannot be "
                f"on; leave out thinking=on."
            )
        return ("", True) if state == "open" else (tags.opened, True)
    return "", state == "open"
