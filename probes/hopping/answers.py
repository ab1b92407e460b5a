"""What counts as naming an entity: in an answer, and in the description of a state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

# What stands around an alias in a description; the first four begin one, as the describing prompt writes it.
AROUND = (": {} ", ": {},", ": {}.", ": {}:", "{}: ")


def usable(label: str, aliases: Iterable[str]) -> tuple[str, ...]:
    """The names of an entity that are looked for, its label first: aliases of a single character are in most texts."""
    names = [label.strip(), *(alias.strip() for alias in aliases if len(alias.strip()) > 1)]
    return tuple(dict.fromkeys(name for name in names if name))


def says(text: str, names: Sequence[str], match: str = "contains") -> bool:
    """Whether a text names an entity, in any case: one of its names anywhere in it, or with match=words as whole words.
    A name of a single character has to be a word of its own in either way."""
    text = text.casefold()
    return any(
        name.casefold() in text if match == "contains" and len(name) > 1 else bool(_word(name).search(text))
        for name in names
    )


@lru_cache(65536)
def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name.casefold())}(?!\w)")


def describes(text: str, names: Sequence[str]) -> bool:
    """Whether the text that follows a describing prompt describes an entity: one of its names stands in it as in
    AROUND, in any case."""
    return any(pattern in text for pattern in described(names)) if (text := text.casefold()) else False


@lru_cache(65536)
def described(names: tuple[str, ...]) -> tuple[str, ...]:
    """Whatever of AROUND a description of an entity with these names holds, in lower case."""
    return tuple(around.format(name.casefold()) for name in names for around in AROUND)


def as_text(model, ids: Sequence[int]) -> str:
    """Generated tokens as they are scored: on one line, without white space at the ends."""
    return model.decode(ids).strip().replace("\n", " ")
