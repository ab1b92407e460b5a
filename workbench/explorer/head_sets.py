"""Heads by what runs say of them: the columns that colour the grid, the best head, the top k, and saved head masks.

Which tables and columns those are, and which files are head masks, each probe declares (`head_scores`, `leaves`). Of a
run whose probe is not installed here they are guessed from the shape of its table `heads` and of its files."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from workbench.core import registry
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.json_text import parse_json_object
from workbench.core.private import make_folder
from workbench.core.registry import Probe
from workbench.explorer import beside_control
from workbench.explorer.opened_model import Head
from workbench.explorer.switches import Switches
from workbench.runs.folder import Run, read_file

if TYPE_CHECKING:
    from workbench.models.model import Model

GUESSED = "heads"  # the table that a probe that is not installed here may have
NO_SCORES = ("layer", "head", "kv_group", "n", "n_trials")
INTERVAL = ("ci_low", "ci_high")
SIDES = ("at least", "at most", "at least in size")  # of a value that heads are chosen by
MASKS = ("zero", "uniform")  # what a file of heads can ask for


def model_info(run: Run) -> dict:
    """The ``model`` entry of run.json; empty where the run has none."""
    about = run.info.get("model")
    return about if isinstance(about, dict) else {}


def runs_of(runs: Sequence[Run], *, fingerprint: str | None, name: str | None = None) -> list[Run]:
    """Complete runs of this very model (by its weights), and those imported that were said to be of a model of that
    ``name``."""
    found = [run for run in runs if run.info.get("status") == "complete"]  # a file that is damaged says so when read
    return [
        run
        for run in found
        if fingerprint in (None, model_info(run).get("fingerprint"))
        or (name is not None and run.info.get("imported") and model_info(run).get("name") == name)
    ]


def probe_of(run: Run) -> Probe | None:
    """The probe of a run; None where it is not installed here."""
    try:
        return registry.get(run.probe)
    except WorkbenchError:
        return None


def scored_tables(run: Run) -> list[str]:
    """The tables of a run that hold scores of heads, the main one first."""
    probe = probe_of(run)
    declared = (GUESSED,) if probe is None else tuple(probe.head_scores)
    return [name for name in declared if name in run.tables]


def scores(run: Run, table: str, frame: pl.DataFrame) -> list[str]:
    """The columns of such a table that say something about a head, in its order."""
    probe = probe_of(run)
    if probe is not None:
        return [c for c in frame.columns if c in probe.head_scores.get(table, ())]
    return [c for c in frame.columns if c not in (*NO_SCORES, *INTERVAL) and not c.endswith(("_low", "_high"))]


def numeric(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those of the columns that are numbers, or true and false."""
    return [c for c in columns if frame[c].dtype.is_numeric() or frame[c].dtype == pl.Boolean]


def main_score(run: Run) -> str | None:
    """The column that the interval of a run's head scores belongs to, and by which its best head is found."""
    probe = probe_of(run)
    if probe is None:
        return "score"
    return next((columns[0] for columns in probe.head_scores.values() if columns), None)


def is_share(run: Run, column: str) -> bool:
    """Whether a score of a run is a share or a frequency."""
    probe = probe_of(run)
    return probe is not None and column in probe.shares


def head_tables(
    runs: Sequence[Run],
    *,
    fingerprint: str | None = None,
    name: str | None = None,
    read: Callable[[Run, str], pl.DataFrame] = Run.table,
) -> list[tuple[Run, pl.DataFrame]]:
    """What the complete runs of this very model (see :func:`runs_of`) say of its heads: a run, and a table with
    ``layer``, ``head``, its scores and the interval of the main one. A table that cannot be read is left out."""
    found = []
    for run in runs_of(runs, fingerprint=fingerprint, name=name):
        parts = []
        for table in scored_tables(run):
            try:
                frame = read(run, table)
            except InputError:
                continue
            if {"layer", "head"} <= set(frame.columns):
                interval = [c for c in INTERVAL if c in frame.columns and not parts]
                parts.append(frame.select("layer", "head", *scores(run, table, frame), *interval))
        if parts:
            found.append((run, _side_by_side(parts)))
    return found


def left_out(
    runs: Sequence[Run],
    *,
    fingerprint: str | None = None,
    name: str | None = None,
    read: Callable[[Run, str], pl.DataFrame] = Run.table,
) -> list[str]:
    """Why `head_tables` has not the tables that it has not: a sentence for each that cannot be read."""
    reasons = []
    for run in runs_of(runs, fingerprint=fingerprint, name=name):
        for table in scored_tables(run):
            try:
                read(run, table)
            except InputError as error:
                reasons.append(str(error))
    return reasons


def _side_by_side(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One row per head with the columns of all; a name that several have is the first one's."""
    whole = parts[0]
    for part in parts[1:]:
        new = [c for c in part.columns if c not in whole.columns]
        whole = whole.join(part.select("layer", "head", *new), on=["layer", "head"], how="left", maintain_order="left")
    return whole


def score_columns(frame: pl.DataFrame) -> list[str]:
    """The columns of such a table (of `head_tables`) that are a score in numbers."""
    return numeric(frame, [c for c in frame.columns if c not in ("layer", "head", *INTERVAL)])


def run_columns(tables: Sequence[tuple[Run, pl.DataFrame]]) -> dict[str, tuple[str, str]]:
    """Columns that can colour the head grid: label → (run id, column)."""
    return {column_label(run, column): (run.id, column) for run, frame in tables for column in score_columns(frame)}


def column_label(run: Run, column: str) -> str:
    """How a column of a run is called where it can colour the heads."""
    return f"{column} · {run.id}"


def best_head(tables: Sequence[tuple[Run, pl.DataFrame]]) -> Head | None:
    """The head with the highest main score in the first of these tables that has scores, among those that the table
    marks (true, or a word other than "none") where it marks any column so; None where none has, or none is marked."""
    for run, frame in tables:
        column = main_score(run)
        if column in frame.columns and frame[column].dtype.is_numeric():
            for head in top_heads(_marked(frame), column, 1):
                return head
    return None


def _marked(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of the heads that a table gives a name: all where it has no column that could."""
    flags = [pl.col(c) for c in frame.columns if frame[c].dtype == pl.Boolean]
    words = [pl.col(c) != "none" for c in frame.columns if frame[c].dtype == pl.String]
    return frame.filter(pl.any_horizontal(flags or words)) if flags or words else frame


def top_heads(frame: pl.DataFrame, column: str, k: int) -> list[Head]:
    """The k heads with the largest finite value of a column, largest first. Of a score that has a control in the table
    (`readings.head_scores`) only heads that are above it: none where no head is, or where there are too few sequences
    to tell (`none_because`)."""
    kept = frame.with_columns(pl.col(column).cast(pl.Float64)).filter(pl.col(column).is_finite())
    if beside_control.has_control(frame, column):
        kept = kept.filter(pl.col(f"{column}_above"))
    kept = kept.sort(column, "layer", "head", descending=[True, False, False]).head(k)
    return [(int(a), int(b)) for a, b in kept.select("layer", "head").iter_rows()]


def heads_from(frame: pl.DataFrame, column: str, value: float, side: str = "at least") -> list[Head]:
    """The heads whose finite value of a column is at least `value`, at most it, or at least it in size, in order.
    Raises InputError for an unknown side."""
    if side not in SIDES:
        raise InputError(f"Heads are chosen by a value that is {', '.join(SIDES)} a number, not '{side}'.")
    score = pl.col(column).cast(pl.Float64)
    kept = {"at least": score >= value, "at most": score <= value, "at least in size": score.abs() >= value}[side]
    chosen = frame.filter(score.is_finite() & kept).sort("layer", "head")
    return [(int(a), int(b)) for a, b in chosen.select("layer", "head").iter_rows()]


def none_because(frame: pl.DataFrame, column: str) -> str | None:
    """Why `top_heads` names no head for a score, in a sentence; None where it names one."""
    if top_heads(frame, column, 1):
        return None
    if beside_control.has_control(frame, column):
        return beside_control.in_words(frame, column)
    return f"None: the column '{column}' has no value for any head."


# ---- saved masks


def masks_folder() -> Path:
    from workbench.core.paths import cache_root

    return cache_root() / "masks"


def saved_masks(runs: Sequence[Run] = (), *, fingerprint: str | None = None) -> dict[str, Path]:
    """Head masks by what they are called: those saved under a name, then those that complete runs of this very model
    left."""
    found = {path.stem: path for path in sorted(masks_folder().glob("*.json"))}
    for run in runs_of(runs, fingerprint=fingerprint):
        for path in _masks_of(run):
            found[f"{path.stem.replace('_', ' ')} · {run.id}"] = path
    return found


def _masks_of(run: Run) -> list[Path]:
    """The masks that a run left: those that its run.json knows of, in a run from before it knew, those that are
    there."""
    files = [path.name for path in run.folder.glob("*.json")] if run.files is None else list(run.files)
    names = sorted(name for name in files if name.endswith(".json") and "/" not in name)
    probe = probe_of(run)
    if probe is None:
        return [run.folder / name for name in names if _is_mask(run.folder / name)]
    patterns = [pattern for pattern, what in probe.leaves.items() if what == registry.HEAD_MASK]
    return [run.folder / name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _is_mask(path: Path) -> bool:
    try:
        return {"heads", "ablation"} <= set(parse_json_object(read_file(path), what=path.name))
    except InputError:
        return False


def save_mask(name: str, switches: Switches, *, note: str = "", model: Model | None = None) -> Path:
    """Keep a set of heads under a name, as a file that `--edit` reads; `model`: the one they belong to. Raises
    InputError for a name that is no name, and for heads that are switched in a way a mask cannot hold (a mean or a
    patch needs the numbers that are put in place)."""
    from workbench.engine.head_masks import save_heads

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,60}", name):
        raise InputError("A mask's name is made of letters, digits, spaces, points, hyphens and underscores.")
    if not switches.heads:
        raise InputError("No head is switched off: there is nothing to save.")
    if switches.mlps:
        raise InputError("A mask holds heads only: switch the MLPs on again, then save.")
    if switches.how not in MASKS:
        raise InputError(
            f"A mask cannot hold '{switches.how}', only {' or '.join(MASKS)}: choose one of these beside the "
            f"switch, then save."
        )
    make_folder(masks_folder())
    path = masks_folder() / f"{name}.json"
    save_heads(path, switches.heads, how=switches.how, note=note, model=model)
    return path


def load_mask(name: str, masks: Mapping[str, Path]) -> Switches:
    """One of the `saved_masks` by its name (nothing else is ever read)."""
    from workbench.engine.head_masks import parse_mask

    if name not in masks:
        raise InputError(f"There is no saved mask '{name[:60]}'.")
    found = parse_mask(read_file(masks[name]), masks[name])
    return Switches(found.heads, found.how)
