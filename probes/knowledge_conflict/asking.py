"""How an item is asked: its prompts in the way that the config's keys ask for (the bare text, a text around it, or the
model's chat template), with where the prompt's own words stand in what is fed, and what an answer begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from workbench.core.errors import InputError

if TYPE_CHECKING:
    from probes.knowledge_conflict.config import Config
    from workbench.models.model import Model
    from workbench.models.prompt_style import PromptStyle

# Prompts end before the answer, in the middle of a sentence: a chat model is asked to go on where they end.
TURN = "Continue this text. Reply with its next words only.\n\n{prompt}"

Tokens = tuple[list[int], list[tuple[int, int]]]  # ids, and the characters [start, end) of each


@dataclass(frozen=True)
class Asked:
    """A prompt as it is fed. `spans`: the characters [start, end) of each token in the prompt itself, (0, 0) for what
    is written around it; `before`, `after`: that, as text; `cut`: how many characters the template took off its ends
    (white space)."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    before: str
    after: str
    cut: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Asking:
    """How prompts are written for a model. `way`: raw or chat; `gap`: what stands between a prompt and its answer,
    where the prompt does not end with white space."""

    model: Model
    way: str
    gap: str
    write: Callable[[str], Asked]

    def other(self, asked: Asked, prompt: str) -> Tokens:
        """Ids and `spans` of another prompt that is written as `asked` is."""
        kept = prompt[asked.cut[0] : len(prompt) - asked.cut[1]]
        ids, offsets = _encoded(self.model, asked.before + kept + asked.after, self.way)
        return ids, _inside(offsets, len(asked.before), len(asked.before) + len(kept), asked.cut[0])

    def first_token(self, prompt: str, answer: str) -> int | None:
        """The token that an answer begins with after a prompt; None where the prompt's tokens change when it
        follows."""
        asked = self.write(prompt)
        gap = "" if not asked.text or asked.text[-1].isspace() else self.gap
        ids, _ = _encoded(self.model, asked.text + gap + answer.strip(), self.way)
        return ids[len(asked.ids)] if len(ids) > len(asked.ids) and ids[: len(asked.ids)] == asked.ids else None


def asking(model: Model, config: Config | None = None) -> Asking:
    """How the config asks for prompts to be written (None: as they are). Raises InputError for what the model's chat
    template, or its absence, makes impossible, for a prompt that ends in the middle of thought and for `answer_prefix`
    where there is no chat."""
    from workbench.models.prompt_style import PromptStyle, check_style, style_of, way_of

    style = PromptStyle("raw") if config is None else style_of(config)
    prefix = "" if config is None else config.answer_prefix
    check_style(model, style)
    way, gap = way_of(model, style), " "
    if way == "raw" and prefix:
        raise InputError(
            f"answer_prefix begins the answer of a chat, and {model.name} is given raw text here; leave it out, or "
            f"write it at the end of the prompts."
        )
    if way == "chat":
        gap = _gap(model, style)
        if prefix:
            prefix, gap = gap + prefix, " "
        elif gap not in ("", " "):  # an answer does not begin with a line break that the template always writes
            prefix, gap = gap, ""
    return Asking(model, way, gap, lru_cache(4096)(lambda prompt: _asked(model, style, way, prefix, prompt)))


def _asked(model: Model, style: PromptStyle, way: str, prefix: str, prompt: str) -> Asked:
    from workbench.models.prompt_style import write_prompt

    written = write_prompt(model, {"prompt": prompt}, style=style, turn=TURN, prefix=prefix)
    start, end = written.spans["prompt"]
    kept = written.text[start:end]
    front = prompt.find(kept)
    ids, offsets = _encoded(model, written.text, way)
    return Asked(
        written.text,
        ids,
        _inside(offsets, start, end, front),
        written.text[:start],
        written.text[end:],
        (front, len(prompt) - front - len(kept)),
    )


def _gap(model: Model, style: PromptStyle) -> str:
    """The white space that the model's chat template writes between the header of an answer and the answer."""
    from workbench.models.prompt_style import write_messages, write_prompt

    plain, asked, answer = replace(style, template="chat"), "Qx3zVj3kW", "Qx4zVj4kW"
    header = write_prompt(model, {"prompt": asked}, style=plain)
    if header.thinks:
        raise InputError(
            f"The prompts of {model.name} end inside a block of thinking, so no answer follows them; use thinking=off."
        )
    try:
        whole = write_messages(model, [("user", asked), ("assistant", answer)], style=plain, answer=False)
    except InputError:  # a template that knows no answers that were given
        return ""
    answered = whole.text[: whole.spans["text"][0]]
    gap = answered.removeprefix(header.text)
    return gap if answered.startswith(header.text) and not gap.strip() else ""


def _encoded(model: Model, text: str, way: str) -> Tokens:
    from workbench.models.prompt_templates import chat_ids_with_offsets, raw_ids_with_offsets

    return (chat_ids_with_offsets if way == "chat" else raw_ids_with_offsets)(model, text)


def _inside(offsets: list[tuple[int, int]], start: int, end: int, front: int) -> list[tuple[int, int]]:
    """Spans of characters in a prompt, from those in the text that holds it from `start` to `end` without its first
    `front` characters."""
    return [
        (max(a, start) - start + front, min(b, end) - start + front) if a < b and a < end and start < b else (0, 0)
        for a, b in offsets
    ]
