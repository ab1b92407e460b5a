"""Where the workbench keeps things on disk."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.core.errors import InputError
from workbench.core.wording import cut

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on the systems of today


def user_path(path: str | Path) -> Path:
    """The path that a person means: ``~`` is the home folder, unless something of that very name is here. InputError
    for what is no path, as a table that was not written to a file."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(
            f"The path of a file is needed here, not a {type(path).__name__}; write it to a file and give its path."
        )
    path = Path(path)
    if not str(path).startswith("~") or is_there(path):
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # ~name, where nobody has that name
        return path


def is_there(path: str | Path) -> bool:
    """Whether something has this path; a text that can be no path is none."""
    try:
        return os.path.exists(path)
    except ValueError:  # a null character
        return False


def cache_root() -> Path:
    """The folder of the activation store and of the runs: ``$WORKBENCH_CACHE``, else ``cached/`` of the checkout, else
    the user's cache folder."""
    named = os.environ.get("WORKBENCH_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "cached").is_dir():
        return checkout / "cached"
    import platformdirs

    return Path(platformdirs.user_cache_dir("interpretability-workbench"))


def usable_path(path: str | Path, *, what: str) -> Path:
    """A path that somebody typed, ``~`` spelt out. InputError for what can be no path of a ``what``: an empty one, one
    with a null character, one longer than systems take."""
    text = os.fspath(path)
    if not text:
        raise InputError(f"The path of the {what} is empty; give one, or leave the option out.")
    if "\0" in text:
        raise InputError(f"The path of the {what} holds a null character, which no path can.")
    try:
        whole = os.fsencode(text)
    except UnicodeEncodeError:
        raise InputError(f"The path of the {what} holds half a character (an unpaired surrogate).") from None
    if len(whole) > LONGEST_PATH or any(len(name) > LONGEST_NAME for name in whole.split(b"/")):
        raise InputError(
            f"The path of the {what} is too long, at most {LONGEST_NAME} bytes in a name and {LONGEST_PATH} in all: "
            f"{cut(text, 60)}."
        )
    return user_path(text)
