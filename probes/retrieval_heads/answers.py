"""Which trials count by their answers, and what is said where most responses hold none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.retrieval_heads.config import Config
from workbench.core.context import Context
from workbench.models.thinking import ThinkingSpan

_TAG = re.compile(r"<[^<>\s][^<>]*>|<\||\[/?[A-Z_]+\]")


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
