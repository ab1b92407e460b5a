"""The JSON files of a run folder, each with one reader that says what is wrong with a file instead of passing it on:
run.json, summary.json, progress.jsonl, notes.json.

Fields that nobody relies on are kept as they are, and a field that is absent stays absent: older runs have fewer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workbench.core.errors import InputError
from workbench.core.files import canonical, read_plain
from workbench.core.wording import cut, one_line

SCHEMA = 1
DEEPEST = 100  # levels of JSON
_TOO_DEEP = "it is nested too deeply"
RUN, SUMMARY, PROGRESS, NOTES = "run.json", "summary.json", "progress.jsonl", "notes.json"
_COMPUTE_AGAIN = "move it away, or give the command of the run with --fresh, which computes it again"

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=200)]


def _inside(name: str) -> str:
    """A relative path that stays in the folder."""
    if not name or name.startswith("/") or "\0" in name or {"", ".", ".."} & set(name.split("/")):
        raise ValueError("a path inside the run's folder is needed")
    return name


Inside = Annotated[str, AfterValidator(_inside)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Model(_Entry):
    name: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    architecture: str | None = None
    layers: Count | None = None
    heads: Count | None = None
    kv_heads: Count | None = None
    width: Count | None = None
    dtype: str | None = None
    device: str | None = None
    device_name: str | None = None


class _Data(_Entry):
    path: str | None = None
    name: str | None = None
    fingerprint: str | None = None
    rows: Count | None = None
    rows_in_file: Count | None = None
    address: str | None = None
    read_as: list[str] | None = None


class _Times(_Entry):
    load: Seconds | None = None
    compute: Seconds | None = None
    total: Seconds | None = None


class _Error(_Entry):
    type: str | None = None
    message: str
    traceback: str | None = None


class _Imported(_Entry):
    """Where the results of a run come from that was not computed here."""

    file: str
    fingerprint: str
    importer: str
    source: str | None = None
    licence: str | None = None


class _File(_Entry):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class _Run(_Entry):
    """What readers rely on in run.json."""

    schema_: int = Field(alias="schema", ge=1)
    id: Id
    probe: Annotated[str, Field(min_length=1, max_length=200)]
    status: Literal["running", "complete", "cancelled", "failed"]
    config: dict[str, Any] | None = None
    model: _Model | None = None
    data: _Data | None = None
    material: dict[str, dict[str, Any]] | None = None
    sae: dict[str, Any] | None = None
    imported: _Imported | None = None
    seed: Count | None = None
    engine: str | None = None
    edits: list[dict[str, Any]] | None = None
    versions: dict[str, str] | None = None
    command: str | None = None
    started: str | None = None
    finished: str | None = None
    resumed: Count | None = None
    seconds: _Times | None = None
    counters: dict[str, Count] | None = None
    peak_memory_bytes: Count | None = None
    peak_device_memory_bytes: Count | None = None
    warnings: list[str] | None = None
    pid: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    host: str | None = None
    error: _Error | None = None
    files: dict[Inside, _File] | None = None
    checksum: str | None = None


class _Step(_Entry):
    """A line of progress.jsonl."""

    time: str | None = None
    seconds: Seconds | None = None
    done: Count
    total: Count
    label: str


class _Notes(_Entry):
    tags: list[str] = []
    note: str = ""


_SUMMARY = TypeAdapter(dict[str, Any])


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run folder, whatever its checksum says (see `sealed`). InputError for what is none."""
    path = folder / RUN
    found = _read(path, _Run, _COMPUTE_AGAIN)
    if found["schema"] > SCHEMA:
        raise InputError(f"{path} was written by a newer version (schema {found['schema']}); update the workbench.")
    return found


def read_summary(data: bytes, *, path: Path, remedy: str) -> dict[str, Any]:
    """The summary in the bytes of summary.json."""
    try:
        return _SUMMARY.validate_python(parse_json(data))
    except (ValueError, RecursionError) as error:
        raise _refusal(path, error, remedy) from None


def last_step(data: bytes) -> dict[str, Any] | None:
    """The last whole line of progress.jsonl; a process that is killed leaves half a line."""
    for line in reversed(data.splitlines()):
        try:
            found = parse_json(line)
            _Step.model_validate(found)
            return found
        except (ValueError, RecursionError):
            continue
    return None


def read_notes(folder: Path) -> dict[str, Any]:
    """``tags`` and ``note`` of a run, empty where it has no notes.json; InputError for one that cannot be read."""
    path = folder / NOTES
    if not os.path.lexists(path):
        return {"tags": [], "note": ""}
    found = _read(path, _Notes, "mend it or move it away, it is not overwritten")
    return {"tags": found.get("tags", []), "note": found.get("note", "")}


def seal(info: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a ``checksum`` of all the rest (its canonical JSON, so that white space says nothing)."""
    rest = {key: value for key, value in info.items() if key != "checksum"}
    return rest | {"checksum": hashlib.sha256(canonical(rest)).hexdigest()}


def sealed(info: Mapping[str, Any]) -> bool:
    """Whether run.json is as it was written. Held for complete runs; those from before checksums have none."""
    if info.get("status") != "complete" or ("checksum" not in info and "files" not in info):
        return True
    return info.get("checksum") == seal(info)["checksum"]


def parse_json(data: bytes) -> Any:
    """A JSON value; ValueError or RecursionError for what is none, NaN and infinities, numbers that no float holds and
    nesting that no file of ours has included."""
    found = json.loads(data.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite, parse_int=_short)
    level = [found]
    for _ in range(DEEPEST):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return found
    raise ValueError(_TOO_DEEP)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _short(text: str) -> int:
    if len(text) > 300:
        raise ValueError(f"it holds a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{cut(text, 20)} is too large a number")
    return number


def _read(path: Path, kind: type[BaseModel], remedy: str) -> dict[str, Any]:
    try:
        found = parse_json(read_plain(path))
        kind.model_validate(found)
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, error, remedy) from None
    return found


def _refusal(path: Path, error: BaseException, remedy: str) -> InputError:
    return InputError(f"{path} cannot be read: {_reason(error)}; {remedy}.")


def _reason(error: BaseException) -> str:
    """What is wrong with a file, to stand inside a sentence."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        where, given = ".".join(map(str, first["loc"])), cut(repr(first["input"]), 40)
        if not where:
            return f"it holds {given}, not a JSON object"
        if first["type"] == "missing":
            return f"it has no field '{where}'"
        return f"the field '{where}' is {given} ({first['msg'][0].lower()}{first['msg'][1:]})"
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)
