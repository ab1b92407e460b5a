"""Reading one value of a config: text as the command line gives it, or what TOML, JSON and Python hold, as the type of
its field. ValueError carries the reason, in words that end a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workbench.core.nearest_name import nearest
from workbench.core.paths import is_there
from workbench.core.wording import cut

CEILING = 10**9  # of numbers whose field names no bound: beyond it nothing that is counted here fits any machine
_NONE_WORDS = ("none", "null")
_TRUE_WORDS, _FALSE_WORDS = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_DIGITS = 400  # a longer number is no number that anybody meant
_COMMAS = 16  # at most, in the name of one file


def type_name(hint: Any) -> str:
    """``int``, ``float or none``, ``list of int``, ``list of 2 (int, float)``..."""
    if hint is type(None):
        return "none"
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(item) for item in typing.get_args(hint))
    if origin is typing.Literal:
        return "one of " + ", ".join(str(item) for item in typing.get_args(hint))
    if origin is tuple:
        items = typing.get_args(hint)
        if len(items) == 2 and items[1] is Ellipsis:
            return f"list of {type_name(items[0])}"
        return f"list of {len(items)} ({', '.join(type_name(item) for item in items)})"
    return getattr(hint, "__name__", str(hint))


def from_text(text: str, hint: Any, *, files: bool = False) -> Any:
    """Read ``text`` as ``hint``: a type, a union (first member that fits, text last), a tuple or a Literal.

    Entries of a list lose the white space around them, but an entry of nothing else is that white space: a blank or a
    line break can be an entry of a list of texts. What is between brackets is JSON where it can be, and nothing of it
    is changed. ``none`` is the empty list. With ``files`` an entry that is there on disk is one entry, whatever commas
    and brackets are in its name."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return text
    if origin in (typing.Union, types.UnionType):
        members = sorted(typing.get_args(hint), key=_order)
        for member in members:
            try:
                return from_text(text, member, files=files)
            except ValueError:
                continue
        raise ValueError(f"it is not {_article(type_name(hint))}")
    if origin is typing.Literal:
        for choice in typing.get_args(hint):
            if text == str(choice):
                return choice
        raise ValueError(f"it must be {_one_of(typing.get_args(hint))}{nearest(text, map(str, typing.get_args(hint)))}")
    if origin is tuple:
        return _list(text, hint, files)
    word = text.strip()
    if hint is type(None):
        if word.lower() in _NONE_WORDS:
            return None
        raise ValueError("it is not none")
    if hint is bool:
        if word.lower() in _TRUE_WORDS or word.lower() in _FALSE_WORDS:
            return word.lower() in _TRUE_WORDS
        raise ValueError("it is not true or false")
    if hint is int:
        digits = word.replace("_", "")
        if len(digits) > _DIGITS and re.fullmatch(r"[+-]?[0-9]+", digits):
            raise ValueError(f"it has {len(digits):,} characters, too many for a number")
        try:
            return int(digits)
        except ValueError:
            raise ValueError("it is not a whole number") from None
    if hint is float:
        try:
            number = float(word.replace("_", ""))
        except ValueError:
            raise ValueError("it is not a number") from None
        return _finite(number)
    if hint is str:
        return text
    raise ValueError(f"configs cannot hold {type_name(hint)}")


def native(value: Any, hint: Any) -> Any:
    """Check a TOML, JSON or Python ``value`` against ``hint``; whole numbers pass as float, lists as tuples, nothing
    else changes."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for member in sorted(typing.get_args(hint), key=_order):
            try:
                return native(value, member)
            except ValueError:
                continue
        raise ValueError(f"it is not {_article(type_name(hint))}")
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            return value
        raise ValueError(f"it must be {_one_of(typing.get_args(hint))}")
    if origin is tuple:
        if isinstance(value, range):
            value = tuple(value)
        if value is None and _may_be_empty(hint):
            return ()
        if not isinstance(value, (list, tuple)):
            value = [value]  # one value stands for a list of one, as on the command line
        return _tuple(list(value), hint, native)
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()  # a numpy scalar
    if isinstance(value, Path) and hint is str:
        return str(value)
    if hint is type(None):
        if value is None:
            return None
        raise ValueError("it is not none")
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("it is not true or false")
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ValueError("it is not a whole number")
    if hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return _finite(float(value))
        raise ValueError("it is not a number")
    if hint is str:
        if isinstance(value, str):
            return value
        raise ValueError("it is not text")
    raise ValueError(f"configs cannot hold {type_name(hint)}")


def _list(text: str, hint: Any, files: bool) -> tuple:
    """The entries of a list that is given as text."""
    word = text.strip()
    if word.lower() in _NONE_WORDS and _may_be_empty(hint):
        return ()
    if word.startswith("[") and word.endswith("]") and not (files and is_there(text)):
        try:
            read = json.loads(word)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except json.JSONDecodeError:
            text = text if "[" in word[1:-1] or "]" in word[1:-1] else word[1:-1]
        except ValueError:
            raise ValueError("a number in it has too many digits") from None
        else:
            return native(read, hint)
    of_texts = str in typing.get_args(hint)
    split = _paths(text) if files else text.split(",")
    pieces = [piece.strip() or (piece if of_texts else "") for piece in split]
    if pieces and not pieces[-1]:
        pieces.pop()  # "5," is the list of one
    return _tuple(pieces, hint, from_text)


def _may_be_empty(hint: Any) -> bool:
    return typing.get_args(hint)[-1] is Ellipsis


def _paths(text: str) -> list[str]:
    """``text`` at its commas, but for those in the name of something that is there (the longest such name)."""
    pieces, found = text.split(","), []
    while pieces:
        longest = range(min(len(pieces), _COMMAS + 1), 1, -1)
        size = next((n for n in longest if is_there(",".join(pieces[:n]).strip())), 1)
        found.append(",".join(pieces[:size]))
        del pieces[:size]
    return found


def _tuple(pieces: list[Any], hint: Any, read: Callable[[Any, Any], Any]) -> tuple:
    items = typing.get_args(hint)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_element(piece, items[0], read, index) for index, piece in enumerate(pieces))
    if len(pieces) != len(items):
        raise ValueError(f"it must have {len(items)} values, and has {len(pieces)}")
    return tuple(_element(piece, item, read, index) for index, (piece, item) in enumerate(zip(pieces, items)))


def _element(piece: Any, hint: Any, read: Callable[[Any, Any], Any], index: int) -> Any:
    try:
        return read(piece, hint)
    except ValueError as error:
        raise ValueError(f"value {index + 1}, {shown(piece)}: {error}") from None


def checked(value: Any, field: dataclasses.Field, hint: Any) -> Any:
    """Hold ``value`` (each element of a tuple) to the choices and the range of its field."""
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    if isinstance(value, tuple):
        for item in value:
            checked(item, field, hint)
        return value
    if value is None:
        return value
    if choices is not None and (isinstance(value, str) or not all(isinstance(choice, str) for choice in choices)):
        if value not in choices:
            raise ValueError(f"it must be {_one_of(choices)}{nearest(str(value), map(str, choices))}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = (-CEILING if low is None else low), (CEILING if high is None else high)
        if value < low:
            raise ValueError(f"it must be at least {low}")
        if value > high:
            raise ValueError(f"it must be at most {high}")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("it holds half a character (an unpaired surrogate), which is no text")
    return value


def _order(hint: Any) -> int:
    """The order in which the members of a union are tried: the strictest reading first, plain text last."""
    ranks = {type(None): 0, bool: 3, int: 1, float: 2, str: 9}
    return ranks.get(hint, 5)


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("it must be finite")
    return number


def listed(value: Any) -> Any:
    return [listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def _one_of(choices: Iterable[Any]) -> str:
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _article(name: str) -> str:
    for plain, word in (("int", "whole number"), ("float", "number"), ("str", "text"), ("bool", "true or false")):
        name = " ".join(word if part == plain else part for part in name.split(" "))
    return name if name.startswith(("list", "one of")) else f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value as an error quotes it."""
    try:
        return cut(f"'{value}'" if isinstance(value, str) else repr(value), 60)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list nested without end
        return f"a {type(value).__name__} that is too large to show"
