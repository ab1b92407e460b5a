"""JSON that people and other programs bring: read in one place, and whatever is wrong with it is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError
from workbench.core.wording import one_line


def parse_json(data: str | bytes, *, what: str) -> Any:
    """The value in a JSON document, which errors call ``what``. InputError for what is none, is no UTF-8, is nested
    deeper than Python goes, or holds a number of thousands of digits."""
    try:
        return json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{what} is not valid JSON (line {error.lineno}: {error.msg}).") from None
    except RecursionError:
        raise InputError(f"{what} is nested too deeply to be read; it is no file of ours.") from None
    except ValueError as error:  # Python refuses whole numbers of more than 4,300 digits
        raise InputError(f"{what} holds a number that is too long to be read ({one_line(error)}).") from None


def read_json(path: Path, *, what: str) -> Any:
    """The value in a JSON file, which errors call ``what``; InputError also where it is no file or cannot be opened."""
    if not path.is_file():  # a pipe by that name would be waited for
        raise InputError(f"{what} is {'no file' if path.exists() else 'not there'}.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{what} cannot be opened ({error.strerror or one_line(error)}).") from None
    return parse_json(data, what=what)


def read_json_object(path: Path, *, what: str) -> dict[str, Any]:
    """The same, of a file that must hold a JSON object."""
    found = read_json(path, what=what)
    if not isinstance(found, dict):
        raise InputError(f"{what} holds no JSON object but {'a list' if isinstance(found, list) else 'one value'}.")
    return found
