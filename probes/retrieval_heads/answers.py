"""What of a response is the answer: what follows the thinking, up to where the answer ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.retrieval_heads.config import Config
from workbench.core.context import Context
from workbench.models.thinking import ThinkingSpan

if TYPE_CHECKING:
    from workbench.models.model import Model

Split = Callable[[Sequence[int]], ThinkingSpan]
_TAG = re.compile(r"<[^<>\s][^<>]*>|<\||\[/?[A-Z_]+\]")


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


@dataclass(frozen=True)
class Judged:
    """Of every trial: recall, recall without its needle (`closed`), whether it was answered, whether it is `known` (its
    question was answered without the needle, too), whether it is `kept` (its scores count), and whether the masking
    test may use it (`tested`)."""

    recalls: np.ndarray
    closed: np.ndarray
    answered: np.ndarray
    known: np.ndarray
    kept: np.ndarray
    tested: np.ndarray


def judge(recalls: np.ndarray, closed: np.ndarray, config: Config) -> Judged:
    """Which trials count, by their recall with and without the needle [trials]."""
    answered, known = recalls > config.recall_threshold, closed > config.recall_threshold
    tested = answered & ~known if config.keep == "recalled_by_reading" else answered
    kept = np.ones(len(recalls), bool) if config.keep == "all" else tested
    return Judged(recalls, closed, answered, known, kept, tested)


def warn_of_answers(answers: Sequence[str], spans: Sequence[ThinkingSpan], config: Config, context: Context) -> None:
    """Warn where most responses hold no answer that could be scored, and say what to set."""
    unfinished = sum(span.state == "unfinished" for span in spans)
    tags = sum(bool(_TAG.match(text)) for text in answers)
    empty = sum(not text for text in answers) - unfinished
    if 2 * (unfinished + tags + empty) <= len(answers):
        return
    kinds = {
        f"are thinking that was not finished within max_new_tokens={config.max_new_tokens}": unfinished,
        "begin with a tag": tags,
        "are empty": empty,
    }
    found = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    context.warn(
        f"Of {len(answers)} answers {found}, so scores say little; set thinking=off, a larger max_new_tokens or "
        f"another template (now {config.template})."
    )
