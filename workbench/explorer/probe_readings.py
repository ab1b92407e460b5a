"""What the linear probes of a run say of states: from the directions that the run left.

The file has, for every set and condition, unit directions [L, d], biases and scales; a state x has the score
scale (x · direction + bias), and lies on the side of class 1 where that is above 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.core.errors import InputError
from workbench.core.json_text import parse_json_object
from workbench.models.sites import KINDS
from workbench.runs.folder import Run

DIRECTIONS = "directions.safetensors"


@dataclass(frozen=True, eq=False)
class LayerProbes:
    """Linear probes of two classes, one a layer, of one set under one condition: `weights` [L, d] and `bias` [L] of the
    score, and what they read: the `kind` of site, at which `token`."""

    weights: np.ndarray
    bias: np.ndarray
    classes: tuple[str, str]
    kind: str
    token: str

    def scores(self, x: np.ndarray, layer: int) -> np.ndarray:
        """Scores [n] float64 of states [n, d] at a layer; above 0 is the second class."""
        return np.asarray(x, np.float64) @ self.weights[layer] + self.bias[layer]

    def predictions(self, scores: np.ndarray) -> list[str]:
        """The class on whose side each score is."""
        return [self.classes[int(score > 0)] for score in scores]


def layer_probes(run: Run, dataset: str, condition: str) -> LayerProbes | None:
    """The probes that a run left of a set; None where it left none, or of other than two classes."""
    if DIRECTIONS not in (run.files or {}):
        return None
    from safetensors.numpy import load

    data = run.read(DIRECTIONS)
    about = parse_json_object(_about(data).encode(), what=f"metadata of {DIRECTIONS}")
    classes = (about.get("classes") or {}).get(dataset) or []
    if about.get("site") not in KINDS or len(classes) != 2:
        return None
    found, name = load(data), f"{dataset}/{condition}"
    if f"{name}/direction" not in found:
        return None
    direction, bias, scale = (found[f"{name}/{part}"] for part in ("direction", "bias", "scale"))
    if direction.ndim != 2:
        return None
    one, two = (str(each) for each in classes)
    return LayerProbes(direction * scale[:, None], bias * scale, (one, two), about["site"], str(about.get("token")))


def _about(data: bytes) -> str:
    """The text ``about`` in the header of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header = parse_json_object(data[8 : 8 + size], what=f"header of {DIRECTIONS}")
    text = (header.get("__metadata__") or {}).get("about")
    if not isinstance(text, str):
        raise InputError(f"{DIRECTIONS} does not say what its directions are of.")
    return text
