"""What the screens keep between clicks, within bounds: runs and their tables, models, passes, rows, scores. Nothing is
copied or pickled. What comes from a file is kept until the file changes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import streamlit as st

from workbench import organisms
from workbench.core import file_hashes
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.registry import Probe
from workbench.explorer import example_prompts, head_sets, readings, token_groups
from workbench.explorer.heads_in_runs import HeadsInRuns
from workbench.explorer.lens_maps import lens_map as read_lens
from workbench.explorer.opened_model import Head, Opened, open_model
from workbench.explorer.opening_head import induction
from workbench.explorer.patch_maps import PatchMap, paths_into
from workbench.explorer.patch_maps import patch_map as patched
from workbench.explorer.sub_blocks import sub_blocks
from workbench.explorer.switches import Switches
from workbench.explorer.targets import Target
from workbench.explorer.waterfall import Waterfall
from workbench.explorer.waterfall import waterfall as parts_of_logit
from workbench.models.load_options import AUTOMATIC, local_folder
from workbench.models.precision import CHOICES
from workbench.runs import demo, execution
from workbench.runs.folder import Run, unreadable_sentence
from workbench.runs.run_index import RunIndex

SHORT = 12  # of the sequences that heads are scored on: the shortest tell which head to open on
MODEL_FILES = (".json", ".jinja", ".model", ".safetensors")  # what a model's folder is known by


def stamp(path: Path) -> tuple[int, ...]:
    """Changes when the file does, also where its size and its time are the old ones."""
    try:
        return file_hashes.stamp(path)
    except OSError:
        return ()


@st.cache_resource(max_entries=4, show_spinner=False)
def _index(root: str) -> RunIndex:
    return RunIndex(Path(root))


def look_again() -> None:
    """Look at every run there is: once whenever a whole screen is drawn. What a click draws anew only glances."""
    _index(str(execution.runs_root())).look()


def _glanced() -> RunIndex:
    index = _index(str(execution.runs_root()))
    index.glance()
    return index


def run_list() -> list[Run]:
    """Every run that can be read, the latest first; one is read again only when its run.json is new or has changed."""
    return _glanced().runs


def unreadable() -> str:
    """``1 folder could not be read: …``; nothing where every run can be."""
    return unreadable_sentence(_glanced().unreadable)


def table(run: Run, name: str) -> pl.DataFrame:
    """A table of a run, as `Run.table` gives it."""
    return _table(str(run.folder), name, stamp(run.folder / "tables" / f"{name}.parquet"), run)


@st.cache_resource(max_entries=128, show_spinner=False)
def _table(folder: str, name: str, stamp: tuple, _run: Run) -> pl.DataFrame:
    return _run.table(name)


@st.cache_resource(max_entries=4, show_spinner=False)
def _heads_of(root: str, fingerprint: str, name: str | None) -> HeadsInRuns:
    return HeadsInRuns(fingerprint, name)


def heads_in_runs(fingerprint: str, name: str | None = None) -> HeadsInRuns:
    """What the complete runs of this very model, and those imported under its name, say of its heads."""
    index = _glanced()
    return _heads_of(str(index.root), fingerprint, name).of(index.runs, seen=(index.version, index.looks))


def head_tables(fingerprint: str, name: str | None = None) -> list[tuple[Run, pl.DataFrame]]:
    """The tables of heads that the complete runs of this very model have, and those imported under its name."""
    return heads_in_runs(fingerprint, name).tables


def left_out(fingerprint: str, name: str | None = None) -> str:
    """What `head_tables` and `run_list` could not read, in a sentence each; nothing where they read all."""
    damaged = heads_in_runs(fingerprint, name).damaged
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


def precision() -> str:
    """The precision that is chosen for the Explorer's models, in its widget or in the URL."""
    asked = st.session_state.get("dtype") or st.query_params.get("dtype")
    return asked if asked in CHOICES else AUTOMATIC


def model(name: str, dtype: str | None = None, device: str | None = None) -> Opened:
    """A model, loaded once, in the precision that is named or chosen on the screen; loaded again when the files in its
    folder have changed."""
    dtype = dtype or precision()
    folder = local_folder(name) if name not in organism_names() else None
    return _model(name, dtype, device, file_hashes.folder_stamps(folder) if folder is not None else ())


@st.cache_resource(max_entries=2, show_spinner="Loading the model")
def _model(name: str, dtype: str, device: str | None, stamps: tuple) -> Opened:
    return open_model(name, dtype=dtype, device=device)


def demo_problem(probe: Probe, name: str) -> str | None:
    """Why the probe has no short run on a model, in a sentence; asked again when files in the model's folder have
    changed."""
    folder = local_folder(name) if name not in organism_names() else None
    files = [] if folder is None else sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES)
    return _demo_problem(probe.name, name, tuple((path.name, *stamp(path)) for path in files), probe)


@st.cache_data(max_entries=64, show_spinner="Looking at the model's files")
def _demo_problem(probe: str, name: str, stamps: tuple, _probe: Probe) -> str | None:
    return demo.problem(_probe, name)


def _of_model(opened: Opened) -> str:
    """What results are kept by: the weights and how they are held, not only the name they were opened under (`who`)."""
    model = opened.model
    return f"{model.fingerprint} {model.tokenizer_fingerprint} {model.dtype} {model.device}"


BY_MODEL = {Opened: _of_model}


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=BY_MODEL)
def reading(who: str, ids: tuple[int, ...], switches: Switches, opened: Opened):
    return readings.read(opened, ids, switches)


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=BY_MODEL)
def rows(who: str, ids: tuple[int, ...], position: int, switches: Switches, opened: Opened):
    return readings.attention_rows(opened, ids, position, switches)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_MODEL)
def pattern(who: str, ids: tuple[int, ...], layer: int, head: int, switches: Switches, opened: Opened):
    return readings.pattern(opened, ids, layer, head, switches)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_MODEL)
def scores(who: str, ids: tuple[int, ...], opened: Opened):
    """Live scores on the prompt; on likely words said twice where ``ids`` is empty."""
    return readings.head_scores(opened, [ids] if ids else readings.repeated_tokens(opened))


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_MODEL)
def direct_effects(
    who: str, ids: tuple[int, ...], switches: Switches, target: Target, position: int, opened: Opened
) -> pl.DataFrame:
    """Every head's direct effect on the target at one token."""
    return readings.direct_effects(opened, reading(who, ids, switches, opened), target, position)


@st.cache_resource(max_entries=64, show_spinner=False, hash_funcs=BY_MODEL)
def writes(
    who: str, ids: tuple[int, ...], switches: Switches, layer: int, head: int, position: int, opened: Opened
) -> pl.DataFrame:
    return readings.head_writes(opened, reading(who, ids, switches, opened), layer, head, position, k=5)


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=BY_MODEL)
def induction_head(who: str, opened: Opened) -> tuple[tuple[int, int] | None, str]:
    """The head with the highest induction score on words said twice, among those above their control; None, and why,
    where no head is."""
    try:
        found = induction(opened, readings.repeated_tokens(opened)[:SHORT])
    except WorkbenchError as error:  # few words, no attention rows: the cards that need them say so, too
        return None, str(error)
    best = head_sets.top_heads(found, "induction", 1)
    return (best[0], "") if best else (None, head_sets.none_because(found, "induction") or "")


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_MODEL)
def lens_map(
    who: str, ids: tuple[int, ...], switches: Switches, of: str, target: Target | None, opened: Opened
) -> pl.DataFrame:
    """What every layer would say at every token."""
    parts = None if of == "stream" else sub_blocks(opened, ids, None, switches)
    return read_lens(opened, reading(who, ids, switches, opened), of=of, parts=parts, target=target)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_MODEL)
def group_map(
    who: str,
    ids: tuple[int, ...],
    switches: Switches,
    of: str,
    groups: str,
    _groups: token_groups.TokenGroups,
    opened: Opened,
) -> pl.DataFrame:
    """Which group of tokens has most of what every layer would say at every token; `groups` names them."""
    parts = None if of == "stream" else sub_blocks(opened, ids, None, switches)
    return token_groups.group_map(opened, reading(who, ids, switches, opened), _groups.groups, of=of, parts=parts)


def groups_in_runs(fingerprint: str) -> list[token_groups.TokenGroups]:
    """The groups of tokens that the complete runs of this very model declare, the latest run first."""
    return token_groups.token_groups(run_list(), fingerprint=fingerprint, read=table)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_MODEL)
def waterfall(
    who: str, ids: tuple[int, ...], switches: Switches, target: Target, position: int, opened: Opened
) -> Waterfall:
    """The parts of the target's logit at one token."""
    return parts_of_logit(opened, ids, target, position=position, switches=switches)


@st.cache_resource(max_entries=8, show_spinner="Patching", hash_funcs=BY_MODEL)
def patch_map(
    who: str,
    ids: tuple[int, ...],
    donor: tuple[int, ...],
    target: Target,
    kind: str,
    alignment: tuple[int, ...],
    opened: Opened,
) -> PatchMap:
    """The target with one activation at a time taken from the donor."""
    return patched(opened, ids, donor, target, kind=kind, alignment=alignment)


@st.cache_resource(max_entries=8, show_spinner="Following paths between heads", hash_funcs=BY_MODEL)
def paths(
    who: str, ids: tuple[int, ...], donor: tuple[int, ...], receiver: Head, target: Target, opened: Opened
) -> pl.DataFrame:
    """What each earlier head says to one head."""
    return paths_into(opened, ids, donor, receiver, target)
