"""Views of the Explorer that somebody kept: a name, a note, and the state that its address holds.

Each is one JSON file in ``views/`` below the cache (`WORKBENCH_CACHE`)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

from workbench.core.errors import InputError
from workbench.core.files import read_json, write_json
from workbench.core.paths import cache_root
from workbench.core.private import make_folder
from workbench.core.wording import one_line

FOLDER = "views"
FILE = re.compile(r"[0-9a-f]{12}\.json")
LONGEST_NAME, LONGEST_NOTE, LONGEST_STATE = 120, 4000, 100_000  # characters


@dataclass(frozen=True)
class SavedView:
    """`id`: twelve hex digits, the name of its file. `state`: the parameters of the address. `fingerprint`: of the
    weights that were looked at. `saved`: when, UTC, ISO 8601."""

    id: str
    name: str
    note: str
    model: str
    fingerprint: str
    state: Mapping[str, str]
    saved: str

    @property
    def address(self) -> str:
        """The query of the address that opens it; it names the view, so that the screen can say what has changed."""
        return urlencode({**self.state, "view": self.id})


def folder() -> Path:
    """Where views are kept."""
    return cache_root() / FOLDER


def save(name: str, state: Mapping[str, str], *, model: str, fingerprint: str, note: str = "") -> SavedView:
    """Keep a view under a new id. Raises InputError for a name that is empty or too long, and for too large a state."""
    kept = {key: value for key, value in state.items() if key not in ("view", "token")}
    if sum(map(len, kept.values())) > LONGEST_STATE:
        raise InputError("The view is too large to keep: its prompts are longer than an address can be.")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    view = SavedView(secrets.token_hex(6), _name(name), _note(note), model, fingerprint, kept, now)
    _write(view)
    return view


def views() -> tuple[list[SavedView], list[str]]:
    """Every view that can be read, the latest first, and a sentence for each file that cannot."""
    found, problems = [], []
    root = folder()
    for path in sorted(root.glob("*.json")) if root.is_dir() else []:
        try:
            found.append(_read(path))
        except (InputError, OSError) as error:
            problems.append(f"The saved view {path.name} is left out: {one_line(error).rstrip('.')}.")
    return sorted(found, key=lambda view: (view.saved, view.id), reverse=True), problems


def get(identifier: str) -> SavedView | None:
    """The view of an id; None where there is none, or none that can be read."""
    if not FILE.fullmatch(f"{identifier}.json"):
        return None
    try:
        return _read(folder() / f"{identifier}.json")
    except (InputError, OSError):
        return None


def change(view: SavedView, *, name: str, note: str) -> SavedView:
    """The view with another name and note, kept in place of the old one."""
    changed = replace(view, name=_name(name), note=_note(note))
    _write(changed)
    return changed


def delete(view: SavedView) -> None:
    """Remove a view; one that is gone already is no error."""
    (folder() / f"{view.id}.json").unlink(missing_ok=True)


def changed_since(view: SavedView, fingerprint: str) -> str:
    """What is not as it was when the view was kept, in a sentence; empty where the weights are the same."""
    if view.fingerprint == fingerprint:
        return ""
    return (
        f"The view '{view.name}' was saved on other weights ({view.fingerprint[:12]}) than {view.model} has now "
        f"({fingerprint[:12]}): its numbers differ."
    )


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not name or len(name) > LONGEST_NAME:
        raise InputError(f"A view needs a name of up to {LONGEST_NAME} letters.")
    return name


def _note(text: str) -> str:
    if len(text) > LONGEST_NOTE:
        raise InputError(f"The note has {len(text):,} letters; {LONGEST_NOTE:,} fit.")
    return text.strip()


def _write(view: SavedView) -> None:
    make_folder(folder())
    write_json(folder() / f"{view.id}.json", asdict(view))


def _read(path: Path) -> SavedView:
    """A view from its file. Raises InputError for one that is none."""
    if not FILE.fullmatch(path.name):
        raise InputError("its name is not twelve hex digits")
    found = read_json(path)
    texts = ("name", "note", "model", "fingerprint", "saved")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in texts):
        raise InputError(f"it is not a view with {', '.join(texts)} and state")
    state = found.get("state")
    if not isinstance(state, dict) or not all(isinstance(value, str) for value in state.values()):
        raise InputError("its state is not a list of names and texts")
    return SavedView(path.stem, state=state, **{key: found[key] for key in texts})
