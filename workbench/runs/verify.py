"""Are the files of runs what the runs left? Every one is read and compared with its checksum."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from workbench.core.errors import InputError
from workbench.runs.folder import UnreadableRun, find_folder, list_runs, read_unsealed

SOUND, DAMAGED, NO_CHECKSUMS, NOT_COMPLETE = "ok", "damaged", "no checksums", "not complete"


@dataclass(frozen=True)
class Verdict:
    """``status``: ok, damaged, no checksums (a run from before there were any) or not complete. ``files``: how many
    were compared; ``damage``: those that are not what was written -> how."""

    run: str
    folder: str
    status: str
    files: int = 0
    damage: dict[str, str] = field(default_factory=dict)


def verify(reference: str | Path, *, root: Path | None = None) -> Verdict:
    """The verdict on one run, by its folder, id or a beginning of its id. InputError where there is no such run."""
    return _of(find_folder(reference, root=root))


def verify_all(*, root: Path | None = None) -> list[Verdict]:
    """The verdicts on all runs, the latest first, and on the folders that cannot be read as one."""
    unreadable: list[UnreadableRun] = []
    found = [run.folder for run in list_runs(root=root, unreadable=unreadable)]
    return [_of(folder) for folder in [*found, *(item.folder for item in unreadable)]]


def _of(folder: Path) -> Verdict:
    try:
        run = read_unsealed(folder)
    except InputError as error:
        return Verdict(folder.name, str(folder), DAMAGED, damage={"run.json": str(error).rstrip(".")})
    if run.info["status"] != "complete":
        return Verdict(folder.name, str(folder), NOT_COMPLETE)
    damage = run.damage()
    if run.files is None and not damage:
        return Verdict(folder.name, str(folder), NO_CHECKSUMS)
    return Verdict(folder.name, str(folder), DAMAGED if damage else SOUND, len(run.files or {}), damage)
