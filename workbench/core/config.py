"""Configs of probes: documented fields, strict reading of values, one-sentence errors.

A config is a frozen dataclass whose fields are all made with :func:`option`. Values come as text (``--set key=value``),
as TOML or JSON, or from Python; :func:`build` turns any of them into the dataclass or says what is wrong.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.wording import cut

_NONE_WORDS = ("none", "null")
_TRUE_WORDS, _FALSE_WORDS = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: Iterable[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    file: bool = False,
) -> Any:
    """One field of a config.

    ``choices``: the values allowed (of each element, for tuples; other types of a union are not held to it when every
    choice is a string). ``low``/``high``: inclusive range of numbers. ``file``: the value may name a file or folder,
    whose *content* then goes into the identity of a run. Lists as defaults become tuples.
    """
    if not help:
        raise TypeError("a config field needs a help text: option(default, 'what it does')")
    if isinstance(default, list):
        default = tuple(default)
    metadata = {
        "help": " ".join(help.split()),
        "choices": None if choices is None else tuple(choices),
        "low": low,
        "high": high,
        "file": file,
    }
    return dataclasses.field(default=default, metadata=metadata)


def types_of(config_class: type) -> dict[str, Any]:
    """Field name -> type, with string annotations resolved."""
    return typing.get_type_hints(config_class)


def check_class(config_class: Any, *, where: str) -> None:
    """Refuse a config class that is not a frozen dataclass of documented fields with defaults of their own type."""
    if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
        raise TypeError(f"{where}: the config must be a dataclass, not {config_class!r}")
    # the stubs know the fields of a dataclass and not its parameters
    if not config_class.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
        raise TypeError(f"{where}: the config {config_class.__name__} must be frozen (@dataclass(frozen=True))")
    hints = types_of(config_class)
    for field in dataclasses.fields(config_class):
        if "help" not in field.metadata:
            raise TypeError(
                f"{where}: the config field '{field.name}' is not documented; make it with option(default, help)"
            )
        if field.default is not dataclasses.MISSING:
            try:
                _checked(_native(field.default, hints[field.name]), field, hints[field.name])
            except ValueError as error:
                raise TypeError(f"{where}: the default of '{field.name}' does not fit: {error}") from None


def build(
    config_class: type, values: Mapping[str, Any] | None = None, *, where: str = "the config", literal: bool = False
) -> Any:
    """The config with ``values`` in place of defaults. Text is read as ``--set`` reads it, unless ``literal`` says that
    every value already has its own type (a config read back from run.json).

    Raises InputError, one sentence, for an unknown key, a value of the wrong type, one outside its choices or range,
    a missing required key.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    hints = types_of(config_class)
    ready: dict[str, Any] = {}
    for key, value in (values or {}).items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise InputError(
                f"{where} has no key '{key}'{nearest(str(key), fields)}; its keys are {', '.join(fields)}."
            )
        hint = hints[name]
        try:
            parsed = _text(value, hint) if isinstance(value, str) and not literal else _native(value, hint)
            ready[name] = _checked(parsed, fields[name], hint)
        except ValueError as error:
            raise InputError(f"{where}: {name} = {_shown(value)} is wrong: {error}.") from None
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in ready]
    if missing:
        raise InputError(f"{where} needs a value for '{missing[0]}': {fields[missing[0]].metadata['help']}.")
    try:
        return config_class(**ready)
    except ValueError as error:  # a __post_init__ that checks fields against each other
        raise InputError(f"{where}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON knows it (tuples as lists); ``build(type(config), to_dict(config), literal=True) ==
    config``."""
    return {field.name: _listed(getattr(config, field.name)) for field in dataclasses.fields(config)}


def changed(config: Any) -> dict[str, Any]:
    """Only the values that differ from the defaults."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING or getattr(config, field.name) != field.default
    }


def format_value(value: Any) -> str:
    """The text that ``--set key=text`` reads back as ``value``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        if any(
            isinstance(item, str) and ("," in item or item != item.strip() or not item or item[0] == "[")
            for item in value
        ):
            import json

            return json.dumps(_listed(value), ensure_ascii=False)
        return ",".join(format_value(item) for item in value) + ("," if len(value) == 1 else "")
    return str(value)


def describe(config_class: type) -> list[dict[str, Any]]:
    """One dict per key: name, type, default, help, choices, low, high, file. The app's forms and ``probes --json`` are
    made of it."""
    hints = types_of(config_class)
    return [
        {
            "name": field.name,
            "type": type_name(hints[field.name]),
            "required": field.default is dataclasses.MISSING,
            "default": None if field.default is dataclasses.MISSING else _listed(field.default),
            "help": field.metadata["help"],
            "choices": None if field.metadata["choices"] is None else list(field.metadata["choices"]),
            "low": field.metadata["low"],
            "high": field.metadata["high"],
            "file": field.metadata["file"],
        }
        for field in dataclasses.fields(config_class)
    ]


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


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """``["a=1", "b=x,y"]`` -> ``{"a": "1", "b": "x,y"}``; white space of a value stays, unless some stands before the
    equals sign too."""
    values: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set takes key=value, not '{assignment}'.")
        if key.strip() in values:
            raise InputError(f"--set gives '{key.strip()}' twice.")
        values[key.strip()] = value if key == key.rstrip() else value.strip()
    return values


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as a dict; InputError names the file, and the line where it cannot be read."""
    import tomllib

    path = Path(path)
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; a TOML file is needed.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from None


# ---- reading one value. ValueError carries the reason, in words that end a sentence.


def _text(text: str, hint: Any) -> Any:
    """Read ``text`` as ``hint``: a type, a union (first member that fits, text last), a tuple or a Literal.

    Entries of a list lose the white space around them, but an entry of nothing else is that white space: a blank or a
    line break can be an entry of a list of texts. What is between brackets is JSON where it can be, and nothing of it
    is changed."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return text
    if origin in (typing.Union, types.UnionType):
        members = sorted(typing.get_args(hint), key=_order)
        for member in members:
            try:
                return _text(text, member)
            except ValueError:
                continue
        raise ValueError(f"it is not {_article(type_name(hint))}")
    if origin is typing.Literal:
        for choice in typing.get_args(hint):
            if text == str(choice):
                return choice
        raise ValueError(f"it must be {_one_of(typing.get_args(hint))}{nearest(text, map(str, typing.get_args(hint)))}")
    if origin is tuple:
        if text.strip().startswith("[") and text.strip().endswith("]"):
            import json

            try:
                return _native(json.loads(text), hint)
            except json.JSONDecodeError:
                text = text.strip()[1:-1]
        of_texts = str in typing.get_args(hint)
        pieces = [piece.strip() or (piece if of_texts else "") for piece in text.split(",")]
        if pieces and not pieces[-1]:
            pieces.pop()  # "5," is the list of one
        return _tuple(pieces, hint, _text)
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
        try:
            return int(word.replace("_", ""))
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


def _native(value: Any, hint: Any) -> Any:
    """Check a TOML, JSON or Python ``value`` against ``hint``; whole numbers pass as float, lists as tuples, nothing
    else changes."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for member in sorted(typing.get_args(hint), key=_order):
            try:
                return _native(value, member)
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
        if not isinstance(value, (list, tuple)):
            value = [value]  # one value stands for a list of one, as on the command line
        return _tuple(list(value), hint, _native)
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


def _tuple(pieces: list[Any], hint: Any, read) -> tuple:
    items = typing.get_args(hint)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_element(piece, items[0], read, index) for index, piece in enumerate(pieces))
    if len(pieces) != len(items):
        raise ValueError(f"it must have {len(items)} values, and has {len(pieces)}")
    return tuple(_element(piece, item, read, index) for index, (piece, item) in enumerate(zip(pieces, items)))


def _element(piece: Any, hint: Any, read, index: int) -> Any:
    try:
        return read(piece, hint)
    except ValueError as error:
        raise ValueError(f"value {index + 1}, {_shown(piece)}: {error}") from None


def _checked(value: Any, field: dataclasses.Field, hint: Any) -> Any:
    """Hold ``value`` (each element of a tuple) to the choices and the range of its field."""
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    if isinstance(value, tuple):
        for item in value:
            _checked(item, field, hint)
        return value
    if value is None:
        return value
    if choices is not None and (isinstance(value, str) or not all(isinstance(choice, str) for choice in choices)):
        if value not in choices:
            raise ValueError(f"it must be {_one_of(choices)}{nearest(str(value), map(str, choices))}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if low is not None and value < low:
            raise ValueError(f"it must be at least {low}")
        if high is not None and value > high:
            raise ValueError(f"it must be at most {high}")
    return value


def _order(hint: Any) -> int:
    """The order in which the members of a union are tried: the strictest reading first, plain text last."""
    ranks = {type(None): 0, bool: 3, int: 1, float: 2, str: 9}
    return ranks.get(hint, 5)


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("it must be finite")
    return number


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def _one_of(choices: Iterable[Any]) -> str:
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _article(name: str) -> str:
    for plain, word in (("int", "whole number"), ("float", "number"), ("str", "text"), ("bool", "true or false")):
        name = " ".join(word if part == plain else part for part in name.split(" "))
    return name if name.startswith(("list", "one of")) else f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def _shown(value: Any) -> str:
    return cut(f"'{value}'" if isinstance(value, str) else repr(value), 60)
