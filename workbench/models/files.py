"""The files of a model: found by name, looked at before they are loaded, held against what was loaded from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from workbench.core.errors import InputError
from workbench.core.nearest_name import nearest
from workbench.core.paths import usable_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resolve(name: str, *, revision: str | None = None) -> Path:
    """The local folder of a model: an organism's name, a folder in Hugging Face format, or a hub id (downloaded unless
    offline).

    Raises InputError when there is none."""
    from workbench import organisms

    if name in organisms.names() or name.split("@")[0] in organisms.names():
        return organisms.folder(name)  # before any folder of that name: write ./name for yours
    path = usable_path(name, what="model")
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"The model folder '{name}' does not exist.")
    if "/" not in name:
        raise InputError(
            f"There is no model '{name}'{nearest(name, organisms.names())}: it is no organism, no folder and no hub "
            f"id (owner/name); `workbench models` lists the organisms."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = [
        "*.json",
        "*.safetensors",
        "*.model",
        "*.txt",
        "*.jinja",
        "*.tiktoken",
        "*.py",
    ]  # *.py runs only with trust_remote_code
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"The model '{name}' is not in the local hub cache and the hub cannot be reached (HF_HUB_OFFLINE "
            f"or no network); give a local folder."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"The hub has no model '{name}'"
            + (f" at revision '{revision}'" if revision else "")
            + f" for you ({type(error).__name__})."
        ) from error


def check_folder(folder: Path, name: str) -> None:
    """Raise InputError for a folder without a readable config or without all of its safetensors files."""
    if not (folder / "config.json").is_file():
        raise InputError(f"The model folder '{name}' has no config.json; it is not a Hugging Face model folder.")
    _json_object(folder / "config.json", name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _json_object(index, name).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
            raise InputError(
                f"The {index.name} of '{name}' has no weight_map of weight files; copy the model folder again."
            )
        wanted = sorted(set(listed.values()))
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            raise InputError(
                f"The model folder '{name}' is incomplete: {missing[0]} is missing ({len(missing)} of "
                f"{len(wanted)} weight files)."
            )
    elif not list(folder.glob("*.safetensors")):
        if list(folder.glob("*.bin")) or list(folder.glob("*.pt")) or list(folder.glob("*.pth")):
            raise InputError(
                f"The model '{name}' has only pickled weights, which can run code when opened; convert them "
                f"to safetensors first."
            )
        raise InputError(f"The model folder '{name}' has no weights (*.safetensors).")


def _json_object(file: Path, name: str) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"The {file.name} of '{name}' cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise InputError(f"The {file.name} of '{name}' is not a JSON object; copy the model folder again.")
    return found


# What old checkpoints store in their blocks beside weights: causal masks and rotary frequencies, which the model
# computes itself.
_NOT_WEIGHTS = re.compile(r"(inv_freq|masked_bias|causal_mask|\b(attn|attention|self_attention)\.bias)$")


def check_complete(hf: PreTrainedModel, info: dict, name: str) -> None:
    """Refuse a model that its files filled only in part, and files whose blocks the model leaves out.

    `info` is what transformers says of the loading: parameters that were not in the files (tied ones and those that the
    class declares as expendable left out), which now hold random numbers, and tensors of the files that found no
    parameter."""
    missing = sorted(info["missing_keys"], key=_by_number)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"The weights of '{name}' are incomplete: {missing[0]}{more} is not in its files; copy the model "
            f"folder again, or correct its config.json."
        )
    number = getattr(hf.config.get_text_config(), "num_hidden_layers", None)
    stacks = [key for key, module in hf.named_modules() if isinstance(module, nn.ModuleList) and len(module) == number]
    stem = f"{getattr(hf, 'base_model_prefix', '')}."
    prefixes = tuple({f"{found}." for key in stacks[:1] for found in (key, key.removeprefix(stem))})
    dropped = sorted(
        (key for key in info["unexpected_keys"] if key.startswith(prefixes) and not _NOT_WEIGHTS.search(key)),
        key=_by_number,
    )
    if dropped:
        raise InputError(
            f"The model '{name}' would leave out weights of its own files, first {dropped[0]} ({len(dropped)} "
            f"in all): its config.json ({number} layers) does not belong to them."
        )


def _by_number(key: str) -> list:
    """Sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def fingerprint_folder(folder: Path) -> str:
    """SHA-256 (hex) over config.json and every weight file; large files are hashed once and remembered by size and
    time."""
    from workbench.core.paths import cache_root

    memory = cache_root() / "fingerprints.json"
    try:
        known = json.loads(memory.read_text())
    except (OSError, json.JSONDecodeError):
        known = {}
    digest = hashlib.sha256()
    learned = {}
    for file in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        real, stat = file.resolve(), file.stat()
        key = f"{real}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            with open(real, "rb") as stream:
                learned[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}:{known.get(key) or learned[key]}\n".encode())
    if learned:
        with contextlib.suppress(OSError):  # only a memory: without it the hash is computed again
            memory.parent.mkdir(parents=True, exist_ok=True)
            temporary = memory.with_name(f"{memory.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(known | learned))
            temporary.replace(memory)
    return digest.hexdigest()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False):
    """The tokenizer of a model folder, or None where it has none. Raises InputError for one that cannot be read."""
    from transformers import AutoTokenizer

    if not any(
        (folder / file).is_file()
        for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise InputError(
            f"The tokenizer in '{folder.name}' cannot be loaded: {str(error).splitlines()[0][:300]}"
        ) from error
