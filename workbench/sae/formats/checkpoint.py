"""What every format is turned into: sae-lens' own config and weights, and what a folder's names say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.core.errors import InputError
from workbench.core.json_text import read_json_object
from workbench.core.wording import one_line


@dataclass(frozen=True)
class SaeState:
    """An autoencoder as sae-lens builds it: `state` has W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_enc, b_dec …"""

    config: dict[str, Any]
    state: dict[str, torch.Tensor]
    top_k: int | None = None  # features kept per token where sae-lens has no class that does so
    reconstructs: bool = True  # a layer of a cross-layer transcoder is only a part of a reconstruction


@dataclass(frozen=True)
class Format:
    """A way in which autoencoders are published: how it is recognised, and how it is read."""

    name: str
    files: tuple[str, ...]  # patterns of what a folder of it holds; the last is its weights
    about: Callable[[Path], dict[str, Any]]  # weights file → hook_name and other metadata, without the weights
    read: Callable[[Path], SaeState]  # of a weights file, on the CPU


def checkpoint(architecture: str, state: dict[str, torch.Tensor], about: dict[str, Any], **settings: Any) -> SaeState:
    """A checkpoint of float32 weights; widths are those of the weights. `settings` are sae-lens' config keys.

    Raises InputError for weights whose shapes do not belong together."""
    state = {name: value.float().contiguous() for name, value in state.items() if value is not None}
    check_shapes(state)
    d_in, d_sae = state["W_enc"].shape
    hook = str(about.get("hook_name") or "")
    config = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook.endswith("hook_z") else "none",
        "metadata": {"sae_lens_version": "6.54.0"} | {key: value for key, value in about.items() if value is not None},
    }
    config |= {"d_out": state["W_dec"].shape[1]} if "transcoder" in architecture else {}
    return SaeState(config | settings, state)


def check_shapes(state: dict[str, torch.Tensor]) -> None:
    """Raise InputError where a tensor is missing or does not fit the others."""
    for name in ("W_enc", "W_dec", "b_dec"):
        if name not in state:
            raise InputError(f"The weights have no {name}; they are not those of an autoencoder.")
    d_in, d_sae = state["W_enc"].shape
    d_out = state["W_dec"].shape[-1]
    wanted = {"W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    wanted |= dict.fromkeys(("b_enc", "threshold", "b_gate", "b_mag", "r_mag"), (d_sae,))
    for name, value in state.items():
        if name in wanted and tuple(value.shape) != wanted[name]:
            raise InputError(
                f"{name} has the shape {list(value.shape)}, not {list(wanted[name])} as W_enc {[d_in, d_sae]} asks for."
            )


def encoder_columns(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """W_enc [d_in, d_sae] of an encoder that is stored either way round; the bias [d_sae] says which."""
    return weight.T if weight.shape[0] == len(bias) and weight.shape[1] != len(bias) else weight


def beside(weights: Path, name: str) -> dict[str, Any]:
    """The JSON object beside the weights, {} where there is none."""
    path = weights.parent / name
    return read_json_object(path, what=str(path)) if path.is_file() else {}


def yaml_beside(weights: Path, *names: str) -> dict[str, Any]:
    """The first of these YAML files beside the weights, {} where there is none."""
    import yaml

    for name in names:
        if (weights.parent / name).is_file():
            try:
                found = yaml.safe_load((weights.parent / name).read_text())
            except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
                raise InputError(f"{weights.parent / name} is not YAML ({one_line(error)}).") from error
            return found if isinstance(found, dict) else {}
    return {}


def named_layer(path: Path) -> int | None:
    """The layer that the names in a path give, the last of them first: `layer_20`, `resid_post_layer_8`, `L8R-8x`,
    `SAE-l19.pt`, `layers.3`."""
    for part in reversed(path.parts):
        if found := re.search(r"layers?[_.-]?(\d+)", part) or re.search(r"(?:^|[-_.])[lL](?!0_)(\d+)", part):
            return int(found[1])
    return None


def of_release(path: Path, pattern: str) -> re.Match | None:
    """Where a pattern is found in the names of a path, the last of them first (those of a hub cache included)."""
    return next((found for part in reversed(path.parts) if (found := re.search(pattern, part))), None)


def torch_state(path: Path) -> dict[str, Any]:
    """The tensors of a PyTorch file. Raises InputError for one that holds code (a pickle) or is damaged."""
    import pickle

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path.name} holds pickled Python objects, which may run any code and are not loaded; save its tensors "
            f"alone (torch.save(model.state_dict(), …)) or as safetensors."
        ) from error
    except Exception as error:  # torch raises whatever its reader trips over
        raise InputError(f"{path.name} cannot be read by PyTorch ({one_line(error)}).") from error
    if not isinstance(found, dict):
        raise InputError(f"{path.name} holds {type(found).__name__}, not the named tensors of an autoencoder.")
    return found


def safetensors_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises InputError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read ({one_line(error)}).") from error


def need(state: dict[str, Any], *names: str, where: Path) -> list[torch.Tensor]:
    """These tensors of a file. Raises InputError, with what it holds, where one is absent."""
    if missing := [name for name in names if not isinstance(state.get(name), torch.Tensor)]:
        raise InputError(f"{where.name} has no tensor {missing[0]}; it holds {', '.join(map(str, list(state)[:8]))}.")
    return [state[name] for name in names]
