"""The texts of a concept set as they are fed: framed, as they are or as the user's turn of a chat, and which of their
tokens are read.

A *frame* is what a set asks about its texts (`template=file`, `code`, `plain` or a text with {text}); a chat is what
the model's chat template writes around the framed text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import Config, way_asked
from workbench.core.errors import InputError
from workbench.models.prompt_style import MARK, PromptStyle, WrittenPrompt, style_of, token_span, way_of, write_prompt
from workbench.models.prompt_templates import chat_ids, raw_ids, render

if TYPE_CHECKING:
    from workbench.models.text_side import TextSide


@dataclass(frozen=True, eq=False)
class WrittenTexts:
    """Token ids of each text. `prompts`: how each was written, in a chat; None where it is fed as it is."""

    ids: list[list[int]]
    prompts: list[WrittenPrompt] | None = None

    def take(self, rows: Sequence[int]) -> WrittenTexts:
        """Some of the texts."""
        prompts = None if self.prompts is None else [self.prompts[i] for i in rows]
        return WrittenTexts([self.ids[i] for i in rows], prompts)


def style_in(config: Config) -> PromptStyle:
    """How framed texts are written: raw, chat, or auto."""
    asked = style_of(config)
    return PromptStyle(way_asked(config.template), asked.system, asked.thinking, asked.arguments)


def write_texts(model: TextSide, texts: Sequence[str], config: Config) -> WrittenTexts:
    """Framed texts as the config asks for them. Raises InputError for a chat that the model's template, or its absence,
    does not allow."""
    style = style_in(config)
    if way_of(model, style) == "chat":
        prompts = [
            write_prompt(model, {"text": text}, style=style, plain="{text}", instead="template=file") for text in texts
        ]
        return WrittenTexts([prompt.ids for prompt in prompts], prompts)
    ids, bos = model.encode_all(texts), model.tokenizer.bos_token
    if bos and any(text.startswith(bos) for text in texts):  # no second one is put in front of it
        ids = [raw_ids(model, text) if text.startswith(bos) else own for text, own in zip(texts, ids)]
    return WrittenTexts(ids)


def text_spans(model: TextSide, written: WrittenTexts) -> list[tuple[int, int]] | None:
    """The tokens [start, end) of each framed text; None where it is all that is fed."""
    if written.prompts is None:
        return None
    return [token_span(model, prompt, "text") for prompt in written.prompts]


def read_positions(
    model: TextSide, written: WrittenTexts, token: int | str
) -> tuple[tuple[int, ...], ...] | tuple | None:
    """The positions that are read: one tuple for all texts, one each, or None for every token."""
    spans = text_spans(model, written) if token in ("text", "mean") else None
    if spans is None:
        return None if token == "mean" else (-1 if isinstance(token, str) else token,)
    return tuple((end - 1,) if token == "text" else tuple(range(start, end)) for start, end in spans)


def answer_ids(model: TextSide, concept: ConceptSet, written: WrittenTexts, word: str) -> list[int] | None:
    """Tokens of an answer as the model would go on with it: after a space where a text is fed as it is, in a chat as
    its template writes answers (most: at once). None where the tokens of a chat change when the word follows."""
    if written.prompts is None:
        from workbench.models.text_positions import word_ids  # here: it needs torch

        return word_ids(model, concept.texts[0], word)
    check_answers(model, written)
    first = written.prompts[0]
    size, space = len(first.ids), "" if first.text[-1:].isspace() else _before_answers(model)
    whole = chat_ids(model, first.text + space + word)
    return whole[size:] if len(whole) > size and whole[:size] == first.ids else None


def check_answers(model: TextSide, written: WrittenTexts) -> None:
    """Raise InputError for chats that end in the middle of thought: no answer follows them."""
    if written.prompts is not None and written.prompts[0].thinks:
        raise InputError(
            f"The prompts of {model.name} end inside a block of thinking, so the causal check finds no answer there; "
            f"use thinking=off, or causal=off."
        )


def _before_answers(model: TextSide) -> str:
    """The space that the chat template writes between its header and an answer, if any."""
    asked, said = [("user", MARK)], MARK[::-1]
    try:
        header = render(model, asked, answer=True)
        whole = render(model, [*asked, ("assistant", said)], answer=False)
    except InputError:
        return ""
    return " " if whole.partition(said)[0] == f"{header} " else ""
