"""Heads by what runs say of them: the columns that colour the grid, the best head, the top k, and saved head masks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from workbench.core.errors import InputError
from workbench.explorer.readings import Head, Switches
from workbench.runs.folder import Run

if TYPE_CHECKING:
    from workbench.models.model import Model

NO_SCORES = ("layer", "head", "kv_group", "n", "n_trials")
MASKS = ("zero", "uniform")  # what a file of heads can ask for


def model_info(run: Run) -> dict:
    """The ``model`` entry of run.json; empty where the run has none."""
    about = run.info.get("model")
    return about if isinstance(about, dict) else {}


def runs_of(runs: Sequence[Run], table: str, *, fingerprint: str | None) -> list[Run]:
    """Complete runs of this very model (by its weights) that have a table."""
    found = [run for run in runs if run.info.get("status") == "complete"]
    return [run for run in found if fingerprint in (None, model_info(run).get("fingerprint")) and table in run.tables]


def head_tables(
    runs: Sequence[Run], *, fingerprint: str | None = None, read: Callable[[Run, str], pl.DataFrame] = Run.table
) -> list[tuple[Run, pl.DataFrame]]:
    """The ``heads`` tables of the complete runs of this very model. A table that cannot be read is left out."""
    found = []
    for run in runs_of(runs, "heads", fingerprint=fingerprint):
        try:
            frame = read(run, "heads")
        except InputError:
            continue
        if {"layer", "head"} <= set(frame.columns):
            found.append((run, frame))
    return found


def is_score(column: str) -> bool:
    """Whether a column of a ``heads`` table is about the head itself: no address, no count, no end of an interval."""
    return column not in NO_SCORES and not column.startswith("ci_") and not column.endswith(("_low", "_high"))


def score_columns(frame: pl.DataFrame) -> list[str]:
    """The columns of a ``heads`` table that say something about a head in numbers."""
    kept = [c for c in frame.columns if is_score(c)]
    return [c for c in kept if frame[c].dtype.is_numeric() or frame[c].dtype == pl.Boolean]


def run_columns(tables: Sequence[tuple[Run, pl.DataFrame]]) -> dict[str, tuple[str, str]]:
    """Columns that can colour the head grid: label → (run id, column)."""
    return {f"{column} · {run.id}": (run.id, column) for run, frame in tables for column in score_columns(frame)}


def best_head(tables: Sequence[tuple[Run, pl.DataFrame]]) -> Head | None:
    """The head with the highest ``score`` in the first of these tables that has scores; None where none has."""
    for _, frame in tables:
        if "score" in frame.columns and frame["score"].dtype.is_numeric():
            for head in top_heads(frame, "score", 1):
                return head
    return None


def top_heads(frame: pl.DataFrame, column: str, k: int) -> list[Head]:
    """The k heads with the largest finite value of a column, largest first."""
    kept = frame.with_columns(pl.col(column).cast(pl.Float64)).filter(pl.col(column).is_finite())
    kept = kept.sort(column, "layer", "head", descending=[True, False, False]).head(k)
    return [(int(a), int(b)) for a, b in kept.select("layer", "head").iter_rows()]


# ---- saved masks


def masks_folder() -> Path:
    from workbench.core.paths import cache_root

    return cache_root() / "masks"


def saved_masks(runs: Sequence[Run] = (), *, fingerprint: str | None = None) -> dict[str, Path]:
    """Head masks by what they are called: those saved under a name, then the pruned heads of complete runs of this very
    model."""
    found = {path.stem: path for path in sorted(masks_folder().glob("*.json"))}
    for run in runs:
        if run.info.get("status") == "complete" and fingerprint in (None, model_info(run).get("fingerprint")):
            for path in sorted(run.folder.glob("pruned_heads*.json")):
                found[f"{path.stem.replace('_', ' ')} · {run.id}"] = path
    return found


def save_mask(name: str, switches: Switches, *, note: str = "", model: Model | None = None) -> Path:
    """Keep a set of heads under a name, as a file that `--edit` reads; `model`: the one they belong to. Raises
    InputError for a name that is no name, and for heads that are switched in a way a mask cannot hold (a mean or a
    patch needs the numbers that are put in place)."""
    from workbench.engine.head_masks import save_heads

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,60}", name):
        raise InputError("A mask's name is made of letters, digits, spaces, points, hyphens and underscores.")
    if not switches.heads:
        raise InputError("No head is switched off: there is nothing to save.")
    if switches.how not in MASKS:
        raise InputError(
            f"A mask cannot hold '{switches.how}', only {' or '.join(MASKS)}: choose one of these beside the "
            f"switch, then save."
        )
    masks_folder().mkdir(parents=True, exist_ok=True)
    path = masks_folder() / f"{name}.json"
    save_heads(path, switches.heads, how=switches.how, note=note, model=model)
    return path


def load_mask(name: str, masks: Mapping[str, Path]) -> Switches:
    """One of the `saved_masks` by its name (nothing else is ever read)."""
    from workbench.engine.head_masks import load_edits

    if name not in masks:
        raise InputError(f"There is no saved mask '{name[:60]}'.")
    (found,) = load_edits(masks[name])
    return Switches(found.heads, found.how)
