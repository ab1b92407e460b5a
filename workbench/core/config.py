"""Configs of probes: documented fields, strict reading of values, one-sentence errors.

A config is a frozen dataclass whose fields are all made with :func:`option`. Values come as text (``--set key=value``),
as TOML or JSON, or from Python; :func:`build` turns any of them into the dataclass or says what is wrong.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.core.config_values import checked, from_text, listed, native, shown, type_name
from workbench.core.errors import InputError
from workbench.core.files import read_plain
from workbench.core.nearest_name import nearest
from workbench.core.paths import user_path

_LARGEST_SEED = 2**32 - 1


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: Iterable[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    file: bool = False,
    later: bool | Callable[[Any], bool] = False,
) -> Any:
    """One field of a config.

    ``choices``: the values allowed (of each element, for tuples; other types of a union are not held to it when every
    choice is a string). ``low``/``high``: inclusive range of numbers; one without ``high`` ends at a thousand million,
    so declare it where memory grows with the number. ``file``: the value may name a file or folder, whose *content*
    then goes into the identity of a run. ``later``: the key was added to a probe that had runs already; at its default
    it is no part of the identity, so that these keep their ids. Where the default changed their numbers, a function of
    the config says whether its numbers are still those of such a run. Lists as defaults become tuples.
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
        "later": later,
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
                checked(native(field.default, hints[field.name]), field, hints[field.name])
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
            text = isinstance(value, str) and not literal
            parsed = from_text(value, hint, files=fields[name].metadata["file"]) if text else native(value, hint)
            ready[name] = checked(parsed, fields[name], hint)
        except ValueError as error:
            raise InputError(f"{where}: {name} = {shown(value)} is wrong: {error}.") from None
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in ready]
    if missing:
        raise InputError(f"{where} needs a value for '{missing[0]}': {fields[missing[0]].metadata['help']}.")
    try:
        return config_class(**ready)
    except ValueError as error:  # a __post_init__ that checks fields against each other
        raise InputError(f"{where}: {str(error).rstrip('.')}.") from None


def check_seed(seed: Any) -> int:
    """A seed as every generator takes it (numpy's, torch's, those of libraries). Raises InputError."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"The seed must be a whole number of at least 0, not {shown(seed)}.")
    if seed > _LARGEST_SEED:
        raise InputError(f"The seed must be at most {_LARGEST_SEED}, not {shown(seed)}.")
    return seed


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON knows it (tuples as lists); ``build(type(config), to_dict(config), literal=True) ==
    config``."""
    return {field.name: listed(getattr(config, field.name)) for field in dataclasses.fields(config)}


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
        if not value:
            return "none"
        if any(
            isinstance(item, str) and ("," in item or item != item.strip() or not item or item[0] == "[")
            for item in value
        ):
            import json

            return json.dumps(listed(value), ensure_ascii=False)
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
            "default": None if field.default is dataclasses.MISSING else listed(field.default),
            "help": field.metadata["help"],
            "choices": None if field.metadata["choices"] is None else list(field.metadata["choices"]),
            "low": field.metadata["low"],
            "high": field.metadata["high"],
            "file": field.metadata["file"],
        }
        for field in dataclasses.fields(config_class)
    ]


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

    from workbench.core.wording import one_line

    path = user_path(path)
    try:
        return tomllib.loads(read_plain(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; a TOML file is needed.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except RecursionError:
        raise InputError(f"{path} is not valid TOML: it is nested too deeply.") from None
    except ValueError as error:  # of TOML, and of a whole number that is longer than Python reads
        said = one_line(error) if isinstance(error, tomllib.TOMLDecodeError) else "a number has too many digits"
        raise InputError(f"{path} is not valid TOML: {said}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
