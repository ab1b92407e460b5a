"""Before a run begins: whose folder is it, is the run complete already, and what of it has to go."""

from __future__ import annotations

import fnmatch
import glob
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from workbench.core.errors import InputError
from workbench.core.files import TEMPORARY
from workbench.core.paths import usable_path
from workbench.core.private import make_folder
from workbench.core.wording import cut
from workbench.runs.folder import ENDED, Run, read_unsealed, runs_root

LOCK = ".lock"
RESULTS = ("summary.json", "arrays.safetensors", "progress.jsonl", "tables", "parts", "figures")
NOTES = "notes.json"


def place(out: str | Path | None, name: str) -> Path:
    """The folder of a run: the one that was asked for, else that of its id below the runs folder. InputError for a path
    that is none, and for the folders that nobody wants a run's files in."""
    if out is None:
        return runs_root() / name
    path = usable_path(out, what="--out folder")
    try:
        folder = path.resolve()
        home = Path.home().resolve()
    except (OSError, RuntimeError) as error:  # a ring of links
        raise InputError(f"The folder {path} cannot be used: {error}; choose another --out.") from None
    if folder in (home, folder.parent, runs_root().resolve()):
        raise InputError(f"{folder} is no folder for one run; choose another --out, such as {folder / name}.")
    return folder


def finished(folder: Path, name: str) -> Run | None:
    """The run where it is complete and sound, so that there is nothing to do and nothing to write."""
    if not os.path.lexists(folder / "run.json"):
        return None
    try:
        run = read_unsealed(folder)
    except InputError:
        return None
    return run if run.id == name and run.info["status"] == "complete" and not run.damage() else None


def left_over(folder: Path) -> bool:
    """Whether a process that was killed left things behind that have to go."""
    return any(item == "parts" or _passing(item) for item in os.listdir(folder))


def own(folder: Path, name: str, *, fresh: bool, leaves: Iterable[str]) -> None:
    """Make the folder, unless what is there belongs to somebody else or cannot be told. ``fresh``: what is left of this
    run may be forgotten, even where its run.json cannot be read. ``leaves``: patterns of what the probe leaves."""
    try:
        make_folder(folder)
        there = {item for item in os.listdir(folder) if not _passing(item)}
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is a file, or lies below one; choose another --out for the folder.") from None
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be used: {error.strerror}; choose another place.") from None
    foreign = sorted(item for item in there if not _of_a_run(item, leaves))
    if "run.json" in there:
        try:
            other = read_unsealed(folder).id
        except InputError as error:
            if not fresh:
                raise
            if foreign:
                raise InputError(
                    f"{str(error).partition(' cannot be read')[0]} cannot be read, and the folder also holds "
                    f"{cut(foreign[0], 60)}, which is no file of a run: it is left alone; choose another --out."
                ) from None
            return
        if other != name:
            raise InputError(f"{folder} already holds another run, {other}; choose another --out, or remove it.")
    elif foreign:
        raise InputError(
            f"{folder} is not empty and holds no run (it holds {cut(foreign[0], 60)}); choose another --out."
        )
    elif there - {NOTES} and not fresh:
        raise InputError(
            f"{folder} is not empty and holds no run: it holds files of a run and no run.json; move it away, or "
            f"compute the run again with --fresh."
        )


def clear(folder: Path, *, leaves: Iterable[str] = (), figures: bool = True) -> None:
    """Forget the run in a folder: all that runs write, and what its run.json says that it left. Notes stay, and so does
    what belongs to nobody."""
    try:
        leaves = [*leaves, *(glob.escape(name.partition("/")[0]) for name in read_unsealed(folder).files or ())]
    except InputError:  # no run.json, or one that says nothing
        leaves = list(leaves)
    for item in os.listdir(folder):
        if item == ENDED or (_of_a_run(item, leaves) and item != NOTES and (figures or item != "figures")):
            remove(folder / item)


def remove(path: Path) -> None:
    """A file, a link, a pipe or a folder, whichever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def in_words(damage: Mapping[str, str], most: int = 3) -> str:
    """``tables/heads.parquet (it is missing) and 2 more``."""
    named = [f"{name} ({problem})" for name, problem in list(damage.items())[:most]]
    return ", ".join(named) + (f" and {len(damage) - most} more" if len(damage) > most else "")


def _of_a_run(item: str, leaves: Iterable[str]) -> bool:
    return item in ("run.json", NOTES, *RESULTS) or any(fnmatch.fnmatchcase(item, pattern) for pattern in leaves)


def _passing(item: str) -> bool:
    """What comes and goes in a run's folder: its lock, half-written files of a process that was killed, what the
    system puts into any folder."""
    return item in (LOCK, ENDED, ".DS_Store") or (item.startswith(".") and TEMPORARY in item)
