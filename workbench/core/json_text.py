"""JSON that people bring, read strictly: what json.loads takes in silence, or answers with an error of its own, is one
sentence here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.files import read_plain
from workbench.core.wording import one_line


def read_json_object(path: Path, *, what: str) -> dict[str, Any]:
    """The object in a JSON file, which errors call ``what``; InputError also where it is no file, cannot be opened, or
    holds no object."""
    try:
        data = read_plain(path)
    except FileNotFoundError:
        raise InputError(f"{what} is not there.") from None
    except OSError as error:
        raise InputError(f"{what} cannot be opened ({error.strerror or one_line(error)}).") from None
    return parse_json_object(data, what=what)


def parse_json_object(data: bytes, *, what: str) -> dict[str, Any]:
    """The object in the bytes of a JSON file (a byte-order mark is dropped); InputError for bytes that hold none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    found = parse_json(text, what)
    if not isinstance(found, dict):
        raise InputError(f"{what} holds no JSON object but {'a list' if isinstance(found, list) else 'one value'}.")
    return found


def parse_json(text: str, where: str, *, line: int | None = None) -> Any:
    """The value of a JSON text; NaN, which Python and pandas write for what is missing, is None, as null is.

    Infinities stay: who reads them as text or as a number says what is wrong. Raises InputError that begins with
    ``where`` (and ``line``, else the line of the fault) for what is no JSON, for an object with a key twice, for one
    that is nested too deeply and for a whole number of thousands of digits."""
    at = where if line is None else f"{where}, line {line}"
    try:
        return json.loads(text, parse_constant=_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, line {line or error.lineno}: not valid JSON ({error.msg}).") from None
    except _Twice as error:
        raise InputError(f"{at}: not valid JSON (the key '{error}' is there twice in one object).") from None
    except RecursionError:
        raise InputError(f"{at}: the JSON is nested too deeply to be read.") from None
    except ValueError:  # the longest whole number that Python turns into an int
        raise InputError(f"{at}: a whole number has too many digits; write it as text, between quotes.") from None


class _Twice(Exception):
    """A key of an object that is there twice."""


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)
