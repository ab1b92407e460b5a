"""What of a response is the answer: what follows the thinking, up to where the answer ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from workbench.models.thinking import ThinkingSpan

if TYPE_CHECKING:
    from workbench.models.model import Model

Split = Callable[[Sequence[int]], ThinkingSpan]


def stop_rule(model: Model, words: Sequence[str], split: Split) -> Callable[[Sequence[int]], bool]:
    """Whether a response ends with the last of the tokens emitted so far: at the model's own end, or at a token that
    contains one of these. None of them ends the thinking, and white space (a line break) ends an answer only once it
    has a word."""
    known: dict[int, tuple[bool, bool]] = {}  # of a token: whether it holds a stop, and one that is no white space

    def stops(emitted: Sequence[int]) -> bool:
        token = emitted[-1]
        if token in model.eos_ids:
            return True
        if token not in known:
            held = [word for word in words if word in model.tokenizer.decode([token])]
            known[token] = bool(held), any(word.strip() for word in held)
        if not known[token][0]:
            return False
        span = split(emitted)
        if span.state == "unfinished" or span.end == len(emitted):
            return False
        return known[token][1] or any(c.isalnum() for c in model.decode(emitted[span.end :]))

    return stops


def answer_text(model: Model, generated: Sequence[int], split: Split) -> str:
    """The answer in what was generated, without its thinking; empty where the thinking was not finished."""
    return model.decode(generated[split(generated).end :]).strip()
