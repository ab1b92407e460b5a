"""Models that think before they answer: the tags that they think in, and where in a response the answer begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from workbench.models.prompt_templates import source_of

if TYPE_CHECKING:
    from workbench.models.text_side import TextSide


@dataclass(frozen=True)
class ThinkingTags:
    """What stands around the thinking of a model. `lines`: whether tags have lines of their own; `between`: what is
    written between thinking and the closing tag."""

    opening: str
    closing: str
    lines: bool = False
    between: str = ""

    @property
    def opened(self) -> str:
        """The beginning of a block."""
        return self.opening + ("\n" if self.lines else "")

    @property
    def empty(self) -> str:
        """A block without a thought."""
        if self.between:
            return self.closing  # channels: the answer's follows at once
        return self.opening + "\n\n" * self.lines + self.closing + "\n\n" * self.lines

    def closed(self, header: str) -> str:
        """The end of the block that `header` opened, without a thought."""
        lines = "\n" if header.endswith("\n") else "\n\n" if self.lines else ""
        return lines * self.lines + self.between + self.closing + "\n\n" * self.lines

    def state(self, header: str) -> str:
        """Whether a text ends inside a block ("open"), after one ("closed"), or holds none ("none")."""
        opened, closed = header.rfind(self.opening), header.rfind(self.closing)
        return "open" if opened > closed else "closed" if closed >= 0 else "none"


TAGS = (
    ThinkingTags("<think>", "</think>", lines=True),
    ThinkingTags("<thinking>", "</thinking>", lines=True),
    ThinkingTags("<thought>", "</thought>", lines=True),
    ThinkingTags("<reasoning>", "</reasoning>", lines=True),
    ThinkingTags("<seed:think>", "</seed:think>", lines=True),
    ThinkingTags("[THINK]", "[/THINK]"),
    ThinkingTags("<|START_THINKING|>", "<|END_THINKING|>"),
    ThinkingTags("<|begin_of_thought|>", "<|end_of_thought|>"),
    ThinkingTags("◁think▷", "◁/think▷"),
    ThinkingTags("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", between="<|end|><|start|>assistant"),
)


def tags_in_template(model: TextSide) -> ThinkingTags | None:
    """The tags that the model's chat template knows, or None."""
    source = source_of(model)
    return next((tags for tags in TAGS if tags.opening in source or tags.closing in source), None)


def tags_of(model: TextSide) -> ThinkingTags | None:
    """The tags that the model thinks in: those of its chat template, else those that are tokens of their own; None for
    a model that knows no thinking."""
    if model.tokenizer is None:
        return None
    if (known := tags_in_template(model)) is not None:
        return known
    added = getattr(model.tokenizer, "get_added_vocab", dict)()
    for tags in TAGS:
        marks = re.findall(r"<[^<>]+>|\[[^\[\]]+\]|◁[^◁▷]+▷", tags.opening + tags.closing)
        if all(mark in added for mark in marks):
            return tags
    return None


@dataclass(frozen=True)
class ThinkingSpan:
    """Which of a response's tokens are thinking, tags included: the first `end` of them. `state`: "none" (no thinking),
    "finished" (the answer follows) or "unfinished" (the response ends inside it)."""

    end: int
    state: str


NO_THINKING = ThinkingSpan(0, "none")


def thinking_splitter(model: TextSide, *, inside: bool) -> Callable[[Sequence[int]], ThinkingSpan]:
    """Of token ids of a response, which are thinking. `inside`: whether the prompt ended inside a block of thinking;
    else a response thinks if it begins with the opening tag (or, where the channel of the answer has a name, with
    that). Tags may be single tokens or spelt in several, and a token that ends with more than the tag belongs to the
    thinking."""
    tags, names = tags_of(model), {}

    def split(ids: Sequence[int]) -> ThinkingSpan:
        if tags is None or not len(ids):
            return NO_THINKING if tags is None or not inside else ThinkingSpan(0, "unfinished")
        ids = [int(i) for i in ids]
        new = [i for i in dict.fromkeys(ids) if i not in names]
        names.update(zip(new, model.token_strings(new)))
        ends = list(accumulate(len(names[i]) for i in ids))
        text = "".join(names[i] for i in ids)
        if not inside and not text.lstrip().startswith((tags.opening, tags.closing)):
            return NO_THINKING
        at = text.find(tags.closing)
        if at < 0:
            return ThinkingSpan(len(ids), "unfinished")
        return ThinkingSpan(next(k for k, end in enumerate(ends, 1) if end >= at + len(tags.closing)), "finished")

    return split
