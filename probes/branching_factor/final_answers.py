"""What an output answers, as a word that can be counted."""

from __future__ import annotations

import re

from probes.branching_factor.sentences import sentence_ends

BOXED = r"\boxed{"
SAID = re.compile(r"(?:answer\s+is|answer\s*:|####)", re.IGNORECASE)


def final_answer(text: str) -> str:
    """What the last \\boxed{…} of a text holds; else what stands behind its last "answer is", "answer:" or "####", in
    the same sentence; else its last sentence. In lower case, without white space and punctuation at its ends; "" for
    none."""
    if (found := _boxed(text)) is not None:
        return _plain(found)
    said = list(SAID.finditer(text))
    if said and (found := _plain(_sentences(text[said[-1].end() :].lstrip())[0])):
        return found
    return next((answer for part in reversed(_sentences(text)) if (answer := _plain(part))), "")


def _boxed(text: str) -> str | None:
    """What the braces of the last \\boxed hold; None where there is none that closes."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    depth = 0
    for at in range(start + len(BOXED) - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len(BOXED) : at]
    return None


def _sentences(text: str) -> list[str]:
    ends = [0, *sentence_ends(text), len(text)]
    return [text[a:b] for a, b in zip(ends, ends[1:])] or [""]


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .,;:!?…\"'“”’*_$()[]")
