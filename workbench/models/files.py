"""The files of a model: found by name, looked at before they are loaded, held against what was loaded from them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import InputError
from workbench.core.files import open_plain
from workbench.core.json_text import read_json_object
from workbench.core.nearest_name import nearest
from workbench.core.wording import one_line
from workbench.models.load_options import check_revision, local_folder, looks_like_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"  # which weight file holds which tensor


def resolve(name: str, *, revision: str | None = None) -> Path:
    """The local folder of a model: an organism's name, a folder in Hugging Face format, or a hub id (downloaded unless
    offline).

    Raises InputError when there is none, and for a revision of an organism or a folder, which have none."""
    from workbench import organisms

    check_revision(name, revision)
    if name in organisms.names() or name.split("@")[0] in organisms.names():
        return organisms.folder(name)  # before any folder of that name: write ./name for yours
    if (found := local_folder(name)) is not None:
        return found
    if looks_like_path(name):
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
    except (OSError, ValueError, RuntimeError) as error:  # a cache that cannot be read or written, a broken connection
        raise InputError(f"The model '{name}' cannot be fetched from the hub ({one_line(error)}).") from error


def check_folder(folder: Path, name: str) -> None:
    """Raise InputError for a folder without a readable config or without all of its safetensors files, and for one that
    holds an adapter."""
    check_no_adapter(folder, name)
    if not (folder / "config.json").is_file():
        raise InputError(f"The model folder '{name}' has no config.json; it is not a Hugging Face model folder.")
    config = read_part(folder / "config.json", name)
    if config.get("transformers_weights"):  # any file of the folder, which nobody who looks at the folder would guess
        raise InputError(
            f"The config.json of '{name}' takes its weights from a file of its own choice (transformers_weights); "
            f"remove that entry, and name the file model.safetensors."
        )
    index = folder / INDEX
    if index.is_file():
        listed = read_part(index, name).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
            raise InputError(
                f"The {index.name} of '{name}' has no weight_map of weight files; copy the model folder again."
            )
        wanted = sorted(set(listed.values()))
        outside = [file for file in wanted if Path(file).is_absolute() or ".." in Path(file).parts]
        if outside:
            raise InputError(
                f"The {index.name} of '{name}' names {outside[0]}, which is outside the folder; put the weights inside."
            )
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


def check_no_adapter(folder: Path, name: str) -> None:
    """Raise InputError where transformers would put an adapter onto the weights, or take another model's weights."""
    if not (folder / ADAPTER_CONFIG).exists():
        return
    if (folder / "config.json").is_file():
        raise InputError(
            f"The model folder '{name}' holds an adapter beside its weights ({ADAPTER_CONFIG}), so it is not clear "
            f"which model is meant; move the adapter's files into a folder of their own and give that with --adapter, "
            f"or remove them."
        )
    base = read_part(folder / ADAPTER_CONFIG, name).get("base_model_name_or_path")
    base = f"'{base}'" if isinstance(base, str) and base else "BASE"
    raise InputError(
        f"The folder '{name}' holds an adapter and no model of its own; give --model {base} --adapter '{name}'."
    )


def read_part(file: Path, name: str) -> dict[str, Any]:
    """The JSON object in one of a model's files; InputError that names both."""
    return read_json_object(file, what=f"The {file.name} of '{name}'")


# What old checkpoints store in their blocks beside weights: causal masks and rotary frequencies, which the model
# computes itself.
_NOT_WEIGHTS = re.compile(r"(inv_freq|masked_bias|causal_mask|\b(attn|attention|self_attention)\.bias)$")


def check_complete(hf: PreTrainedModel, info: dict, name: str) -> None:
    """Refuse a model that its files filled only in part, and files whose blocks the model leaves out.

    `info` is what transformers says of the loading: parameters that were not in the files (tied ones and those that the
    class declares as expendable left out), which now hold random numbers, and tensors of the files that found no
    parameter."""
    from torch import nn

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


def fingerprint_folder(folder: Path, *, code: bool = False) -> str:
    """SHA-256 (hex) over config.json and every weight file, and with `code` over the Python files that come with them.

    An index that names other files than lie there, or files that hold a tensor twice, decides which numbers are loaded:
    then it counts too."""
    from workbench.core.file_hashes import hashes
    from workbench.core.paths import cache_root

    weights = sorted(folder.glob("*.safetensors"))
    inside = [path for path in _indexed(folder) if path not in weights]
    files = [folder / "config.json", *weights, *inside]
    if (folder / INDEX).is_file() and not _only_one_way(folder, weights):
        files.append(folder / INDEX)
    if code:
        files += sorted(folder.rglob("*.py"))
    digest = hashlib.sha256()
    for file, found in zip(files, hashes(files, cache_root() / "fingerprints.json")):
        digest.update(f"{file.relative_to(folder).as_posix()}:{found}\n".encode())
    return digest.hexdigest()


def _indexed(folder: Path) -> list[Path]:
    """The weight files that the index names, where there is one."""
    index = folder / INDEX
    listed = read_part(index, folder.name).get("weight_map") if index.is_file() else None
    return sorted({folder / file for file in listed.values()}) if isinstance(listed, dict) else []


def _only_one_way(folder: Path, weights: Sequence[Path]) -> bool:
    """Whether the weight files leave nothing to the index: it names them all, and no tensor is in two of them."""
    if _indexed(folder) != list(weights):
        return False
    tensors = [name for file in weights for name in tensor_names(file)]
    return len(set(tensors)) == len(tensors)


def tensor_names(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file, by its header alone. Raises InputError for one without a
    header."""
    return list(_tensors(file))


def stored_numbers(folder: Path) -> dict[str, int]:
    """How many numbers the weight files of a folder hold in each format, as safetensors names it ("BF16"). Raises
    InputError for a file without a readable header."""
    found: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for about in _tensors(file).values():
            kind = str(about.get("dtype"))
            found[kind] = found.get(kind, 0) + math.prod(about.get("shape") or ())
    return found


def _tensors(file: Path) -> dict[str, dict]:
    """Name → {dtype, shape, …} of the tensors in a safetensors file."""
    try:
        with open_plain(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length <= file.stat().st_size else None
    except OSError as error:
        raise InputError(f"The weight file {file} cannot be read ({one_line(error)}); copy it again.") from error
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not all(isinstance(about, dict) for about in header.values()):
        raise InputError(f"The weight file {file} is damaged: it has no readable header; copy it again.")
    return {name: about for name, about in header.items() if name != "__metadata__"}


def check_number_format(folder: Path, name: str, methods: Iterable[str]) -> None:
    """Raise InputError for quantised weights that would be read as if they were plain numbers: of a method that is none
    of `methods`, or whole numbers without a method."""
    asked = read_part(folder / "config.json", name).get("quantization_config")
    method = asked.get("quant_method") if isinstance(asked, dict) else None
    if method in tuple(methods):
        return
    if method is not None:
        raise InputError(
            f"The model '{name}' is quantised by '{method}', which the transformers library here does not know; give "
            f"the original model."
        )
    for file in sorted(folder.glob("*.safetensors")):
        for key, about in _tensors(file).items():
            packed = about.get("dtype") in ("I8", "U8", "I16", "U16", "I32", "U32")
            if packed and len(about.get("shape") or ()) > 1 and not _NOT_WEIGHTS.search(key):
                raise InputError(
                    f"The weights of '{name}' are whole numbers ({key} is {about['dtype']}), and its config.json does "
                    f"not say how they are quantised; give the original model."
                )


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
        raise InputError(f"The tokenizer in '{folder.name}' cannot be loaded: {one_line(error, 300)}.") from error
