"""Data files on the Hugging Face hub, by address: `hf://datasets/OWNER/NAME[@REVISION]/PATH`.

A file is fetched once, by the hub's own client, into a private folder of the cache that its address names, and read
from there as any other file is. Without a revision it stays what it was when it was fetched; a run keeps its
fingerprint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from workbench.core.errors import InputError
from workbench.core.paths import cache_root
from workbench.core.private import close, make_folder
from workbench.core.wording import cut, one_line

_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<inside>.+)")
FORM = "hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH"


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the hub. ``revision`` None: what the hub gives without one."""

    repo: str
    revision: str | None
    inside: str

    @property
    def address(self) -> str:
        at = "" if self.revision is None else f"@{quote(self.revision, safe='~')}"
        return f"hf://datasets/{self.repo}{at}/{self.inside}"

    @property
    def path(self) -> Path:
        """Where it lies once it is fetched."""
        return self._folder / self.inside

    @property
    def _folder(self) -> Path:
        at = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return cache_root() / "datasets" / f"{self.repo.replace('/', '--')}{at}"


def is_address(text: str | Path) -> bool:
    """Whether this is meant as an address on the hub; a Path has lost one of its strokes."""
    return str(text).startswith(("hf:/", "hf://"))


def parse_address(text: str | Path) -> HubFile:
    """The file that an address names. InputError for an address of another form, of several files, or of a place
    outside the data set."""
    whole = re.sub(r"^hf:/+", "hf://", str(text))
    match = _ADDRESS.fullmatch(whole)
    if match is None:
        raise InputError(f"'{cut(whole, 200)}' is no address of a file on the hub; write {FORM}.")
    inside = match["inside"]
    if any(sign in inside for sign in "*?["):
        raise InputError(f"'{cut(whole, 200)}' stands for several files; give the address of one.")
    revision = match["revision"] and unquote(match["revision"])
    parts = [*match["repo"].split("/"), *inside.split("/"), *(revision or "main").split("/")]
    if any(part in ("", ".", "..") for part in parts):
        raise InputError(f"'{cut(whole, 200)}' leads out of the data set; write {FORM}.")
    if revision and revision.startswith("~"):  # as polars and datasets write it
        revision = f"refs/convert/{revision[1:]}"
    return HubFile(match["repo"], revision, inside)


def fetched(file: HubFile) -> Path:
    """The file in the cache, fetched where it is not there yet. InputError where it cannot be: no such file, or the hub
    is not reached."""
    if file.path.is_file():
        return file.path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    make_folder(file._folder)
    try:
        hf_hub_download(
            file.repo, file.inside, repo_type="dataset", revision=file.revision, local_dir=str(file._folder)
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise InputError(
            f"{file.address} has not been fetched yet and the hub cannot be reached (HF_HUB_OFFLINE or no network); "
            f"fetch it where there is a network, or give a local file."
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"The hub has no file {file.address} for you ({type(error).__name__}); check its owner, name and path."
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{file.address} cannot be fetched ({one_line(error)}).") from None
    close(file._folder)
    if not file.path.is_file():
        raise InputError(f"{file.address} is no file; give the address of one.")
    return file.path
