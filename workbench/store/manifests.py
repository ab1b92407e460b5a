"""The manifest of an entry, ``entry.json``: what the entry is, and whether it is complete. Read in one place, and
believed only when every field is what it should be and its own checksum fits."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.core.errors import InputError
from workbench.core.files import atomic, canonical, read_json, write_json
from workbench.core.wording import one_line
from workbench.store import shards

SCHEMA = 1
MANIFEST = "entry.json"
logger = logging.getLogger(__name__)

Bytes = Annotated[int, Field(ge=0, lt=2**63)]


class _ShardFile(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    file: Annotated[str, Field(pattern=rf"^{shards.NAME.pattern}$")]
    bytes: Bytes


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    schema_: Literal[1] = Field(alias="schema")
    key: str
    meta: Any
    n_shards: Annotated[int, Field(ge=1, lt=2**31)]
    expected_bytes: Bytes
    created: Annotated[str, Field(max_length=40)]
    complete: bool
    shards: list[_ShardFile]
    checksum: str


def require_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an entry, without its checksum. FileNotFoundError where there is none; InputError, one sentence,
    for one that is damaged, of another schema, or of another entry."""
    path = folder / MANIFEST
    manifest = read_json(path)
    try:
        _Manifest.model_validate(manifest)
        checksum = manifest.pop("checksum")
        sound = checksum == hashlib.sha256(canonical(manifest)).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} cannot be read: {f'its field {field}' if field else 'its content'} is odd ({first['msg']})."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}.") from None
    if not sound:
        raise InputError(f"{path} does not match its own checksum.")
    if manifest["key"] != folder.name:
        raise InputError(f"{path} belongs to another entry, {manifest['key'][:64]!r}.")
    if manifest["complete"] and [shards.index_of(Path(item["file"])) for item in manifest["shards"]] != list(
        range(manifest["n_shards"])
    ):
        raise InputError(f"{path} says that the entry is complete and does not list its shards.")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an entry; None when it is absent, or (with a warning) not to be believed."""
    try:
        return require_manifest(folder)
    except FileNotFoundError:
        return None
    except InputError as error:
        logger.warning("The store entry %s is computed again: %s", folder.name, error)
        return None


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of an entry; it carries a checksum of itself. That of a complete entry is flushed to disk,
    and with it the names of all shards."""
    manifest = {**manifest, "checksum": hashlib.sha256(canonical(manifest)).hexdigest()}
    if manifest["complete"]:
        write_json(folder / MANIFEST, manifest)
    else:
        with atomic(folder / MANIFEST, durable=False) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2))


def lacking(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a shard of a complete entry is missing or has another length."""
    try:
        return any((folder / item["file"]).stat().st_size != item["bytes"] for item in manifest["shards"])
    except OSError:
        return True


def discard(path: Path) -> None:
    """Remove whatever is there: a file, a folder, a link (never what it leads to)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
