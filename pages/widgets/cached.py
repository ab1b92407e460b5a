"""What the screens keep between clicks, within bounds: runs and their tables, models, passes, rows, scores. Nothing is
copied or pickled. What comes from a file is kept until the file changes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import streamlit as st

from workbench import organisms
from workbench.core.errors import InputError
from workbench.explorer import example_prompts, head_sets, readings
from workbench.explorer.readings import Opened, Switches
from workbench.runs import execution
from workbench.runs.folder import Run, Unreadable, unreadable_sentence


def stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does."""
    try:
        about = path.stat()
    except OSError:
        return (0, 0)
    return about.st_mtime_ns, about.st_size


def _stamps() -> tuple[str, tuple]:
    root = execution.runs_root()
    try:
        folders = sorted(root.iterdir())
    except OSError:  # not there, or said by the reader
        folders = []
    return str(root), tuple((folder.name, *stamp(folder / "run.json")) for folder in folders)


def run_list() -> list[Run]:
    """Every run that can be read, the latest first; read again only when a run.json is new or has changed."""
    return _run_list(*_stamps())[0]


def unreadable() -> str:
    """``1 folder could not be read: …``; nothing where every run can be."""
    return unreadable_sentence(_run_list(*_stamps())[1])


@st.cache_resource(max_entries=4, show_spinner=False)
def _run_list(root: str, stamps: tuple) -> tuple[list[Run], list[Unreadable]]:
    unreadable: list[Unreadable] = []
    return execution.list_runs(root=Path(root), unreadable=unreadable), unreadable


def table(run: Run, name: str) -> pl.DataFrame:
    """A table of a run, as `Run.table` gives it."""
    return _table(str(run.folder), name, stamp(run.folder / "tables" / f"{name}.parquet"), run)


@st.cache_resource(max_entries=128, show_spinner=False)
def _table(folder: str, name: str, stamp: tuple, _run: Run) -> pl.DataFrame:
    return _run.table(name)


def head_tables(fingerprint: str) -> list[tuple[Run, pl.DataFrame]]:
    """The tables of heads that the complete runs of this very model have."""
    return head_sets.head_tables(run_list(), fingerprint=fingerprint, read=table)


def left_out(fingerprint: str) -> str:
    """What `head_tables` and `run_list` could not read, in a sentence each; nothing where they read all."""
    damaged = head_sets.left_out(run_list(), fingerprint=fingerprint, read=table)
    return " ".join([*damaged, *([said] if (said := unreadable()) else [])])


def model_names() -> list[str]:
    """Organisms first, then every model that a run here was made on."""
    known = (head_sets.model_info(run).get("name") for run in run_list())
    return list(dict.fromkeys([*organism_names(), *(str(name) for name in known if name)]))


@st.cache_resource(max_entries=1, show_spinner=False)
def organism_names() -> tuple[str, ...]:
    return tuple(organisms.names())


@st.cache_data(show_spinner=False, max_entries=16)
def prompts(name: str) -> list[str]:
    """Prompts to begin with. One can always type, so a data file that is not there is no error here."""
    try:
        return example_prompts.prompts(name)
    except InputError:
        return list(example_prompts.ENGLISH)


@st.cache_resource(max_entries=2, show_spinner="Loading the model")
def model(name: str, dtype: str = "float32", device: str | None = None) -> Opened:
    return readings.open_model(name, dtype=dtype, device=device)


# The model goes in as `_opened` (not hashed) beside `who`, the name it was opened under.
@st.cache_resource(max_entries=8, show_spinner=False)
def reading(who: str, ids: tuple[int, ...], switches: Switches, _opened: Opened):
    return readings.read(_opened, ids, switches)


@st.cache_resource(max_entries=32, show_spinner=False)
def rows(who: str, ids: tuple[int, ...], position: int, switches: Switches, _opened: Opened):
    return readings.attention_rows(_opened, ids, position, switches)


@st.cache_resource(max_entries=16, show_spinner=False)
def pattern(who: str, ids: tuple[int, ...], layer: int, head: int, switches: Switches, _opened: Opened):
    return readings.pattern(_opened, ids, layer, head, switches)


@st.cache_resource(max_entries=16, show_spinner=False)
def scores(who: str, ids: tuple[int, ...], _opened: Opened):
    """Live scores on the prompt; on repeated random tokens where ``ids`` is empty."""
    return readings.head_scores(_opened, [ids] if ids else readings.repeated_tokens(_opened))


@st.cache_resource(max_entries=16, show_spinner=False)
def direct_effects(who: str, ids: tuple[int, ...], switches: Switches, _opened: Opened) -> pl.DataFrame:
    """Every head's direct effect on the logit of the top next token."""
    found = reading(who, ids, switches, _opened)
    return readings.direct_effects(_opened, found, int(found.logits.argmax()))


@st.cache_resource(max_entries=64, show_spinner=False)
def writes(
    who: str, ids: tuple[int, ...], switches: Switches, layer: int, head: int, position: int, _opened: Opened
) -> pl.DataFrame:
    return readings.head_writes(_opened, reading(who, ids, switches, _opened), layer, head, position, k=5)


@st.cache_resource(max_entries=4, show_spinner=False)
def induction_head(who: str, _opened: Opened) -> tuple[int, int]:
    """The head with the highest induction score on repeated random tokens."""
    return head_sets.top_heads(scores(who, (), _opened), "induction", 1)[0]


@st.cache_resource(max_entries=32, show_spinner=False)
def written(who: str, ids: tuple[int, ...], switches: Switches, most: int, _opened: Opened) -> str:
    return readings.write_on(_opened, ids, switches, most=most)


@st.cache_resource(max_entries=16, show_spinner=False)
def lens(who: str, ids: tuple[int, ...], switches: Switches, _opened: Opened):
    return readings.lens(_opened, reading(who, ids, switches, _opened))
