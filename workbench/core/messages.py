"""A conversation in a data file: a list of messages, each with a role and a content, in a cell of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.nearest_name import nearest

Turn = tuple[str, str]  # role, text
ROLES = ("system", "developer", "user", "assistant", "tool")


def read_messages(cell: Any) -> list[Turn]:
    """The turns (role, text) of a cell that holds a conversation: a list of {role, content}, or such a list as JSON. A
    content of several parts of text is their texts, joined.

    Raises ValueError, in words that go on after the place: what is wrong with it."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError('is no JSON list of messages, as in [{"role": "user", "content": "…"}]') from None
    if not isinstance(cell, Sequence) or isinstance(cell, str) or not len(cell):
        raise ValueError("is no list of messages with at least one of them")
    return [_turn(number, message) for number, message in enumerate(cell, 1)]


def _turn(number: int, message: Any) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise ValueError(f"has no role and content in message {number}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(
            f"has the role '{role}' in message {number}{nearest(str(role), ROLES)}; the roles are {', '.join(ROLES)}"
        )
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [p["text"] for p in content if isinstance(p, Mapping) and isinstance(p.get("text"), str)]
        content = "".join(texts) if texts and len(texts) == len(content) else None
    if not isinstance(content, str):
        raise ValueError(f"has a content that is no text in message {number}")
    return role, content
