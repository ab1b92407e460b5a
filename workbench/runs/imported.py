"""Results of others as run folders, so that they can be shown, drawn and compared like runs made here.

What a file can hold is the business of the probes: each declares its importers (``imports`` of ``@probe``), functions
``read(file: PublishedFile) -> ImportedResult | None`` that answer None for a file that does not look like theirs and
raise InputError for one that does and is wrong. A run of this kind has no seed and no config but what the file says,
its weights are unknown, and ``imported`` in its run.json says where it comes from. Its id follows from the content, so
that the same file is the same run whatever it is called and how often it is imported.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from workbench.core import registry
from workbench.core.context import Result
from workbench.core.errors import InputError
from workbench.core.files import canonical, read_plain, write_json
from workbench.core.json_text import parse_json
from workbench.core.locks import folder_lock
from workbench.core.nearest_name import nearest
from workbench.core.registry import Probe
from workbench.core.tables import existing, read_table
from workbench.runs import checksums, claim, cost, provenance, records
from workbench.runs.folder import Run, open_run
from workbench.runs.results import check_result, write_result

JSON_NAMES, JSON_LINES, TABLE_NAMES = (".json",), (".jsonl", ".ndjson"), (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class PublishedFile:
    """A file with results, as an importer sees it. ``columns``: what the importer calls a field -> what the file calls
    it, as far as the person said. ``model``: the model that the person named. ``expected``: the person has named the
    probe, so that a file that does not fit is to be answered with what is missing, not with None."""

    path: Path
    data: bytes = field(repr=False)
    columns: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    expected: bool = False

    @cached_property
    def json(self) -> Any:
        """The value in a JSON file; the list of the values in a JSON Lines file; None for a file of another kind. NaN
        is None. Raises InputError for a JSON file that cannot be read."""
        suffix = _suffix(self.path)
        if suffix in TABLE_NAMES:
            return None
        text = self._text
        if suffix not in JSON_NAMES + JSON_LINES and not text.lstrip().startswith(("{", "[")):
            return None
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        many = len(lines) > 1 and all(line.strip()[0] + line.strip()[-1] == "{}" for _, line in lines)
        if suffix in JSON_LINES or (suffix not in JSON_NAMES and many):
            return [parse_json(line, str(self.path), line=number) for number, line in lines]
        return parse_json(text, str(self.path))

    @cached_property
    def table(self) -> pl.DataFrame | None:
        """The rows of a table (csv, tsv: text), None for a file of another kind."""
        return read_table(self.path, what="results") if _suffix(self.path) in TABLE_NAMES else None

    @cached_property
    def _text(self) -> str:
        try:
            text = _unpacked(self.data, self.path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
        if not text.strip():
            raise InputError(f"{self.path} is empty; there are no results in it.")
        return text

    def names_only(self, known: Sequence[str]) -> bool:
        """Whether the columns that the person named are among those that an importer knows; InputError for one that is
        not, where the person has named the probe."""
        for name in self.columns:
            if name not in known:
                if self.expected:
                    raise InputError(
                        f"There is no column '{name}'{nearest(name, known)} to name; there are {', '.join(known)}."
                    )
                return False
        return True


@dataclass(frozen=True)
class ImportedResult:
    """What an importer makes of a file: tables and arrays as its probe's runs have them (a column that the file says
    nothing about is null), what the file says of the model (``name``, ``layers``, ``heads`` …), the settings that the
    tables rest on, and what a reader must be told. ``chosen``: what the tables depend on besides the file."""

    tables: dict[str, pl.DataFrame]
    summary: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)


def import_file(
    path: str | Path,
    *,
    model: str | None = None,
    source: str | None = None,
    licence: str | None = None,
    probe: str | None = None,
    columns: Mapping[str, str] | None = None,
    out: str | Path | None = None,
) -> Run:
    """The run that a file with results of others is, made anew or found as it is.

    ``model``: whose results they are; ``source``: where they were published (a paper, a URL); ``licence``: its terms;
    ``probe``: the probe whose results they are, where the content does not say; ``columns``: what an importer calls a
    field -> what the file calls it. A file that is imported again keeps its run; what is said of it this time replaces
    what was said before. Raises InputError, in one sentence, for a file that no importer reads."""
    path = existing(path, what="results")
    said = {"source": _word(source, "source"), "licence": _word(licence, "licence")}
    file = PublishedFile(path, read_plain(path), dict(columns or {}), _word(model, "model"), probe is not None)
    item, importer, found = recognise(file, probe)
    about = _about_model(found, file)
    check_result(item, Result(found.tables, found.arrays, found.summary), whole=False)
    fingerprint = hashlib.sha256(file.data).hexdigest()
    identity = {"imported": importer, "version": item.version, "data": fingerprint} | {
        name: value for name, value in (("columns", file.columns), ("chosen", found.chosen)) if value
    }
    name = f"{item.name}-{hashlib.sha256(canonical(identity)).hexdigest()[:12]}"
    made = {"file": path.name, "fingerprint": fingerprint, "importer": importer}
    folder = claim.place(out, name)
    claim.own(folder, name, fresh=True, leaves=item.leaves)
    with folder_lock(folder / claim.LOCK):
        done = claim.finished(folder, name)
        before = done.of("imported", default={}) if done is not None else {}
        told = {key: value if value is not None else before.get(key) for key, value in said.items()}
        about = about if file.model is not None or done is None else done.of("model", default=about)
        if done is None:
            claim.clear(folder, leaves=item.leaves)
            write_result(folder, Result(found.tables, found.arrays, found.summary))
        elif (before | told, done.of("model", default={})) == (before, about):
            return done
        now = provenance.now()
        info = {
            "schema": records.SCHEMA,
            "id": name,
            "probe": item.name,
            "status": "complete",
            "config": dict(found.config),
            "model": about,
            "data": None,
            "imported": made | told,
            "versions": provenance.versions(),
            "command": command_for(path, model=about["name"], probe=probe, columns=file.columns, out=out, **told),
            "started": done.of("started", default=now) if done is not None else now,
            "finished": now,
            "warnings": list(found.warnings),
            "files": checksums.of_folder(folder),
        }
        write_json(folder / records.RUN, records.seal(info))
    return open_run(folder)


def recognise(file: PublishedFile, probe: str | None = None) -> tuple[Probe, str, ImportedResult]:
    """(probe, name of its importer, what it read): the one whose importer takes the file for its own. Raises InputError
    where none does, and where several do."""
    usable = [registry.get(probe)] if probe is not None else _importing()
    offered = [(item, name, place) for item in usable for name, place in item.imports.items()]
    if not offered:
        what = f"The probe '{probe}' imports no files" if probe is not None else "No probe here imports files"
        able = ", ".join(item.name for item in _importing())
        raise InputError(f"{what}{f'; those that do are {able}' if able else ''}.")
    read = [(item, name, registry.load_function(place)(file)) for item, name, place in offered]
    found = [(item, name, result) for item, name, result in read if result is not None]
    if not found:
        known = "; ".join(f"{item.name}: {name}" for item, name, _ in offered)
        raise InputError(
            f"{file.path} looks like no results that can be imported ({known}); name the probe with --probe to hear "
            f"what is missing, and its columns with --columns."
        )
    if len(found) > 1:
        names = " and ".join(f"{name} ({item.name})" for item, name, _ in found)
        raise InputError(f"{file.path} looks like {names}; choose one with --probe.")
    return found[0]


def command_for(
    path: Path,
    *,
    model: str | None,
    source: str | None,
    licence: str | None,
    probe: str | None,
    columns: Mapping[str, str],
    out: str | Path | None,
) -> str:
    """The command line that imports the same, from any folder."""
    import shlex

    words = ["workbench", "import", str(path.resolve())]
    for name, value in (("model", model), ("source", source), ("licence", licence), ("probe", probe)):
        words += [f"--{name}", value] if value else []
    words += ["--columns", ",".join(f"{name}:{there}" for name, there in columns.items())] if columns else []
    words += ["--out", str(Path(out).expanduser().resolve())] if out is not None else []
    return shlex.join(words)


def _importing() -> list[Probe]:
    usable = [registry.get(name) for name in registry.names() if registry.problem(name) is None]
    return [item for item in usable if item.imports]


def _about_model(found: ImportedResult, file: PublishedFile) -> dict[str, Any]:
    """``model`` of run.json: what the file says and the person, and of a model that is on this machine its shape.
    Raises InputError where that shape cannot be the one of the file."""
    about = {
        "name": file.model or found.model.get("name"),
        "revision": None,
        "fingerprint": None,
        "architecture": None,
        **dict.fromkeys(("layers", "heads", "kv_heads", "width")),
        "dtype": None,
        "device": None,
    }
    about |= {key: value for key, value in found.model.items() if key != "name"}
    here = cost.facts(file.model) if file.model is not None else None
    for key in ("layers", "heads") if here is not None else ():
        own, said = getattr(here, key), about[key]
        if said is not None and own and said > own:
            raise InputError(
                f"{file.path} speaks of {said} {key}, and the model {file.model} has {own}; it is of another model."
            )
        about[key] = own or said
    return about


def _word(text: str | None, what: str) -> str | None:
    """What a person says in one line; InputError for nothing, and for what is no text."""
    if text is None:
        return None
    if not text.strip() or any(ord(letter) < 32 for letter in text):
        raise InputError(f"--{what} is empty or holds a line break; give it in one line, or leave it out.")
    return text.strip()


def _suffix(path: Path) -> str:
    """The suffix that says what is in a file, without the one of its packing."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _unpacked(data: bytes, path: Path) -> bytes:
    """The bytes of a file, unpacked where they are gzip's."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    found, rest = [], data
    try:
        while rest:
            one = zlib.decompressobj(zlib.MAX_WBITS | 16)
            found.append(one.decompress(rest))
            if not one.eof:
                raise InputError(f"{path} is cut off: its gzip stream has no end; fetch it again.")
            rest = one.unused_data
    except zlib.error as error:
        raise InputError(f"{path} cannot be unpacked: {error}; fetch it again.") from None
    return b"".join(found)
